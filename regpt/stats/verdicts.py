"""The verdict on two runs for each quantity, as values; regpt/stats/describe.py words them."""

from dataclasses import dataclass

from regpt.base.errors import DataError
from regpt.recipe.aliases import current_device
from regpt.stats.losses import (
    ErrorBoundsTest,
    MeasuredLoss,
    PairedTextTest,
    error_bounds_test,
    last_loss,
    text_test,
    window_test,
)
from regpt.stats.outcome import NotTested, Outcome, Quantity
from regpt.stats.paired import PairedAccuracyTest, PairedLossTest, mcnemar_test
from regpt.stats.seeds import SeedsTest
from regpt.stats.throughput import ThroughputTest, compare_throughput
from regpt.tracking.events import Started
from regpt.tracking.predictions import Predictions
from regpt.tracking.run import MachineLoad, Run, primary_accuracy

Test = PairedLossTest | PairedTextTest | ErrorBoundsTest | PairedAccuracyTest | ThroughputTest | SeedsTest


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A quantity of one run compared with that of another."""

    quantity: Quantity
    outcome: Outcome
    ours: float | None  # None: not measured
    theirs: float | None
    test: Test | None = None  # the type says which test, its fields hold its numbers
    reason: NotTested | None = None  # set where the outcome is NOT_TESTED
    problem: str = ""  # what the predictions' file lacks, where that is the reason

    @property
    def difference(self) -> float | None:
        """Ours minus theirs; None where one is missing."""
        return None if self.ours is None or self.theirs is None else self.ours - self.theirs

    @property
    def ratio(self) -> float | None:
        """Ours divided by theirs; None where one is missing."""
        return self.ours / self.theirs if self.ours is not None and self.theirs else None


def verdicts(run: Run, other: Run) -> list[Verdict]:
    """The verdicts on validation loss, bits per byte where it is needed, HellaSwag and speed, in this order."""
    own, others = run.environment.data.tokenizer, other.environment.data.tokenizer
    bits = compare_bits_per_byte(last_loss(run), last_loss(other)) if own != others else None
    loss = [loss_verdict(run, other), *([bits] if bits else [])]
    return [*loss, hellaswag_verdict(run, other), speed_verdict(run, other)]


def same_windows(run: Run, other: Run) -> bool:
    """Whether the last validation losses of two runs were measured on the same windows of the same data."""
    ours, theirs = last_loss(run), last_loss(other)
    return ours is not None and theirs is not None and ours.same_windows(theirs)


def loss_verdict(run: Run, other: Run) -> Verdict:
    """Compare the last validation losses of two runs."""
    return compare_losses(last_loss(run), last_loss(other))


def compare_losses(ours: MeasuredLoss | None, theirs: MeasuredLoss | None) -> Verdict:
    """Compare two losses window by window where both kept them, else by their standard errors."""
    test: PairedLossTest | ErrorBoundsTest | None = None
    reason = None
    if ours is None or theirs is None:
        reason = NotTested.NOT_MEASURED
    elif not ours.same_windows(theirs):
        reason = NotTested.OTHER_DATA
    else:
        test = window_test(ours, theirs)
        if test is None:
            test, reason = error_bounds_test(
                (ours.loss, ours.standard_error), (theirs.loss, theirs.standard_error), ours.windows
            )
    return Verdict(
        quantity=Quantity.VALIDATION_LOSS,
        outcome=test.outcome if test else Outcome.NOT_TESTED,
        ours=ours.loss if ours else None,
        theirs=theirs.loss if theirs else None,
        test=test,
        reason=reason,
    )


def compare_bits_per_byte(ours: MeasuredLoss | None, theirs: MeasuredLoss | None) -> Verdict | None:
    """Compare two models with different tokenizers on the text that both were validated on.

    None where too little text is the same, or its losses are not kept.
    """
    test = text_test(ours, theirs) if ours and theirs else None
    if test is None:
        return None
    return Verdict(
        quantity=Quantity.BITS_PER_BYTE, outcome=test.outcome, ours=test.means[0], theirs=test.means[1], test=test
    )


def hellaswag_verdict(run: Run, other: Run) -> Verdict:
    """Compare the last HellaSwag predictions of two runs by McNemar's test."""
    test, reason, problem = None, None, ""
    outcome = Outcome.NOT_TESTED
    if not (run.hellaswag and other.hellaswag):
        reason = NotTested.NOT_MEASURED
    elif run.hellaswag[-1].digest != other.hellaswag[-1].digest:
        reason = NotTested.OTHER_ITEMS
    else:
        try:
            first, second = run.predictions(run.hellaswag[-1]), other.predictions(other.hellaswag[-1])
            test = compare_predictions(first, second)
            outcome = test.outcome
            reason = NotTested.NEAR_GUESSING if test.is_near_guessing else None
        except DataError as error:
            reason, problem = NotTested.UNREADABLE_PREDICTIONS, error.problem
    return Verdict(
        quantity=Quantity.HELLASWAG,
        outcome=outcome,
        ours=primary_accuracy(run.hellaswag[-1])[0] if run.hellaswag else None,
        theirs=primary_accuracy(other.hellaswag[-1])[0] if other.hellaswag else None,
        test=test,
        reason=reason,
        problem=problem,
    )


def compare_predictions(ours: Predictions, theirs: Predictions) -> PairedAccuracyTest:
    """Test the predictions of two models for the same items, by the task's primary metric."""
    metric = ours.metrics[0]
    return mcnemar_test(ours.right(metric), theirs.right(metric), ours.guessing)


def speed_verdict(run: Run, other: Run) -> Verdict:
    """Compare the speed of two runs over all steps, in groups of neighbouring steps."""
    test, reason = None, None
    if device_counts(run) != device_counts(other) or len(device_counts(run)) != 1:
        reason = NotTested.OTHER_DEVICES
    else:
        test = compare_throughput(run, other)
        reason = speed_problem(run, other, test)
    return Verdict(
        quantity=Quantity.SPEED,
        outcome=test.outcome if test and reason is None else Outcome.NOT_TESTED,
        ours=run.tokens_per_second if run.history.steps else None,
        theirs=other.tokens_per_second if other.history.steps else None,
        test=test,
        reason=reason,
    )


def speed_problem(run: Run, other: Run, test: ThroughputTest | None) -> NotTested | None:
    """Return why the speeds of two runs on the same devices show nothing; None where a test decides."""
    if test is None:
        return NotTested.TOO_FEW_STEPS
    if MachineLoad.BUSY in (run.load, other.load) and not (run.has_known_speed and other.has_known_speed):
        return NotTested.BUSY_MACHINE
    if not (run.has_known_speed and other.has_known_speed):
        return NotTested.UNKNOWN_LOAD
    return NotTested.UNEVEN_SPEED if test.is_uneven else None


def device_counts(run: Run) -> set[tuple[str, int]]:
    """The (device, ranks) of each attempt."""
    found = {(current_device(start.device), start.ranks) for start in run.history.details(Started)}
    return found or {(run.device_name, run.environment.ranks)}
