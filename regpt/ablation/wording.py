"""The words of an ablation: verdicts, tables and limits."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from regpt.ablation.design import ALL_RATES, BASE, Design
from regpt.ablation.effects import Effect, Results, Verdict
from regpt.base.format import NO_VALUE, percent

SOURCES = (
    "Differences are paired by seed: both runs read the same windows in the same order. Intervals hold 95 % by"
    " Student's t over seeds (Student 1908). p-values are corrected over all changes (Holm 1979). The smallest"
    " detectable difference would be found in 80 of 100 repetitions (Bloom 1995), given the spread that was observed."
    " Tokens saved compare the tokens after which the mean loss of a change reaches the base's final one. Its learning"
    " rate was still high there, so they are a lower bound. Times are given where no other program used the"
    " processors: on a CPU, with --jobs 1."
)


VERDICTS = {
    Verdict.LOWER: "lower",
    Verdict.HIGHER: "higher",
    Verdict.UNDER_POWERED: "under-powered",
    Verdict.NO_EFFECT: "no effect found",
    Verdict.ONE_SEED: "one seed: no verdict",
}


def headline(results: Results) -> Iterator[str]:
    """Yield the sentences of the result."""
    lower, higher, undecided = map(results.with_verdict, (Verdict.LOWER, Verdict.HIGHER, Verdict.UNDER_POWERED))
    if lower:
        yield f"Lower final loss than the base: {', '.join(map(with_interval, lower))}."
    if higher:
        yield f"Higher final loss than the base: {', '.join(map(with_interval, higher))}."
    if undecided:
        yield (
            f"Under-powered: {', '.join(effect.arm for effect in undecided)}. With {len(results.design.seeds)} seeds,"
            f" effects of {results.smallest:g} nats would often be missed; give the same command with more --seeds."
        )
    if not (lower or higher or undecided):
        yield "No change has an effect that this design can tell from chance."
    yield from edge_lines(results.design, results.best)


def edge_lines(design: Design, best: Mapping[str, str]) -> Iterator[str]:
    """Yield which arms have their best value at the edge of what was tried, where a better one may lie beyond."""
    if design.tuning is None:
        return
    edges = edges_of(design.tuning.values)
    at_edge = [f"{arm} ({value})" for arm, value in best.items() if value in edges]
    if at_edge:
        yield (
            f"The best value of `{design.tuning.setting}` is the first or last that was tried: {', '.join(at_edge)}."
            " A better one may lie beyond; give --tune a wider range."
        )


def edges_of(values: Sequence[str]) -> set[str]:
    """Return the smallest and the largest value; none where the values are not all numbers."""
    try:
        return {min(values, key=float), max(values, key=float)}
    except ValueError:
        return set()


def with_interval(effect: Effect) -> str:
    return f"{effect.arm} by {abs(effect.mean):.4f} ± {effect.half_width:.4f} nats"


def rows(results: Results) -> list[list[str]]:
    """Return the table of effects: a header, the base, and a row for each change."""
    header = [
        "arm", "final loss", "difference (nats)", "95 % interval", "p (Holm)", "detectable", "tokens saved",
        "time per token", "memory", "tuned", "verdict",
    ]  # fmt: skip
    base = [BASE, f"{fmean(results.base_losses):.4f}", *[NO_VALUE] * 5, "1", "1"]
    base += [results.best.get(BASE, NO_VALUE), NO_VALUE]
    return [header, base, *(row(effect, results.smallest) for effect in results.effects)]


def row(effect: Effect, smallest_of_interest: float) -> list[str]:
    half = effect.half_width
    has_interval = math.isfinite(half)
    return [
        effect.arm,
        f"{fmean(effect.losses):.4f}",
        f"{effect.mean:+.4f}",
        f"{effect.mean - half:+.4f} to {effect.mean + half:+.4f}" if has_interval else NO_VALUE,
        f"{effect.adjusted_p_value:.3g}" if has_interval else NO_VALUE,
        f"{effect.smallest_detectable:.4f}" if has_interval else NO_VALUE,
        "none" if effect.token_share is None else percent(1 - effect.token_share),
        factor(effect.time_ratio),
        factor(effect.memory_ratio),
        effect.value or NO_VALUE,
        VERDICTS[effect.verdict(smallest_of_interest)],
    ]


def factor(ratio: float) -> str:
    return f"× {ratio:.2f}" if math.isfinite(ratio) else NO_VALUE


def design_lines(design: Design) -> Iterator[str]:
    """Yield what the ablation consists of."""
    yield f"Base: `{' '.join([design.recipe, *design.settings])}`"
    for arm in design.arms[1:]:
        yield f"{arm.name}: `{' '.join(arm.settings) or 'the base with other initial weights'}`"
    yield f"Seeds: {', '.join(map(str, design.seeds))}"
    if design.tuning is not None:
        what = "all learning rates times" if design.tuning.setting == ALL_RATES else f"`{design.tuning.setting}` ="
        yield f"Tuned, each arm alike, with another seed: {what} {', '.join(design.tuning.values)}"
