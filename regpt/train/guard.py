"""The guard: whether a step may reach the weights, and what is done about those that may not.

A bad step is passed over: no update, its batch is spent, the next one is tried. After too many in a row the run goes
back to the last checkpoint before them and leaves those batches out; after that, it stops. Whichever checkpoint it
finds, an earlier one or one that a stop has made, it comes to the same weights. Which batch a step trains on
is then no longer the step's own number, but still a function of it and of the list of batches that were left out.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from regpt.base.sections import GuardRecipe

# A normal distribution's standard deviation in median absolute deviations.
DEVIATION = 1.4826
LEAST_SPREAD = 1e-3  # of the median: so flat a curve has no spikes smaller than deviations of this

Verdict = Literal["good", "skip", "return", "stop"]


@dataclass
class Guard:
    """What was usual, what was bad, and what has been done about it; all of it goes into checkpoints."""

    settings: GuardRecipe
    losses: list[float] = field(default_factory=list)  # of accepted steps, the last so many
    norms: list[float] = field(default_factory=list)
    bad_batches: list[int] = field(default_factory=list)  # in a row, up to now
    bad_since: int = 0  # completed steps before the first of them
    left_out: list[int] = field(default_factory=list)  # batches that no step trains on any more, in order
    returns: int = 0

    def reason(self, loss: float, norm: float) -> str:
        """What is wrong with a step before its update; nothing if it is good."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the norm of the gradients is {norm}"
        for name, value, usual, deviations in (
            ("loss", loss, self.losses, self.settings.loss_deviations),
            ("norm of the gradients", norm, self.norms, self.settings.norm_deviations),
        ):
            limit = spike_limit(usual, deviations, self.settings.window)
            if value > limit:
                return f"the {name} is {value:.4g}, above {limit:.4g}: {deviations:g} deviations over the usual"
        return ""

    def accept(self, loss: float, norm: float) -> None:
        """A good step. What is no number, or a spike, never comes here, so it cannot bend what is usual."""
        self.losses = [*self.losses, loss][-self.settings.window :]
        self.norms = [*self.norms, norm][-self.settings.window :]
        self.bad_batches = []

    def reject(self, step: int, batch: int) -> Verdict:
        """The step after `step` completed ones, on this batch, was bad: what is to be done."""
        if not self.bad_batches:
            self.bad_since = step
        self.bad_batches = [*self.bad_batches, batch]
        if len(self.bad_batches) <= self.settings.skips:
            return "skip"
        return "return" if self.returns < self.settings.returns else "stop"

    def leave_out(self, batches: Sequence[int], returns: int) -> None:
        """After going back to a checkpoint: these batches are not trained on again."""
        self.left_out = sorted({*self.left_out, *batches})
        self.returns = returns
        self.bad_batches = []

    def batch_of(self, step: int) -> int:
        """The number of the batch that the step after `step` completed ones trains on: left-out ones do not count."""
        batch = step
        for gone in self.left_out:
            if gone <= batch:
                batch += 1
        return batch

    def as_json(self) -> dict[str, Any]:
        names = ("losses", "norms", "bad_batches", "bad_since", "left_out", "returns")
        return {name: getattr(self, name) for name in names}


def spike_limit(usual: Sequence[float], deviations: float, window: int) -> float:
    """Where a spike begins: so many robust deviations above the median; at infinity while little is known."""
    if deviations == 0 or len(usual) < window // 4:
        return math.inf
    median = statistics.median(usual)
    spread = DEVIATION * statistics.median(abs(value - median) for value in usual)
    return median + deviations * max(spread, LEAST_SPREAD * abs(median))
