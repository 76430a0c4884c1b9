"""The effect of each change: differences of final losses, paired over seeds, with what they cost.

Runs with one seed read the same windows in the same order, so the difference of an arm and the base has less noise than
either. p-values are corrected over the arms by Holm (1979). The statistics of the differences are in `paired.py`.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from regpt.ablation.design import BASE, Design, Trial
from regpt.ablation.interactions import Interaction, interactions_of
from regpt.ablation.paired import Paired, differences
from regpt.stats.blocks import MIN_RECIPES, differences_in_blocks
from regpt.stats.losses import bits_of_same_text, last_loss
from regpt.stats.outcome import LEVEL
from regpt.stats.paired import holm_adjusted
from regpt.stats.seeds import MeanDifference
from regpt.tracking.events import Ended
from regpt.tracking.run import Run


class Measure(Enum):
    """What the arms are compared by."""

    NATS = auto()  # per token, for arms with one tokenizer
    SAME_TEXT = auto()  # bits per byte of the text that all runs were validated on
    OWN_WINDOWS = auto()  # bits per byte of each run's own validation windows, where too little text is the same


class Verdict(Enum):
    """What an ablation says about a change."""

    LOWER = auto()
    HIGHER = auto()
    UNDER_POWERED = auto()  # nothing was found, and an effect that matters could have been missed
    NO_EFFECT = auto()
    ONE_SEED = auto()


@dataclass(frozen=True)
class Effect(Paired):
    """An arm against the base."""

    arm: str
    losses: tuple[float, ...]  # final validation losses in the measure of the results, by seed
    differences: tuple[float, ...]  # arm - base, by seed
    value: str = ""  # the tuned value
    p_value: float = 1.0
    adjusted_p_value: float = 1.0
    token_share: float | None = None  # of the base's tokens after which the arm has the base's final loss; None: never
    time_ratio: float = math.nan  # of the time per token, arm / base; NaN: unknown
    memory_ratio: float = math.nan
    nats: tuple[float, ...] = ()  # final validation losses in nats per token, by seed
    shared: MeanDifference | None = None  # with an error that all arms share; None: this arm's own seeds alone count

    @property
    def difference(self) -> MeanDifference:
        return self.shared or super().difference

    @property
    def is_significant(self) -> bool:
        return self.adjusted_p_value < LEVEL

    def verdict(self, smallest_of_interest: float) -> Verdict:
        """Return the verdict; `smallest_of_interest`, in the measure, decides what is under-powered."""
        if len(self.differences) < 2:
            return Verdict.ONE_SEED
        if self.is_significant:
            return Verdict.LOWER if self.mean < 0 else Verdict.HIGHER
        is_missed = self.smallest_detectable > smallest_of_interest
        return Verdict.UNDER_POWERED if is_missed else Verdict.NO_EFFECT


@dataclass(frozen=True)
class Results:
    """All that the report of an ablation shows."""

    design: Design
    effects: tuple[Effect, ...]
    base_losses: tuple[float, ...]  # final validation losses in the measure, by seed
    best: Mapping[str, str]  # tuned value of each arm
    smallest: float  # the smallest effect that matters, in the measure
    interactions: tuple[Interaction, ...] = ()  # of each change, if there is a stack of them
    measure: Measure = Measure.NATS
    base_nats: tuple[float, ...] = ()  # final validation losses in nats per token, by seed

    @property
    def has_shared_error(self) -> bool:
        """Whether the arms' spreads were estimated together."""
        return any(effect.shared for effect in self.effects)

    def with_verdict(self, verdict: Verdict) -> list[Effect]:
        return [effect for effect in self.effects if effect.verdict(self.smallest) is verdict]


def results_of(
    design: Design, runs: Mapping[Trial, Run], best: Mapping[str, str], smallest_of_interest: float
) -> Results:
    """Compare every arm with the base. `runs` are the finished runs of all arms and seeds.

    Arms with different tokenizers are compared by bits per byte. `smallest_of_interest` is in nats per token.
    """
    measure, values = final_values(runs)
    losses = {arm.name: by_seed(design, arm.name, values) for arm in design.arms}
    nats = {arm.name: by_seed(design, arm.name, final_losses(runs)) for arm in design.arms}
    base, base_losses = [runs[Trial(BASE, seed)] for seed in design.seeds], losses[BASE]
    is_shared = len(losses) >= MIN_RECIPES and len(design.seeds) > 1
    in_blocks = differences_in_blocks([*losses.values()]) if is_shared else None
    found = []
    for number, arm in enumerate(design.arms[1:]):
        ours = [runs[Trial(arm.name, seed)] for seed in design.seeds]
        effect = Effect(
            arm.name,
            tuple(losses[arm.name]),
            differences(losses[arm.name], base_losses).differences,
            best.get(arm.name, ""),
            token_share=token_share(ours, base) if measure is Measure.NATS else None,
            time_ratio=ratio([token_seconds(run) for run in ours], [token_seconds(run) for run in base]),
            memory_ratio=ratio([memory(run) for run in ours], [memory(run) for run in base]),
            nats=tuple(nats[arm.name]),
            shared=in_blocks[number] if in_blocks else None,
        )
        found.append(replace(effect, p_value=effect.difference.p_value))
    corrected = holm_adjusted([effect.p_value for effect in found])
    effects = tuple(replace(effect, adjusted_p_value=p) for effect, p in zip(found, corrected, strict=True))
    smallest = smallest_of_interest
    if measure is not Measure.NATS:
        smallest *= statistics.fmean(base_losses) / statistics.fmean(nats[BASE])
    return Results(
        design, effects, tuple(base_losses), best, smallest, interactions_of(design, values), measure,
        tuple(nats[BASE]),
    )  # fmt: skip


def by_seed(design: Design, arm: str, values: Mapping[Trial, float]) -> list[float]:
    return [values[Trial(arm, seed)] for seed in design.seeds]


def final_losses(runs: Mapping[Trial, Run]) -> dict[Trial, float]:
    """Return the final validation loss of each run, in nats per token."""
    return {trial: final_loss(run) for trial, run in runs.items()}


def final_values(runs: Mapping[Trial, Run]) -> tuple[Measure, dict[Trial, float]]:
    """Return what the runs are compared by: nats for one tokenizer, else bits per byte."""
    if len({run.environment.data.tokenizer for run in runs.values()}) == 1:
        return Measure.NATS, final_losses(runs)
    last = [loss for run in runs.values() if (loss := last_loss(run))]
    if (bits := bits_of_same_text(last)) is not None:
        return Measure.SAME_TEXT, dict(zip(runs, bits, strict=True))
    return Measure.OWN_WINDOWS, {trial: loss.bits_per_byte for trial, loss in zip(runs, last, strict=True)}


def final_loss(run: Run) -> float:
    loss = run.validation_loss
    assert loss is not None, f"{run.path} has no validation"
    return loss


def token_share(arm: Sequence[Run], base: Sequence[Run]) -> float | None:
    """Return the share of the base's tokens after which the arm's mean validation loss is the base's final one.

    Interpolated between validations in the logarithm of tokens. The arm's learning rate was still high there, so a
    schedule of that length would need fewer: the share is an upper bound.
    """
    target = statistics.fmean(final_loss(run) for run in base)
    steps = [record.step for record in arm[0].history.validations]
    if any([record.step for record in run.history.validations] != steps for run in arm):
        return None
    curve = [statistics.fmean(run.history.validations[n].loss for run in arm) for n in range(len(steps))]
    tokens = [arm[0].recipe.tokens_after(step) for step in steps]
    for n in range(1, len(curve)):
        if curve[n] <= target:
            above, below = curve[n - 1] - target, target - curve[n]
            part = above / (above + below) if above > 0 else 0.0
            start = max(tokens[n - 1], 1)
            return math.exp(math.log(start) + part * math.log(tokens[n] / start)) / base[0].recipe.total_tokens
    return None


def token_seconds(run: Run) -> float:
    """Return the time of a token; NaN where other programs slowed the run, or may have."""
    return 1.0 / run.tokens_per_second if run.has_known_speed and run.tokens_per_second else math.nan


def memory(run: Run) -> float:
    return float(max((ended.memory_bytes for ended in run.history.details(Ended)), default=0))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the ratio of the medians; NaN where a value is unknown."""
    below = statistics.median(theirs)
    is_known = below and not any(map(math.isnan, [*ours, *theirs]))
    return statistics.median(ours) / below if is_known else math.nan
