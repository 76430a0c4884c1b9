"""The guard: decide whether a step may update the weights, and what to do about a bad one.

A bad step is skipped: no update, and its batch is used up. After too many bad steps in a row the run rolls back to the
last checkpoint before them and excludes their batches. After too many rollbacks it stops. The result is the same from
any checkpoint before the bad steps. After a rollback the number of a step's batch is no longer the step's own number,
but still a function of that number and the list of excluded batches.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from regpt.recipe.sections import GuardRecipe
from regpt.tracking.rejections import Rejection
from regpt.tracking.rejections import RejectionKind as Kind

# One standard deviation of a normal distribution, in median absolute deviations.
DEVIATION = 1.4826
MIN_RELATIVE_SPREAD = 1e-3  # of the median: on a very flat curve smaller deviations are no spikes

STORED = ("losses", "norms", "bad_batches", "last_good_step", "excluded_batches", "rollbacks")
# Names that version 0.1 wrote into state.json.
OLD_NAMES = {"bad_since": "last_good_step", "left_out": "excluded_batches", "returns": "rollbacks"}


class Verdict(StrEnum):
    """What to do about a bad step."""

    SKIP = "skip"
    ROLLBACK = "rollback"
    STOP = "stop"


@dataclass
class Guard:
    """The recent good steps, the bad steps since, and the rollbacks so far; stored in every checkpoint."""

    settings: GuardRecipe
    losses: list[float] = field(default_factory=list)  # of the last `settings.window` good steps
    norms: list[float] = field(default_factory=list)  # gradient norms of the same steps
    bad_batches: list[int] = field(default_factory=list)  # of the current row of bad steps
    last_good_step: int = 0  # completed steps before the current row of bad steps
    excluded_batches: list[int] = field(default_factory=list)  # that no step trains on any more, sorted
    rollbacks: int = 0

    def rejection(self, loss: float, norm: float) -> Rejection | None:
        """Return why a step must not update the weights, or None for a good step."""
        if not math.isfinite(loss):
            return Rejection(kind=Kind.LOSS_NAN if math.isnan(loss) else Kind.LOSS_INFINITE)
        if not math.isfinite(norm):
            return Rejection(kind=Kind.GRADIENT_NORM_NAN if math.isnan(norm) else Kind.GRADIENT_NORM_INFINITE)
        for kind, value, recent, deviations in (
            (Kind.LOSS_SPIKE, loss, self.losses, self.settings.loss_deviations),
            (Kind.GRADIENT_NORM_SPIKE, norm, self.norms, self.settings.norm_deviations),
        ):
            limit = spike_limit(recent, deviations, self.settings.window)
            if value > limit:
                return Rejection(kind=kind, value=value, limit=limit, deviations=deviations)
        return None

    def accept(self, loss: float, norm: float) -> None:
        """Record a good step. Only good steps define what is normal."""
        self.losses = [*self.losses, loss][-self.settings.window :]
        self.norms = [*self.norms, norm][-self.settings.window :]
        self.bad_batches = []

    def reject(self, step: int, batch: int) -> Verdict:
        """Record a bad step, on batch number `batch` after `step` completed steps; return what to do about it."""
        if not self.bad_batches:
            self.last_good_step = step
        self.bad_batches = [*self.bad_batches, batch]
        if len(self.bad_batches) <= self.settings.max_skips:
            return Verdict.SKIP
        return Verdict.ROLLBACK if self.rollbacks < self.settings.max_rollbacks else Verdict.STOP

    def exclude(self, batches: Sequence[int], rollbacks: int) -> None:
        """Exclude batches from training after a rollback, of which there are `rollbacks` now."""
        self.excluded_batches = sorted({*self.excluded_batches, *batches})
        self.rollbacks = rollbacks
        self.bad_batches = []

    def batch_of(self, step: int) -> int:
        """Return the number of the batch that follows `step` completed steps, not counting excluded batches."""
        batch = step
        for excluded in self.excluded_batches:
            if excluded <= batch:
                batch += 1
        return batch

    def to_json(self) -> dict[str, Any]:
        """Return the guard as state.json stores it."""
        return {name: getattr(self, name) for name in STORED}

    @classmethod
    def from_json(cls, settings: GuardRecipe, stored: Mapping[str, Any]) -> Self:
        """Restore a guard from state.json, written by this version or by version 0.1."""
        return cls(settings, **{OLD_NAMES.get(name, name): value for name, value in stored.items()})


def spike_limit(recent: Sequence[float], deviations: float, window: int) -> float:
    """Return the value above which a step counts as a spike; infinity without enough recent steps.

    The limit lies `deviations` robust standard deviations (from the median absolute deviation) above the median.
    """
    if deviations == 0 or len(recent) < window // 4:
        return math.inf
    median = statistics.median(recent)
    spread = DEVIATION * statistics.median(abs(value - median) for value in recent)
    return median + deviations * max(spread, MIN_RELATIVE_SPREAD * abs(median))
