"""Differences that are paired by seed: their mean, its interval, its p-value, and what they could have shown.

The mean has a 95 % interval by Student's t over seeds (Student 1908). The smallest detectable difference is the one
that this design finds in 80 % of repetitions at a level of 5 %: (t(0.975) + t(0.8)) x standard error, with the standard
deviation that was observed (Bloom 1995).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from regpt.stats.paired import students_t_p_value, students_t_threshold

POWER = 0.8


class Paired:
    """A value for each seed, whose mean is tested against 0."""

    differences: tuple[float, ...]  # by seed

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


@dataclass(frozen=True)
class Differences(Paired):
    """Differences of two arms, or of two such differences."""

    differences: tuple[float, ...]


def differences(ours: Sequence[float], theirs: Sequence[float]) -> Differences:
    """Subtract values of the same seeds."""
    return Differences(tuple(one - other for one, other in zip(ours, theirs, strict=True)))


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of a paired t-test; 1 for one seed, and where all differences are 0."""
    if len(differences) < 2 or not any(differences):
        return 1.0
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return students_t_p_value(statistics.fmean(differences) / spread, len(differences) - 1) if spread else 0.0


def power_point(degrees: int) -> float:
    """Return the 80 % point of Student's t, by bisection."""
    low, high = 0.0, 3.0  # 1.376 for one degree
    for _ in range(50):
        middle = (low + high) / 2
        above = students_t_p_value(middle, degrees) / 2
        low, high = (middle, high) if above > 1 - POWER else (low, middle)
    return high
