"""The effect of each change: differences of final losses, paired over seeds, with what they cost.

Runs with one seed read the same windows in the same order, so the difference of an arm and the base has less noise than
either. Its mean has a 95 % interval by Student's t over seeds (Student 1908). p-values are corrected over the arms by
Holm (1979). The smallest detectable difference is the one that this design finds in 80 % of repetitions at a level of
5 %: (t(0.975) + t(0.8)) x standard error, with the standard deviation that was observed (Bloom 1995).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from regpt.ablation.design import BASE, Design, Trial
from regpt.stats.paired import holm_adjusted, students_t_p_value, students_t_threshold
from regpt.tracking.events import Ended
from regpt.tracking.run import Run

LEVEL = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Effect:
    """An arm against the base."""

    arm: str
    losses: tuple[float, ...]  # final validation losses, by seed
    differences: tuple[float, ...]  # arm - base, by seed
    value: str = ""  # the tuned value
    p_value: float = 1.0
    adjusted_p_value: float = 1.0
    token_share: float | None = None  # of the base's tokens after which the arm has the base's final loss; None: never
    time_ratio: float = math.nan  # of the time per token, arm / base
    memory_ratio: float = math.nan

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def error(self) -> float:
        """Standard error of the mean; infinite for one seed."""
        n = len(self.differences)
        return statistics.stdev(self.differences) / math.sqrt(n) if n > 1 else math.inf

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval."""
        n = len(self.differences)
        return students_t_threshold(n - 1) * self.error if n > 1 else math.inf

    @property
    def smallest_detectable(self) -> float:
        n = len(self.differences)
        return (students_t_threshold(n - 1) + power_point(n - 1)) * self.error if n > 1 else math.inf

    @property
    def is_significant(self) -> bool:
        return self.adjusted_p_value < LEVEL

    def is_underpowered(self, smallest_of_interest: float) -> bool:
        """Return whether nothing was found, and an effect that matters could have been missed."""
        return not self.is_significant and self.smallest_detectable > smallest_of_interest


def power_point(degrees: int) -> float:
    """Return the 80 % point of Student's t, by bisection."""
    low, high = 0.0, 3.0  # 1.376 for one degree
    for _ in range(50):
        middle = (low + high) / 2
        above = students_t_p_value(middle, degrees) / 2
        low, high = (middle, high) if above > 1 - POWER else (low, middle)
    return high


def effects(design: Design, runs: Mapping[Trial, Run], best: Mapping[str, str]) -> list[Effect]:
    """Return the effect of every arm besides the base, over the seeds whose runs are finished in all arms."""
    names = [arm.name for arm in design.arms]
    seeds = [seed for seed in design.seeds if all(Trial(name, seed) in runs for name in names)]
    base = [runs[Trial(BASE, seed)] for seed in seeds]
    found = []
    for name in names[1:] if seeds else []:
        arm = [runs[Trial(name, seed)] for seed in seeds]
        losses = tuple(final_loss(run) for run in arm)
        differences = tuple(loss - final_loss(other) for loss, other in zip(losses, base, strict=True))
        found.append(
            Effect(
                name,
                losses,
                differences,
                best.get(name, ""),
                p_value(differences),
                token_share=token_share(arm, base),
                time_ratio=ratio([token_seconds(run) for run in arm], [token_seconds(run) for run in base]),
                memory_ratio=ratio([memory(run) for run in arm], [memory(run) for run in base]),
            )
        )
    adjusted = holm_adjusted([effect.p_value for effect in found])
    return [replace(effect, adjusted_p_value=p) for effect, p in zip(found, adjusted, strict=True)]


def final_loss(run: Run) -> float:
    loss = run.validation_loss
    assert loss is not None, f"{run.path} has no validation"
    return loss


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of a paired t-test; 1 for one seed, and where all differences are 0."""
    if len(differences) < 2 or not any(differences):
        return 1.0
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return students_t_p_value(statistics.fmean(differences) / spread, len(differences) - 1) if spread else 0.0


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
    return 1.0 / run.tokens_per_second if run.tokens_per_second else math.nan


def memory(run: Run) -> float:
    return float(max((ended.memory_bytes for ended in run.history.details(Ended)), default=0))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the ratio of the medians; NaN where one is unknown."""
    below = statistics.median(theirs)
    return statistics.median(ours) / below if below else math.nan
