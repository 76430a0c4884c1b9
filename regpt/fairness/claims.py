"""Significance tests of two models, as values, and what they allow to claim about the two recipes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from regpt.fairness.caveats import Caveat
from regpt.fairness.checks import find_caveats
from regpt.fairness.loading import load_run
from regpt.fairness.models import ComparedModel, TaskScore, align_on_shared_data, all_tasks
from regpt.recipe.differences import result_differences
from regpt.stats.identical import Identity, identical
from regpt.stats.outcome import Outcome, Quantity
from regpt.stats.paired import PairedAccuracyTest, holm_adjusted
from regpt.stats.verdicts import (
    Verdict,
    compare_bits_per_byte,
    compare_losses,
    compare_predictions,
    speed_verdict,
    verdicts,
)
from regpt.tasks.catalog import Metric
from regpt.tracking.run import Run


class Limit(StrEnum):
    """What one run of each recipe cannot show, even in a fair comparison."""

    ONE_SEED = "one seed"
    ONE_RATE = "one learning rate"  # each recipe at one rate, which may suit one of them better


TUNED = ("optimizer.max_lr", "optimizer.min_lr", "optimizer.warmup_steps")  # the settings of a learning rate


@dataclass(frozen=True)
class Claim:
    """A verdict on one quantity, the reasons that forbid a claim about the recipes, and the limits of that claim."""

    verdict: Verdict
    caveats: tuple[Caveat, ...] = ()  # that can change the verdict
    limits: tuple[Limit, ...] = ()

    @property
    def is_about_recipes(self) -> bool:
        """Whether the verdict may be read as one on the recipes: tested, and nothing but the recipes differs."""
        return self.verdict.outcome is not Outcome.NOT_TESTED and not self.caveats

    @property
    def is_difference(self) -> bool:
        """Whether a significant difference may be claimed."""
        return self.is_about_recipes and self.verdict.outcome.is_difference


def claims_on_runs(run: Run, other: Run) -> list[Claim]:
    """Return what may be claimed about two runs that are not identical: loss, HellaSwag accuracy and speed."""
    first, second = align_on_shared_data([load_run(run, run.id), load_run(other, other.id)])
    caveats = find_caveats([first, second])
    return [claim_on(verdict, first, second, caveats) for verdict in verdicts(run, other)]


def claim_on(verdict: Verdict, first: ComparedModel, other: ComparedModel, caveats: Sequence[Caveat]) -> Claim:
    """Add to a verdict what can change it, and its limits."""
    return Claim(
        verdict,
        tuple(caveat for caveat in caveats if caveat.kind.can_change(verdict.quantity)),
        () if verdict.quantity is Quantity.SPEED else tuple(limits_of(first, other)),
    )


def limits_of(first: ComparedModel, other: ComparedModel) -> Iterator[Limit]:
    """Return the limits of a comparison of two runs."""
    if not (first.run and other.run):
        return
    yield Limit.ONE_SEED
    if is_one_rate_each(first, other):
        yield Limit.ONE_RATE


def is_one_rate_each(first: ComparedModel, other: ComparedModel) -> bool:
    """Whether two runs differ in model or optimizer, for which one learning rate may suit one of them better."""
    if not (first.run and other.run):
        return False
    changed = {name for name, _, _ in result_differences(first.run.recipe, other.run.recipe)}
    return any(name.startswith(("model.", "optimizer.")) for name in changed.difference(TUNED))


@dataclass(frozen=True)
class AccuracyTest:
    """McNemar's test of two scores on the same items, by the task's primary metric.

    The p-value is adjusted for all tasks that two models are tested on.
    """

    first: TaskScore
    other: TaskScore
    metric: Metric
    test: PairedAccuracyTest
    p_value: float  # adjusted (Holm)
    caveats: tuple[Caveat, ...] = ()  # that can change the verdict
    limits: tuple[Limit, ...] = ()

    @property
    def outcome(self) -> Outcome:
        return self.test.outcome_at(self.p_value)

    @property
    def is_difference(self) -> bool:
        """Whether a significant difference may be claimed."""
        return self.outcome.is_difference and not self.caveats


@dataclass(frozen=True, kw_only=True)
class PairedTests:
    """The tests of one pair of models. None: not applicable."""

    first: ComparedModel
    other: ComparedModel
    identity: Identity | None
    loss: Claim | None
    bits_per_byte: Claim | None = None  # of the same text, where the losses are of different tokens
    token_ratio: float | None  # tokens of the first divided by those of the other, if they differ
    speed: Claim | None
    accuracies: list[AccuracyTest]
    untested_tasks: list[str]  # not scored on the same items


def paired_tests(first: ComparedModel, other: ComparedModel) -> PairedTests:
    """Run all tests that apply to two models."""
    identity = identical_runs(first, other)
    caveats = [] if identity else find_caveats([first, other])
    tests = [test for task in all_tasks([first, other]) if (test := accuracy_test(first, other, task, caveats))]
    p_values = holm_adjusted([test.p_value for test in tests])
    tested = [found.first.task for found in tests]
    tokens_differ = first.tokens is not None and other.tokens and first.tokens != other.tokens
    loss = None if identity or not (first.loss and other.loss) else compare_losses(first.loss, other.loss)
    bits = compare_bits_per_byte(first.loss, other.loss) if first.tokenizer != other.tokenizer else None
    speed = None if identity else speed_of_runs(first, other)
    return PairedTests(
        first=first,
        other=other,
        identity=identity,
        loss=claim_on(loss, first, other, caveats) if loss else None,
        bits_per_byte=claim_on(bits, first, other, caveats) if bits else None,
        token_ratio=first.tokens / other.tokens
        if tokens_differ and first.tokens is not None and other.tokens
        else None,
        speed=claim_on(speed, first, other, caveats) if speed else None,
        accuracies=[replace(test, p_value=p_value) for test, p_value in zip(tests, p_values, strict=True)],
        untested_tasks=[task for task in all_tasks([first, other]) if task not in tested],
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


def accuracy_test(
    first: ComparedModel, other: ComparedModel, task: str, caveats: Sequence[Caveat]
) -> AccuracyTest | None:
    """Test the scores on the largest common set of items; None if the models share none."""
    pairs = [
        (ours, theirs, ours.predictions, theirs.predictions)
        for ours in first.scores_on(task)
        for theirs in other.scores_on(task)
        if ours.predictions and theirs.predictions and (ours.digest, ours.n_items) == (theirs.digest, theirs.n_items)
    ]
    if not pairs:
        return None
    ours, theirs, our_predictions, their_predictions = max(pairs, key=lambda pair: pair[0].n_items)
    test = compare_predictions(our_predictions, their_predictions)
    can_change = [one for one in caveats if one.kind.can_change(Quantity.HELLASWAG) and one.task in ("", task)]
    metric, limits = our_predictions.metrics[0], tuple(limits_of(first, other))
    return AccuracyTest(ours, theirs, metric, test, test.p_value, tuple(can_change), limits)
