"""Test two validation losses on the same windows: window by window, or by their standard errors alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.stats.outcome import NotTested, Outcome, by_sign
from regpt.stats.paired import PairedLossTest, paired_t_test, students_t_threshold
from regpt.tracking.journal import ValidationRecord
from regpt.tracking.run import Run
from regpt.tracking.window_losses import BLOCK_BYTES, read_text_losses, read_window_losses, text_losses_file

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

    @property
    def text_losses_file(self) -> Path | None:
        return text_losses_file(self.window_losses_file) if self.window_losses_file else None

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


@dataclass(frozen=True)
class PairedTextTest:
    """Paired t-test of two models' losses on the same blocks of text, in bits per byte; their tokenizers may differ."""

    blocks: int  # of BLOCK_BYTES bytes
    means: tuple[float, float]  # bits per byte of each model
    test: PairedLossTest  # over the blocks, in place of windows

    @property
    def text_bytes(self) -> int:
        return self.blocks * BLOCK_BYTES

    @property
    def outcome(self) -> Outcome:
        return self.test.outcome


def text_test(ours: MeasuredLoss, theirs: MeasuredLoss) -> PairedTextTest | None:
    """Return the test on the text that both models were validated on, each block once, in the order of the first.

    None where the losses of text are not kept or not readable, or where too little text is the same.
    """
    pairs = common_text_losses([ours, theirs])
    if pairs is None:
        return None
    test = paired_t_test(pairs[0], pairs[1])
    if test is None:
        return None
    return PairedTextTest(pairs.shape[1], (float(pairs[0].mean()), float(pairs[1].mean())), test)


def common_text_losses(losses: Sequence[MeasuredLoss]) -> NDArray[np.float64] | None:
    """Return the bits per byte of each block of text that all models were validated on.  (models, blocks)

    Each block is there once, in the order of the first model. None where the losses of text are not kept or readable.
    """
    found: list[dict[int, float]] = []
    for loss in losses:
        if loss.text_losses_file is None:
            return None
        try:
            read = read_text_losses(loss.text_losses_file)
        except DataError:
            return None
        found.append(dict(zip(read["text"].tolist(), read["nats"].tolist(), strict=True)))
    common = [text for text in found[0] if all(text in other for other in found[1:])]
    scale = 1 / math.log(2) / BLOCK_BYTES
    return np.array([[own[text] * scale for text in common] for own in found]).reshape(len(found), -1)


def bits_of_same_text(losses: Sequence[MeasuredLoss]) -> list[float] | None:
    """Return each model's mean bits per byte on the text that all were validated on; None without enough of it."""
    common = common_text_losses(losses)
    if common is None or common.shape[1] < MIN_WINDOWS:
        return None
    return [float(mean) for mean in common.mean(axis=1)]
