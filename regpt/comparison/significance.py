"""Significance tests of two models: identical runs, losses, speeds and scores, as values."""

from dataclasses import dataclass

from regpt.comparison.models import ComparedModel, TaskScore, all_tasks
from regpt.stats.identical import Identity, identical
from regpt.stats.outcome import Outcome
from regpt.stats.paired import PairedAccuracyTest, mcnemar_test
from regpt.stats.verdicts import Verdict, compare_losses, speed_verdict
from regpt.tasks.catalog import Metric


@dataclass(frozen=True)
class AccuracyTest:
    """McNemar's test of two scores on the same items."""

    first: TaskScore
    other: TaskScore
    metric: Metric
    test: PairedAccuracyTest


@dataclass(frozen=True, kw_only=True)
class PairedTests:
    """The tests of one pair of models. None: not applicable."""

    first: ComparedModel
    other: ComparedModel
    identity: Identity | None
    loss: Verdict | None
    token_ratio: float | None  # tokens of the first divided by those of the other, if they differ
    speed: Verdict | None
    accuracies: list[AccuracyTest]
    untested_tasks: list[str]  # not scored on the same items


def paired_tests(first: ComparedModel, other: ComparedModel) -> PairedTests:
    """Run all tests that apply to two models."""
    identity = identical_runs(first, other)
    accuracies, untested = [], []
    for task in all_tasks([first, other]):
        tests = accuracy_tests(first, other, task)
        accuracies += tests
        untested += [] if tests else [task]
    tokens_differ = first.tokens is not None and other.tokens and first.tokens != other.tokens
    return PairedTests(
        first=first,
        other=other,
        identity=identity,
        loss=None if identity or not (first.loss and other.loss) else compare_losses(first.loss, other.loss),
        token_ratio=first.tokens / other.tokens
        if tokens_differ and first.tokens is not None and other.tokens
        else None,
        speed=None if identity else speed_of_runs(first, other),
        accuracies=accuracies,
        untested_tasks=untested,
    )


def identical_runs(first: ComparedModel, other: ComparedModel) -> Identity | None:
    """Compare two whole runs; None if they differ or one is not a run."""
    if not (first.run and other.run and first.is_run and other.is_run):
        return None
    return identical(first.run, other.run)


def speed_of_runs(first: ComparedModel, other: ComparedModel) -> Verdict | None:
    """Compare the speeds of two whole runs; None if they were not tested."""
    if not (first.run and other.run and first.is_run and other.is_run):
        return None
    verdict = speed_verdict(first.run, other.run)
    return None if verdict.outcome is Outcome.NOT_TESTED else verdict


def accuracy_tests(first: ComparedModel, other: ComparedModel, task: str) -> list[AccuracyTest]:
    """Test the scores on the largest common set of items, by each metric."""
    pairs = [
        (ours, theirs, ours.predictions, theirs.predictions)
        for ours in first.scores_on(task)
        for theirs in other.scores_on(task)
        if ours.predictions and theirs.predictions and (ours.digest, ours.n_items) == (theirs.digest, theirs.n_items)
    ]
    if not pairs:
        return []
    ours, theirs, our_predictions, their_predictions = max(pairs, key=lambda pair: pair[0].n_items)
    return [
        AccuracyTest(ours, theirs, metric, mcnemar_test(our_predictions.right(metric), their_predictions.right(metric)))
        for metric in our_predictions.metrics
    ]
