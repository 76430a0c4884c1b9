"""What tests of two models found, in short sentences without the tests' names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from regpt.base.format import percent
from regpt.fairness.claims import AccuracyTest, Claim, PairedTests
from regpt.fairness.models import task_title
from regpt.fairness.wording import caveats_text, limits_text
from regpt.rendering.markdown import escaped
from regpt.stats.describe import OUTCOME_TEXT, REASON_TEXT, values_text
from regpt.stats.outcome import NotTested, Quantity
from regpt.stats.verdicts import Verdict

# The subject of a sentence about the first model.
SUBJECTS = {
    Quantity.VALIDATION_LOSS: "its validation loss is",
    Quantity.BITS_PER_BYTE: "its bits per byte of the same text are",
    Quantity.HELLASWAG: "its HellaSwag accuracy is",
    Quantity.SPEED: "its steps were",
}


@dataclass(frozen=True)
class Finding:
    """One quantity of two models. Text is escaped for Markdown."""

    text: str  # a sentence about a significant difference; otherwise the quantity with both values
    is_difference: bool = False
    reason: str = ""  # what forbids a claim; empty where one is made


def findings_of_tests(tests: PairedTests) -> list[Finding]:
    """Return the findings on two models: loss, accuracies and speed, as far as they were tested."""
    if tests.identity:
        return [Finding("the runs are identical", is_difference=True)]
    return [
        *([finding_of(tests.loss)] if tests.loss and is_measured(tests.loss) else []),
        *([finding_of(tests.bits_per_byte)] if tests.bits_per_byte else []),
        *(finding_on_accuracy(found) for found in tests.accuracies),
        *([finding_of(tests.speed)] if tests.speed else []),
    ]


def is_measured(claim: Claim) -> bool:
    """Whether both models have a value."""
    return claim.verdict.reason is not NotTested.NOT_MEASURED


def finding_of(claim: Claim) -> Finding:
    verdict = claim.verdict
    if not claim.is_about_recipes:
        return Finding(quantity_text(verdict), reason=escaped(reason_text(claim)))
    if not claim.is_difference:
        return Finding(quantity_text(verdict))
    words = f"{SUBJECTS[verdict.quantity]} {OUTCOME_TEXT[verdict.outcome]}, {values_text(verdict)}"
    return Finding(words + limits_text(claim.limits), is_difference=True)


def finding_on_accuracy(found: AccuracyTest) -> Finding:
    ours, theirs = (percent(right / found.test.items) for right in found.test.right)
    task = escaped(task_title(found.first.task))
    quantity = f"{task} accuracy ({ours} vs {theirs})"
    if found.test.is_near_guessing:
        return Finding(quantity, reason=REASON_TEXT[NotTested.NEAR_GUESSING])
    if found.caveats:
        return Finding(quantity, reason=escaped(caveats_text(found.caveats)))
    if not found.outcome.is_difference:
        return Finding(quantity)
    words = f"its {task} accuracy is {OUTCOME_TEXT[found.outcome]}, {ours} vs {theirs}{limits_text(found.limits)}"
    return Finding(words, is_difference=True)


def sentences_of(findings: Sequence[Finding]) -> Iterator[str]:
    """Word the differences, then what does not differ significantly, then figures without a claim."""
    yield from (one.text for one in findings if one.is_difference)
    equal = [one.text for one in findings if not one.is_difference and not one.reason]
    if equal:
        yield f"not significantly different: {listed(equal)}"
    for reason in dict.fromkeys(one.reason for one in findings if one.reason):  # each in one sentence
        quantities = [one.text for one in findings if one.reason == reason]
        yield f"no claim about the recipes from {listed(quantities)}: {reason}"
    if not findings:
        yield "nothing was measured for both"


def reason_text(claim: Claim) -> str:
    """Name what forbids a claim."""
    if claim.caveats:
        return caveats_text(claim.caveats)
    verdict = claim.verdict
    return verdict.problem or (REASON_TEXT[verdict.reason] if verdict.reason else OUTCOME_TEXT[verdict.outcome])


def quantity_text(verdict: Verdict) -> str:
    """Name a quantity with both values, if both were measured: 'speed (100 vs 64 tokens/s)'."""
    return f"{verdict.quantity} ({values_text(verdict)})" if verdict.difference is not None else str(verdict.quantity)


def listed(names: Sequence[str]) -> str:
    """Join names as in 'a, b and c'."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
