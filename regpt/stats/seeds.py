"""Differences of two recipes over seeds: paired where both have the same seeds, else of two independent samples.

A run is one draw from the distribution over seeds, so the unit is the run, not the window. Runs of one seed read the
same windows in the same order, and their difference has less noise than either of them: a paired t-test (Student 1908).
Other seeds are independent samples of unequal variance: Welch's t-test (Welch 1947), with his degrees of freedom
rounded down. The smallest detectable difference is the one that a design of this size finds in 80 % of repetitions at a
level of 5 %: (t(0.975) + t(0.8)) x standard error, with the spread that was observed (Bloom 1995).
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

from regpt.stats.outcome import LEVEL, Outcome, by_sign
from regpt.stats.paired import holm_adjusted, students_t_p_value, students_t_threshold

Seed = TypeVar("Seed", bound=Hashable)

POWER = 0.8
ROUNDING = 1e-9  # of degrees of freedom that are a whole number


@dataclass(frozen=True)
class MeanDifference:
    """A mean difference, its standard error, and the degrees of freedom of that error; 0: the error is unknown."""

    mean: float
    error: float
    degrees: int

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval; infinite where the error is unknown."""
        return students_t_threshold(self.degrees) * self.error if self.degrees else math.inf

    @property
    def interval(self) -> tuple[float, float]:
        return self.mean - self.half_width, self.mean + self.half_width

    @property
    def smallest_detectable(self) -> float:
        if not self.degrees:
            return math.inf
        return (students_t_threshold(self.degrees) + power_point(self.degrees)) * self.error

    @property
    def p_value(self) -> float:
        """The two-sided p-value; 1 where the error is unknown or the mean is 0."""
        if not self.degrees or not self.mean:
            return 1.0
        return students_t_p_value(self.mean / self.error, self.degrees) if self.error else 0.0


def paired_difference(differences: Sequence[float]) -> MeanDifference:
    """Return the mean of differences between runs of the same seed."""
    n = len(differences)
    error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.inf
    return MeanDifference(statistics.fmean(differences), error, n - 1)


def welch_difference(ours: Sequence[float], theirs: Sequence[float]) -> MeanDifference:
    """Return the difference of the means of two independent samples."""
    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return MeanDifference(mean, math.inf, 0)
    variances = [statistics.variance(sample) / len(sample) for sample in (ours, theirs)]
    parts = [variance**2 / (len(sample) - 1) for variance, sample in zip(variances, (ours, theirs), strict=True)]
    degrees = sum(variances) ** 2 / sum(parts) if sum(parts) else min(len(ours), len(theirs)) - 1
    return MeanDifference(mean, math.sqrt(sum(variances)), max(1, int(degrees + ROUNDING)))


@cache
def power_point(degrees: int) -> float:
    """Return the 80 % point of Student's t, by bisection."""
    low, high = 0.0, 3.0  # 1.376 for one degree
    for _ in range(50):
        middle = (low + high) / 2
        above = students_t_p_value(middle, degrees) / 2
        low, high = (middle, high) if above > 1 - POWER else (low, middle)
    return high


@dataclass(frozen=True)
class SeedsTest:
    """Test of two recipes over seeds."""

    difference: MeanDifference  # ours minus theirs
    seeds: tuple[int, int]  # numbers of seeds
    is_paired: bool
    adjusted_p_value: float  # for the number of recipes that are compared with the same one (Holm 1979)

    @property
    def outcome(self) -> Outcome:
        return by_sign(self.difference.mean, self.adjusted_p_value < LEVEL)


def seeds_test(ours: Mapping[Seed, float], theirs: Mapping[Seed, float], same_windows: bool) -> SeedsTest | None:
    """Test values by seed: paired where the seeds are the same and read the same windows in the same order.

    Returns None if there are fewer than two seeds on one side.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    is_paired = same_windows and ours.keys() == theirs.keys()
    if is_paired:
        difference = paired_difference([ours[seed] - theirs[seed] for seed in ours])
    else:
        difference = welch_difference([*ours.values()], [*theirs.values()])
    return SeedsTest(difference, (len(ours), len(theirs)), is_paired, difference.p_value)


def holm_adjusted_tests(tests: Sequence[SeedsTest]) -> list[SeedsTest]:
    """Adjust the p-values of several tests."""
    adjusted = holm_adjusted([test.difference.p_value for test in tests])
    return [replace(test, adjusted_p_value=p_value) for test, p_value in zip(tests, adjusted, strict=True)]
