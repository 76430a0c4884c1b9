"""Test two validation losses on the same windows: window by window, or by their standard errors alone."""

import math
from dataclasses import dataclass
from pathlib import Path

from regpt.base.errors import DataError
from regpt.stats.outcome import NotTested, Outcome, by_sign
from regpt.stats.paired import PairedLossTest, paired_t_test, students_t_threshold
from regpt.tracking.journal import ValidationRecord
from regpt.tracking.run import Run
from regpt.tracking.window_losses import read_window_losses

MIN_WINDOWS = 4  # below, Student's t has too few degrees of freedom for its approximation


@dataclass(frozen=True)
class MeasuredLoss:
    """A validation loss and the windows it was measured on."""

    loss: float  # nats per token
    standard_error: float  # 0: unknown
    bits_per_byte: float  # 0: unknown
    data: str  # digest of the dataset; empty: unknown
    block_size: int
    windows: int
    step: int | None = None  # completed steps of the model
    window_losses_file: Path | None = None  # the loss of each window

    @property
    def measured_on(self) -> tuple[str, int, int]:
        """Two losses can be compared where this is equal."""
        return self.data, self.block_size, self.windows

    def same_windows(self, other: "MeasuredLoss") -> bool:
        return bool(self.data) and self.measured_on == other.measured_on


def loss_at(run: Run, record: ValidationRecord) -> MeasuredLoss:
    """Return the loss that a validation of a run measured."""
    return MeasuredLoss(
        record.loss,
        record.standard_error,
        record.bits_per_byte,
        run.environment.data.digest,
        run.recipe.model.block_size,
        record.windows,
        record.step,
        run.path / record.path if record.path else None,
    )


def last_loss(run: Run) -> MeasuredLoss | None:
    return loss_at(run, run.history.validations[-1]) if run.history.validations else None


@dataclass(frozen=True)
class ErrorBoundsTest:
    """Test of two means over the same n windows (or items), of which only the standard errors are known.

    The two errors are not independent: a window that is hard for one model is hard for the other. Their correlation is
    not recorded, but the standard error of the difference lies between |e1 - e2| and e1 + e2 for every correlation
    (triangle inequality, also for sample standard deviations). So a difference above the larger threshold is
    significant in a paired t-test over the windows, one below the smaller is not, and between them nothing is claimed.
    Adding the errors as squares would assume independence, which is wrong in both directions: it calls differences
    indistinguishable that a paired test would find, and it is no upper bound.
    """

    n: int
    difference: float  # the first minus the second
    errors: tuple[float, float]

    @property
    def error_bounds(self) -> tuple[float, float]:
        """The smallest and the largest possible standard error of the difference."""
        return abs(self.errors[0] - self.errors[1]), sum(self.errors)

    @property
    def thresholds(self) -> tuple[float, float]:
        """The smallest significant difference under each of the two bounds, two-sided at 5 %."""
        t = students_t_threshold(self.n - 1)
        return t * self.error_bounds[0], t * self.error_bounds[1]

    @property
    def outcome(self) -> Outcome:
        smaller, larger = self.thresholds
        if smaller < abs(self.difference) <= larger:
            return Outcome.NOT_TESTED
        return by_sign(self.difference, abs(self.difference) > larger)


def error_bounds_test(
    ours: tuple[float, float], theirs: tuple[float, float], n: int
) -> tuple[ErrorBoundsTest | None, NotTested | None]:
    """Test two (mean, standard error) pairs over the same n windows; returns the test, and why it decides nothing."""
    if not all(map(math.isfinite, (*ours, *theirs))):
        return None, NotTested.NOT_FINITE
    if not (ours[1] > 0 and theirs[1] > 0):
        return None, NotTested.NO_STANDARD_ERRORS
    if n < MIN_WINDOWS:
        return None, NotTested.TOO_FEW_WINDOWS
    test = ErrorBoundsTest(n, ours[0] - theirs[0], (ours[1], theirs[1]))
    return test, NotTested.UNKNOWN_CORRELATION if test.outcome is Outcome.NOT_TESTED else None


def window_test(ours: MeasuredLoss, theirs: MeasuredLoss) -> PairedLossTest | None:
    """Return the paired t-test; None where the windows' losses are not kept, not readable, too few or not finite."""
    if ours.window_losses_file is None or theirs.window_losses_file is None:
        return None
    try:
        return paired_t_test(
            read_window_losses(ours.window_losses_file, ours.windows, ours.loss),
            read_window_losses(theirs.window_losses_file, theirs.windows, theirs.loss),
        )
    except DataError:
        return None
