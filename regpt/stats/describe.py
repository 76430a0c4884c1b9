"""Word verdicts, tests and identical runs, for reports, comparisons and terminals."""

import math

from regpt.base.format import NO_VALUE, percent, with_error
from regpt.stats.identical import Identity
from regpt.stats.losses import ErrorBoundsTest, PairedTextTest
from regpt.stats.outcome import NotTested, Outcome, Quantity
from regpt.stats.paired import PairedAccuracyTest, PairedLossTest
from regpt.stats.seeds import SeedsTest
from regpt.stats.throughput import MIN_TESTED_STEPS, Throughput, ThroughputTest
from regpt.stats.verdicts import Test, Verdict

OUTCOME_TEXT = {
    Outcome.LOWER: "lower",
    Outcome.HIGHER: "higher",
    Outcome.FASTER: "faster",
    Outcome.SLOWER: "slower",
    Outcome.INDISTINGUISHABLE: "not significantly different",
    Outcome.NOT_TESTED: "not tested",
}
REASON_TEXT = {
    NotTested.NOT_MEASURED: "not measured in both runs",
    NotTested.OTHER_DATA: "measured on other windows or other data",
    NotTested.OTHER_ITEMS: "scored on other items",
    NotTested.OTHER_DEVICES: "not on the same kind and number of devices",
    NotTested.NOT_FINITE: "a loss is NaN or infinite",
    NotTested.NO_STANDARD_ERRORS: "no standard errors are recorded",
    NotTested.TOO_FEW_WINDOWS: "too few windows",
    NotTested.TOO_FEW_SEEDS: "fewer than two seeds on one side, so the error over seeds is unknown",
    NotTested.TOO_FEW_STEPS: f"fewer than {MIN_TESTED_STEPS} steps, and less than a twofold difference",
    NotTested.BUSY_MACHINE: "other programs used the processors during a run",
    NotTested.UNKNOWN_LOAD: "what other programs did during the runs is not recorded",
    NotTested.UNEVEN_SPEED: "the speed of a run was uneven, as under other work",
    NotTested.UNKNOWN_CORRELATION: "the losses of single windows are not kept, and the two standard errors alone are"
    " not enough",
    NotTested.NEAR_GUESSING: "neither run is significantly better than guessing on these items",
    NotTested.UNREADABLE_PREDICTIONS: "the predictions cannot be read",
}


def describe_test(verdict: Verdict, other: str) -> str:
    """Describe the test with its numbers, or why it is missing."""
    if verdict.test is None or verdict.reason:
        numbers = f"; {long_text(verdict.test, other)}" if verdict.test else ""
        return (verdict.problem or (REASON_TEXT[verdict.reason] if verdict.reason else "")) + numbers
    return long_text(verdict.test, other)


def long_text(test: Test, other: str) -> str:
    match test:
        case PairedLossTest():
            difference = with_error(test.difference, test.standard_error, sign=True)
            return (
                f"difference {difference} over the same {test.windows:,} windows,"
                f" lower on {test.windows_lower:,} of them; paired t-test over {test.groups} groups of neighbouring"
                f" windows, threshold {test.threshold:.4f}"
            )
        case PairedTextTest():
            difference = with_error(test.test.difference, test.test.standard_error, sign=True)
            return (
                f"difference {difference} over the same {test.text_bytes:,} bytes of validation text, lower on"
                f" {test.test.windows_lower:,} of {test.blocks:,} blocks; paired t-test over {test.test.groups} groups"
                f" of neighbouring blocks, threshold {test.test.threshold:.4f}"
            )
        case ErrorBoundsTest():
            return f"difference {test.difference:+.4f} over the same {test.n:,} windows; {bounds_text(test)}"
        case PairedAccuracyTest():
            return (
                f"McNemar's p = {test.p_value:.2g} over {test.items:,} items; only this run was right on"
                f" {test.only[0]:,}, only {other} on {test.only[1]:,}"
            )
        case ThroughputTest():
            text = throughput_text(test)
            return text if mentions_ranges(test) else f"{text}; {ranges_text(test)}"
        case SeedsTest():
            return seeds_test_text(test)


def seeds_test_text(test: SeedsTest) -> str:
    name = "paired t-test" if test.is_paired else "Welch's t-test"
    found, p_value = test.difference, test.difference.p_value
    adjusted = f", adjusted for several groups: {test.adjusted_p_value:.2g}" if test.adjusted_p_value != p_value else ""
    return (
        f"difference {found.mean:+.4f}; {name} over {seeds_text(test)}, p = {p_value:.2g}{adjusted};"
        f" a difference of about {found.smallest_detectable:.4f} would be found with 80 % power"
    )


def seeds_text(test: SeedsTest) -> str:
    ours, theirs = test.seeds
    return f"{ours} seeds" if ours == theirs else f"{ours} and {theirs} seeds"


def bounds_text(test: ErrorBoundsTest) -> str:
    """Write the threshold of a test that knows standard errors only; their correlation decides where it is."""
    smaller, larger = test.thresholds
    size = {
        Outcome.INDISTINGUISHABLE: f"at least {smaller:.4f}",
        Outcome.NOT_TESTED: f"between {smaller:.4f} and {larger:.4f}",
    }.get(test.outcome, f"at most {larger:.4f}")
    return f"the threshold is {size} for standard errors of {errors_text(test)}"


def errors_text(test: ErrorBoundsTest) -> str:
    return f"{test.errors[0]:.4f} and {test.errors[1]:.4f}"


def throughput_text(test: ThroughputTest) -> str:
    uneven = f"; {ranges_text(test)}, which suggests other work on the machine" if mentions_ranges(test) else ""
    if test.is_twofold and not test.is_significant:
        return f"a difference of at least twofold at the median step{uneven}"
    counts = dict.fromkeys(len(one.groups) for one in (test.ours, test.theirs))
    needed = math.exp(math.copysign(test.threshold, test.log_ratio))
    return (
        f"ratio {math.exp(test.log_ratio):.3g} over {' and '.join(map(str, counts))} groups of neighbouring steps;"
        f" Welch's t-test needs {needed:.3g}{uneven}"
    )


def mentions_ranges(test: ThroughputTest) -> bool:
    return test.is_uneven or (test.is_twofold and not test.is_significant)


def ranges_text(test: ThroughputTest) -> str:
    """Word the range of the groups' speeds in both runs."""

    def of(one: Throughput) -> str:
        return f"{min(one.groups):,.0f} to {max(one.groups):,.0f}"

    return f"groups of steps ran at {of(test.ours)} tokens/s here and {of(test.theirs)} there"


def accuracy_test_text(test: PairedAccuracyTest, first: str, other: str, p_value: float) -> str:
    """Describe McNemar's test of two models, named `first` and `other`; `p_value` is adjusted for several tasks."""
    adjusted = f", adjusted for several tasks: {p_value:.2g}" if p_value != test.p_value else ""
    low, high = test.interval()
    accuracy = [right / test.items for right in test.right]
    return (
        f"McNemar's p = {test.p_value:.2g}{adjusted} over {test.items:,} items."
        f" {first}: {accuracy[0]:.4f}; {other}: {accuracy[1]:.4f}; difference {test.difference:+.4f},"
        f" 95 % bootstrap interval {low:+.4f} to {high:+.4f}."
        f" Items that only the first got right: {test.only[0]:,}; only the second: {test.only[1]:,}."
    )


def value_text(quantity: Quantity, value: float | None) -> str:
    """Write a value for a table's cell."""
    if value is None:
        return NO_VALUE
    match quantity:
        case Quantity.VALIDATION_LOSS | Quantity.BITS_PER_BYTE:
            return f"{value:.4f}"
        case Quantity.HELLASWAG:
            return f"{value:.4f} ({percent(value)})"
        case Quantity.SPEED:
            return f"{value:,.0f} tokens/s"


def difference_text(verdict: Verdict) -> str:
    """Write the difference for a table's cell; a ratio for speeds."""
    if verdict.reason is NotTested.OTHER_DATA or verdict.difference is None or verdict.ratio is None:
        return NO_VALUE
    match verdict.quantity:
        case Quantity.VALIDATION_LOSS | Quantity.BITS_PER_BYTE:
            return f"{verdict.difference:+.4f}"
        case Quantity.HELLASWAG:
            return NO_VALUE if verdict.test is None else f"{100 * verdict.difference:+.1f} percentage points"
        case Quantity.SPEED:
            return NO_VALUE if verdict.reason is NotTested.OTHER_DEVICES else f"× {verdict.ratio:.3g}"


def values_text(verdict: Verdict) -> str:
    """Write both values for a sentence: '4.5344 vs 4.7962', '1,027 vs 2,730 tokens/s'."""
    if verdict.ours is None or verdict.theirs is None:
        return NO_VALUE
    match verdict.quantity:
        case Quantity.VALIDATION_LOSS | Quantity.BITS_PER_BYTE:
            values = f"{verdict.ours:.4f} vs {verdict.theirs:.4f}"
            return f"{values}{interval_text(verdict.test)}" if isinstance(verdict.test, SeedsTest) else values
        case Quantity.HELLASWAG:
            return f"{percent(verdict.ours)} vs {percent(verdict.theirs)}"
        case Quantity.SPEED:
            return f"{verdict.ours:,.0f} vs {verdict.theirs:,.0f} tokens/s"


def interval_text(test: SeedsTest) -> str:
    low, high = test.difference.interval
    return f" over {seeds_text(test)}, 95 % interval of the difference {low:+.4f} to {high:+.4f}"


def identity_text(identity: Identity) -> str:
    counts = ((identity.training_losses, "training"), (identity.validation_losses, "validation"))
    recorded = " and ".join(f"{n:,} {kind} loss{'es' if n != 1 else ''}" for n, kind in counts if n)
    times = "so do the step times: one is a copy of the other" if identity.is_copy else "the step times do not"
    return f"same recipe, same data, and all recorded losses ({recorded}) agree to the last digit; {times}"
