"""What may be said in words of two runs: lower, higher, faster, or not told apart; each with what carries it."""

import math
from dataclasses import dataclass

from regpt.base.errors import DataError
from regpt.stats.paired import paired, paired_losses, student
from regpt.stats.throughput import FEWEST_TESTED, compare_throughput
from regpt.tracking.events import Started
from regpt.tracking.run import Run, headline

ALIKE = "cannot be told apart"
UNTESTED = "not tested"


@dataclass(frozen=True)
class Verdict:
    """A figure of this run beside that of another, and what the two say."""

    what: str  # the record's name of the row
    figures: tuple[str, str]  # the other's, then this run's
    difference: str
    word: str  # 'lower', 'higher', 'faster', 'slower'; ALIKE; or UNTESTED
    because: str  # the test, or why there is none
    in_short: str = ""  # the test in a few words

    @property
    def words(self) -> str:
        return f"{self.word}: {self.because}"


def verdicts(run: Run, other: Run) -> list[Verdict]:
    """In the order of the seed record."""
    return [hellaswag_verdict(run, other), loss_verdict(run, other), speed_verdict(run, other)]


def comparable(run: Run, other: Run) -> bool:
    """Whether two validation losses were taken on the same windows of the same data."""
    if not (run.history.validations and other.history.validations):
        return False
    seen = [
        (r.environment.data.digest, r.recipe.model.block_size, r.history.validations[-1].windows) for r in (run, other)
    ]
    return seen[0] == seen[1]


def loss_verdict(run: Run, other: Run) -> Verdict:
    """The last validation losses: window by window where both kept them, else by each one's own error."""
    figures = written(other.validation_loss), written(run.validation_loss)
    if not comparable(run, other):
        missing = not (run.history.validations and other.history.validations)
        why = "not both were validated" if missing else "taken on other windows or other data"
        return Verdict("Validation Loss", figures, "—", UNTESTED, why)
    ours, theirs = run.history.validations[-1], other.history.validations[-1]
    if by_window := paired_loss_verdict(run, other, figures):
        return by_window
    word, because = unpaired_test(
        (ours.loss, ours.standard_error), (theirs.loss, theirs.standard_error), ours.windows, "lower", "higher"
    )
    needed = threshold(ours.standard_error, theirs.standard_error, ours.windows)
    in_short = f"{abs(ours.loss - theirs.loss):.4f} apart, {needed:.4f} needed" if word != UNTESTED else because
    return Verdict("Validation Loss", figures, f"{ours.loss - theirs.loss:+.4f}", word, because, in_short)


def paired_loss_verdict(run: Run, other: Run, figures: tuple[str, str], tokens: int | None = None) -> Verdict | None:
    """By each window's loss, the last or that after so many tokens; None where one of the runs has not kept them."""
    try:
        result = paired_losses(run.window_losses(tokens), other.window_losses(tokens))
    except DataError:
        return None
    if result is None:
        return None
    word = ALIKE if not result.is_difference else "lower" if result.difference < 0 else "higher"
    in_short = (
        f"{result.difference:+.4f} ± {result.standard_error:.4f}, paired t-test over {result.groups} groups of windows"
    )
    return Verdict("Validation Loss", figures, f"{result.difference:+.4f}", word, result.words, in_short)


def unpaired_test(
    ours: tuple[float, float], theirs: tuple[float, float], windows: int, below: str, above: str
) -> tuple[str, str]:
    """(word, test) of two losses on the same windows, each with its standard error.

    The error of the difference is taken as if the windows were drawn anew for each. They are the same, and what is hard
    for one model is hard for the other; so the true error is smaller, and a difference that this finds is one.
    """
    if not all(map(math.isfinite, (*ours, *theirs))):
        return UNTESTED, "a loss that is no number"
    if not (ours[1] and theirs[1] and windows > 3):
        return UNTESTED, "no standard errors in the journals that would tell"
    apart, needed = ours[0] - theirs[0], threshold(ours[1], theirs[1], windows)
    test = (
        f"{abs(apart):.4f} apart, {'more' if abs(apart) > needed else 'not more'} than the {needed:.4f} that"
        f" {windows:,} windows need (errors {ours[1]:.4f} and {theirs[1]:.4f} added as squares)"
    )
    return (ALIKE if abs(apart) <= needed else below if apart < 0 else above), test


def threshold(error: float, other: float, windows: int) -> float:
    """How far apart two means of so many windows must lie that their errors alone would seldom put them there."""
    return student(max(1, windows - 1)) * math.hypot(error, other)


def hellaswag_verdict(run: Run, other: Run) -> Verdict:
    """The last answers, by McNemar's test on the same items."""
    what = "HellaSwag Accuracy"
    scores = [headline(r.hellaswag[-1])[0] if r.hellaswag else None for r in (other, run)]
    figures = in_percent(scores[0]), in_percent(scores[1])
    if not (run.hellaswag and other.hellaswag):
        return Verdict(what, figures, "—", UNTESTED, "not both were asked")
    one, two = run.hellaswag[-1], other.hellaswag[-1]
    if one.digest != two.digest:
        return Verdict(what, figures, "—", UNTESTED, f"asked other items, {one.items} and {two.items}")
    try:
        first, second = run.predictions(one), other.predictions(two)
    except DataError as error:
        return Verdict(what, figures, "—", UNTESTED, error.problem)
    rule = first.metrics[0]
    result = paired(first.right(rule), second.right(rule))
    word = ALIKE if not result.is_difference else "higher" if result.difference > 0 else "lower"
    because = (
        f"McNemar's p = {result.p_value:.2g} over {one.items}; only this run is right on {result.only[0]:,},"
        f" only {other.id} on {result.only[1]:,}"
    )
    return Verdict(
        what,
        figures,
        f"{100 * result.difference:+.1f} percentage points",
        word,
        because,
        f"McNemar's p = {result.p_value:.2g}",
    )


def speed_verdict(run: Run, other: Run) -> Verdict:
    """Of all steps, in groups of neighbours, since the times of steps hang together."""
    what = "Training Efficiency"
    figures = per_second(other), per_second(run)
    both = run.history.steps and other.history.steps
    times = f"× {run.tokens_per_second / other.tokens_per_second:.3g}" if both else "—"
    if placed(run) != placed(other) or len(placed(run)) != 1:
        return Verdict(what, figures, "—", UNTESTED, "not run on the same kind and number of devices")
    found = compare_throughput(run, other)
    if found is None:
        return Verdict(what, figures, times, UNTESTED, f"fewer than {FEWEST_TESTED} steps, and not twofold")
    word = {True: "faster", False: "slower", None: ALIKE}[found.faster]
    because = found.test if found.ranges in found.test else f"{found.test}; {found.ranges}"
    return Verdict(what, figures, times, word, because, found.test)


def written(loss: float | None) -> str:
    return f"{loss:.4f}" if loss is not None else "—"


def in_percent(share: float | None) -> str:
    return f"{share:.4f} ({100 * share:.1f} %)" if share is not None else "—"


def per_second(run: Run) -> str:
    """Of the median step."""
    return f"{run.tokens_per_second:,.0f} tokens/s" if run.history.steps else "—"


def placed(run: Run) -> set[tuple[str, int]]:
    """What each attempt ran on: (device, ranks)."""
    found = {(start.device, start.ranks) for start in run.history.details(Started)}
    return found or {(run.environment.device.name, run.environment.ranks)}
