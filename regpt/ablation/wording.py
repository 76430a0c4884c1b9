"""The words of an ablation: verdicts, tables and limits."""

import math
from collections.abc import Iterator, Sequence

from regpt.ablation.design import ALL_RATES, BASE, Design
from regpt.ablation.effects import Effect
from regpt.base.format import NO_VALUE, percent

SOURCES = (
    "Differences are paired by seed: both runs read the same windows in the same order. Intervals hold 95 % by"
    " Student's t over seeds (Student 1908). p-values are corrected over all changes (Holm 1979). The smallest"
    " detectable difference would be found in 80 of 100 repetitions (Bloom 1995), given the spread that was observed."
    " Tokens saved compare the tokens after which the mean loss of a change reaches the base's final one. Its learning"
    " rate was still high there, so they are a lower bound."
)


def verdict(effect: Effect, smallest_of_interest: float) -> str:
    """Return the verdict on a change in a few words."""
    if len(effect.differences) < 2:
        return "one seed: no verdict"
    if effect.is_significant:
        return "lower" if effect.mean < 0 else "higher"
    if effect.is_underpowered(smallest_of_interest):
        return "under-powered"
    return "no effect found"


def headline(found: Sequence[Effect], design: Design, smallest_of_interest: float) -> Iterator[str]:
    """Yield the sentences of the result."""
    lower = [e for e in found if verdict(e, smallest_of_interest) == "lower"]
    higher = [e for e in found if verdict(e, smallest_of_interest) == "higher"]
    undecided = [e for e in found if verdict(e, smallest_of_interest) == "under-powered"]
    if lower:
        yield f"Lower final loss than the base: {', '.join(map(with_interval, lower))}."
    if higher:
        yield f"Higher final loss than the base: {', '.join(map(with_interval, higher))}."
    if undecided:
        yield (
            f"Under-powered: {', '.join(effect.arm for effect in undecided)}. With {len(design.seeds)} seeds, effects"
            f" of {smallest_of_interest:g} nats would often be missed; give the same command with more --seeds."
        )
    if not (lower or higher or undecided):
        yield "No change has an effect that this design can tell from chance."


def edge_lines(design: Design, best: dict[str, str]) -> Iterator[str]:
    """Yield which arms have their best value at the edge of what was tried, where a better one may lie beyond."""
    if design.tuning is None:
        return
    ordered = sorted(design.tuning.values, key=as_number)
    at_edge = [f"{arm} ({value})" for arm, value in best.items() if value in (ordered[0], ordered[-1])]
    if at_edge:
        yield (
            f"The best value of `{design.tuning.setting}` is the first or last that was tried: {', '.join(at_edge)}."
            " A better one may lie beyond; give --tune a wider range."
        )


def as_number(word: str) -> float:
    """Return a word as a number; words that are none keep their order."""
    try:
        return float(word)
    except ValueError:
        return 0.0


def with_interval(effect: Effect) -> str:
    return f"{effect.arm} by {abs(effect.mean):.4f} ± {effect.half_width:.4f} nats"


def rows(
    found: Sequence[Effect], base_losses: Sequence[float], best: dict[str, str], smallest: float
) -> list[list[str]]:
    """Return the table of effects: a header, the base, and a row for each change."""
    header = [
        "arm", "final loss", "difference (nats)", "95 % interval", "p (Holm)", "detectable", "tokens saved",
        "time per token", "memory", "tuned", "verdict",
    ]  # fmt: skip
    mean = sum(base_losses) / len(base_losses) if base_losses else math.nan
    base = [BASE, f"{mean:.4f}", *[NO_VALUE] * 5, "1", "1", best.get(BASE, NO_VALUE), NO_VALUE]
    return [header, base, *(row(effect, smallest) for effect in found)]


def row(effect: Effect, smallest: float) -> list[str]:
    half = effect.half_width
    is_known = math.isfinite(half)
    return [
        effect.arm,
        f"{sum(effect.losses) / len(effect.losses):.4f}",
        f"{effect.mean:+.4f}",
        f"{effect.mean - half:+.4f} to {effect.mean + half:+.4f}" if is_known else NO_VALUE,
        f"{effect.adjusted_p_value:.3g}" if is_known else NO_VALUE,
        f"{effect.smallest_detectable:.4f}" if is_known else NO_VALUE,
        "none" if effect.token_share is None else percent(1 - effect.token_share),
        factor(effect.time_ratio),
        factor(effect.memory_ratio),
        effect.value or NO_VALUE,
        verdict(effect, smallest),
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
