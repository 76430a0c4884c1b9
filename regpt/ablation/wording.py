"""The wording of an ablation: verdicts, tables and design."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from regpt.ablation.design import ALL_RATES, BASE, Design, Trial
from regpt.ablation.effects import Effect, Measure, Results, Verdict
from regpt.ablation.equality import Equal, Speed, flops
from regpt.ablation.interactions import Interaction, Interplay
from regpt.ablation.paired import Paired
from regpt.base.format import NO_VALUE, duration, percent, scientific
from regpt.tracking.run import MachineLoad

PAIRED = (
    "Differences are paired by seed: both runs read the same windows in the same order, up to the end of the shorter"
    " one."
)
PAIRED_TOKENIZERS = "Differences are paired by seed."
OWN_ERROR = "Intervals are 95 % confidence intervals by Student's t over seeds (Student 1908)."
SHARED_ERROR = (
    "Intervals are 95 % confidence intervals by Student's t. Seeds are blocks, and the variance of each arm is drawn"
    " towards the one that all arms have in common (Smyth 2004), so a few seeds of many arms are enough. An arm with a"
    " far larger variance keeps its own."
)
REST = (
    "p-values are corrected for the number of changes (Holm 1979). “Detectable” is the smallest difference that this"
    " design finds with 80 % power (Bloom 1995), given the observed spread."
)
SAVINGS = (
    "“Tokens saved” is the share of the base's"
    " tokens that a change does not need to reach the base's final loss in the mean over seeds. It is a lower bound,"
    " because the learning rate was still high at that point. Times are given only if no other program used the"
    " processors; on a CPU this needs --jobs 1."
)
UNITS = {Measure.NATS: "nats", Measure.SAME_TEXT: "bits per byte", Measure.OWN_WINDOWS: "bits per byte"}
TITLES = {
    Measure.NATS: "final validation loss from the base (nats per token)",
    Measure.SAME_TEXT: "bits per byte of the same text from the base",
    Measure.OWN_WINDOWS: "bits per byte of the validation windows from the base",
}
OTHER_TOKENIZERS = (
    "The arms have different tokenizers. They are compared by the bits per byte of {text}. Nats per token are shown,"
    " but do not compare, because tokens differ; nor do tokens saved and time per token, which are left out."
)
TEXTS = {
    Measure.SAME_TEXT: "the text that all runs were validated on",
    Measure.OWN_WINDOWS: "each run's own validation windows, because too little of their text is the same, so that a"
    " difference may be one between texts",
}

KEPT_SHARES = "Warm-up, cooldown and other settings in steps are scaled with the length of the run."
HELD_EQUAL = {
    Equal.TOKENS: "Held equal: the number of steps and the tokens per step, unless an arm sets them.",
    Equal.PARAMETERS: "Held equal: the number of steps, and the number of parameters within 1 %, by the"
    " `model.mlp_hidden` of each arm.",
    Equal.FLOPS: (
        "Held equal: the training FLOPs, to the nearest step. They count forward and backward passes (PaLM,"
        f" arXiv 2204.02311) and Muon's orthogonalization. {KEPT_SHARES}"
    ),
    Equal.TIME: (
        "Held equal: the training time, to the nearest step, by the time per token that was measured before the first"
        f" run. Losses depend on that measurement. {KEPT_SHARES}"
    ),
}
LOADS = {
    MachineLoad.QUIET: "",
    MachineLoad.BUSY: "Other programs used the processors during that measurement: the times may not be equal.",
    MachineLoad.UNKNOWN: "It is not known whether other programs used the processors during that measurement.",
}

INTERPLAY_SOURCE = (
    "The stack is all changes together. The effect of a change inside the stack is the loss of the stack minus that"
    " of the stack without the change. The interaction is the effect inside minus the effect alone: the contrast of a"
    " 2 x 2 factorial design whose second factor is the rest of the stack (Yates 1937). Intervals are 95 % confidence"
    " intervals by Student's t over seeds; p-values are corrected for the number of interactions (Holm 1979)."
)
INTERPLAY = {
    Interplay.WORTH_MORE: "worth more",
    Interplay.WORTH_LESS: "worth less",
    Interplay.NOT_FOUND: "no interaction found",
    Interplay.ONE_SEED: "one seed: no verdict",
}

VERDICTS = {
    Verdict.LOWER: "lower",
    Verdict.HIGHER: "higher",
    Verdict.UNDER_POWERED: "under-powered",
    Verdict.NO_EFFECT: "no effect found",
    Verdict.ONE_SEED: "one seed: no verdict",
}


def headline(results: Results) -> Iterator[str]:
    """Yield the sentences of the result."""
    unit = UNITS[results.measure]
    if results.measure in TEXTS:
        yield OTHER_TOKENIZERS.format(text=TEXTS[results.measure])
    lower, higher, undecided = map(results.with_verdict, (Verdict.LOWER, Verdict.HIGHER, Verdict.UNDER_POWERED))
    if lower:
        yield f"Lower final loss than the base: {', '.join(with_interval(one, unit) for one in lower)}."
    if higher:
        yield f"Higher final loss than the base: {', '.join(with_interval(one, unit) for one in higher)}."
    if undecided:
        yield (
            f"Under-powered: {', '.join(effect.arm for effect in undecided)}. With {len(results.design.seeds)} seeds,"
            f" an effect of {results.smallest:.3g} {unit} would often be missed;"
            " give the same command with more --seeds."
        )
    if not (lower or higher or undecided):
        yield "No change has an effect that this design can distinguish from chance."
    yield from edge_lines(results.design, results.best)


def sources(results: Results) -> str:
    """Return how the figures of the table were computed."""
    paired, *savings = [PAIRED, SAVINGS] if results.measure is Measure.NATS else [PAIRED_TOKENIZERS]
    return " ".join([paired, SHARED_ERROR if results.has_shared_error else OWN_ERROR, REST, *savings])


def edge_lines(design: Design, best: Mapping[str, str]) -> Iterator[str]:
    """Yield which arms have their best value at the edge of what was tried, where a better one may lie beyond."""
    if design.tuning is None:
        return
    edges = edges_of(design.tuning.values)
    at_edge = [f"{arm} ({value})" for arm, value in best.items() if value in edges]
    if at_edge:
        yield (
            f"The best value of `{design.tuning.setting}` is the smallest or largest that was tried:"
            f" {', '.join(at_edge)}. A better one may lie beyond; give --tune a wider range."
        )


def edges_of(values: Sequence[str]) -> set[str]:
    """Return the smallest and the largest value; none where the values are not all numbers."""
    try:
        return {min(values, key=float), max(values, key=float)}
    except ValueError:
        return set()


def with_interval(effect: Effect, unit: str) -> str:
    return f"{effect.arm} by {abs(effect.mean):.4f} ± {effect.half_width:.4f} {unit}"


def rows(results: Results) -> list[list[str]]:
    """Return the table of effects: a header, the base, and a row for each change."""
    columns = [*BEFORE_COST, *(COST if results.measure is Measure.NATS else NATS), *AFTER_COST]
    final = "final loss" if results.measure is Measure.NATS else UNITS[results.measure]
    names = {"final": final, "difference": f"difference ({UNITS[results.measure]})"}
    base = {
        "arm": BASE,
        "final": f"{fmean(results.base_losses):.4f}",
        "time per token": "1",
        "memory": "1",
        "tuned": results.best.get(BASE, NO_VALUE),
    }
    if results.base_nats:
        base[NATS[0]] = f"{fmean(results.base_nats):.4f}"
    cells = [base, *(cells_of(effect, results.smallest) for effect in results.effects)]
    return [[names.get(name, name) for name in columns]] + [
        [own.get(name, NO_VALUE) for name in columns] for own in cells
    ]


BEFORE_COST = ("arm", "final", "difference", "95 % interval", "p (Holm)", "detectable")
COST = ("tokens saved", "time per token")
NATS = ("nats per token (not comparable)",)
AFTER_COST = ("memory", "tuned", "verdict")


def cells_of(effect: Effect, smallest_of_interest: float) -> dict[str, str]:
    """Return the cells of a change by their columns."""
    half = effect.half_width
    found = {
        "arm": effect.arm,
        "final": f"{fmean(effect.losses):.4f}",
        "difference": f"{effect.mean:+.4f}",
        "tokens saved": "none" if effect.token_share is None else percent(1 - effect.token_share),
        "time per token": factor(effect.time_ratio),
        "memory": factor(effect.memory_ratio),
        "tuned": effect.value or NO_VALUE,
        "verdict": VERDICTS[effect.verdict(smallest_of_interest)],
    }
    if effect.nats:
        found[NATS[0]] = f"{fmean(effect.nats):.4f}"
    if math.isfinite(half):
        found["95 % interval"] = f"{effect.mean - half:+.4f} to {effect.mean + half:+.4f}"
        found["p (Holm)"] = f"{effect.adjusted_p_value:.3g}"
        found["detectable"] = f"{effect.smallest_detectable:.4f}"
    return found


def interplay_lines(found: Sequence[Interaction]) -> Iterator[str]:
    """Yield which changes have a different effect inside the stack than alone."""
    for interplay in (Interplay.WORTH_MORE, Interplay.WORTH_LESS):
        if changed := [one for one in found if one.interplay is interplay]:
            effects = (f"{one.arm} ({one.inside.mean:+.4f} inside, {one.alone.mean:+.4f} alone)" for one in changed)
            yield f"{INTERPLAY[interplay].capitalize()} inside the stack than alone: {', '.join(effects)}."
    if not any(one.interplay in (Interplay.WORTH_MORE, Interplay.WORTH_LESS) for one in found):
        yield "No change has an effect inside the stack that can be distinguished from its effect alone."


def interaction_rows(found: Sequence[Interaction]) -> list[list[str]]:
    """Return the table of interactions, in nats: a header, and a row for each change."""
    header = ["change", "effect alone", "effect inside the stack", "interaction", "p (Holm)", "verdict"]
    return [header, *(interaction_row(one) for one in found)]


def interaction_row(one: Interaction) -> list[str]:
    has_interval = one.interplay is not Interplay.ONE_SEED
    return [
        one.arm,
        *(plus_minus(differences) for differences in (one.alone, one.inside, one.contrast)),
        f"{one.adjusted_p_value:.3g}" if has_interval else NO_VALUE,
        INTERPLAY[one.interplay],
    ]


def plus_minus(differences: Paired) -> str:
    half = differences.half_width
    return f"{differences.mean:+.4f} ± {half:.4f}" if math.isfinite(half) else f"{differences.mean:+.4f}"


def factor(ratio: float) -> str:
    return f"× {ratio:.2f}" if math.isfinite(ratio) else NO_VALUE


def design_lines(design: Design, best: Mapping[str, str]) -> Iterator[str]:
    """Yield the arms with their settings, size and length, what is held equal, the seeds and the tuning."""
    for arm in design.arms:
        settings = [design.recipe, *design.settings] if arm.name == BASE else arm.settings
        words = "the base with other initial weights" if arm.is_null else f"`{' '.join(settings)}`"
        yield f"{arm.name}: {words}; {size(design, arm.name, best)}"
    yield HELD_EQUAL[design.equal]
    if design.equal is Equal.TIME and (words := LOADS[worst_load(design.speeds.values())]):
        yield words
    yield f"Seeds: {', '.join(map(str, design.seeds))}"
    if design.tuning is not None:
        what = "all learning rates ×" if design.tuning.setting == ALL_RATES else f"`{design.tuning.setting}` ="
        yield f"Tuned for each arm, with a separate seed: {what} {', '.join(design.tuning.values)}"


def size(design: Design, arm: str, best: Mapping[str, str]) -> str:
    """Return the size and the length of an arm's runs."""
    tuned = design.tuned_arm(arm)
    recipe = design.recipe_of(Trial(arm, design.seeds[0]), best.get(tuned, ""))
    parts = [
        f"{recipe.model.parameters:,} parameters",
        f"{recipe.run.max_steps:,} steps",
        f"{recipe.total_tokens:,} tokens",
        f"{scientific(flops(recipe).of(recipe, recipe.run.max_steps), 4)} FLOPs",
    ]
    if speed := design.speeds.get(tuned):
        parts.append(f"{1 / speed.token_seconds:,.0f} tokens/s, {duration(recipe.total_tokens * speed.token_seconds)}")
    return ", ".join(parts)


def worst_load(speeds: Iterable[Speed]) -> MachineLoad:
    loads = {speed.load for speed in speeds}
    return next((load for load in (MachineLoad.BUSY, MachineLoad.UNKNOWN) if load in loads), MachineLoad.QUIET)
