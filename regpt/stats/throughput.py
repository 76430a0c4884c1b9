"""Test whether one run's steps were faster than another's, by groups of neighbouring steps: a machine's load lasts."""

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from regpt.stats.outcome import Outcome
from regpt.stats.paired import GROUPS, students_t_threshold
from regpt.tracking.run import Run

MIN_STEPS = 8  # for a median
MIN_TESTED_STEPS = 96  # below, a passing load may cover most of a run
UNEVEN_RATIO = 1.5  # between the fastest and the slowest group of one run
MIN_GROUP_STEPS = 4  # so that one slow step changes no group's median
TWOFOLD = math.log(2)  # medians this far apart are reported for the two runs, for any cause


@dataclass(frozen=True)
class Throughput:
    """The speed of a run in tokens per second, by groups of neighbouring steps."""

    steps: int
    median: float  # of all steps
    groups: tuple[float, ...]  # median of each group

    @property
    def mean_log(self) -> float:
        """Mean of the groups' logarithms, so that half the speed counts as much as double."""
        return float(np.log(self.groups).mean())

    @property
    def variance(self) -> float:
        """Variance of `mean_log` on another day.

        Within a run, the mean of G groups has the variance of one group divided by G. But loads last, and the day of a
        run is one more draw of them. The least assumption is that machines vary between runs as much as within one, so
        the variance of a whole group is added.
        """
        return float(np.log(self.groups).var(ddof=1)) * (1 + 1 / len(self.groups))

    @property
    def is_uneven(self) -> bool:
        """Whether the groups differ so much that other work on the machine is likely."""
        return max(self.groups) > UNEVEN_RATIO * min(self.groups)


@dataclass(frozen=True)
class ThroughputTest:
    """Welch's t-test of the speeds of two runs, on logarithms."""

    ours: Throughput
    theirs: Throughput

    @property
    def log_ratio(self) -> float:
        """Logarithm of the ratio of the speeds, from the groups."""
        return self.ours.mean_log - self.theirs.mean_log

    @property
    def threshold(self) -> float:
        """The smallest significant log ratio (Welch 1947, two-sided at 5 %)."""
        variances = [self.ours.variance, self.theirs.variance]
        if not any(variances):
            return 0.0
        parts = [
            variance**2 / (len(one.groups) - 1)
            for variance, one in zip(variances, (self.ours, self.theirs), strict=True)
        ]
        degrees = max(1, int(sum(variances) ** 2 / sum(parts)))
        return students_t_threshold(degrees) * math.sqrt(sum(variances))

    @property
    def is_significant(self) -> bool:
        """Whether the runs are long enough, the groups differ significantly, and the medians agree in direction."""
        enough = min(self.ours.steps, self.theirs.steps) >= MIN_TESTED_STEPS
        return enough and abs(self.log_ratio) > self.threshold and self.log_ratio * self.median_log_ratio > 0

    @property
    def is_twofold(self) -> bool:
        """Whether one median step took at least twice as long; reported even where the groups do not carry it."""
        return abs(self.median_log_ratio) >= TWOFOLD

    @property
    def median_log_ratio(self) -> float:
        """Logarithm of the ratio of the median steps' speeds."""
        return math.log(self.ours.median / self.theirs.median)

    @property
    def is_uneven(self) -> bool:
        return self.ours.is_uneven or self.theirs.is_uneven

    @property
    def outcome(self) -> Outcome:
        if not (self.is_significant or self.is_twofold):
            return Outcome.INDISTINGUISHABLE
        ratio = self.log_ratio if self.is_significant else self.median_log_ratio
        return Outcome.FASTER if ratio > 0 else Outcome.SLOWER


def compare_throughput(run: Run, other: Run) -> ThroughputTest | None:
    """Compare the speeds of two runs; None where they have too few steps for any statement."""
    ours, theirs = throughput_of(run), throughput_of(other)
    if ours is None or theirs is None:
        return None
    found = ThroughputTest(ours, theirs)
    return found if found.is_twofold or min(ours.steps, theirs.steps) >= MIN_TESTED_STEPS else None


def throughput_of(run: Run) -> Throughput | None:
    """Measure a run in up to 16 groups of steps. An attempt's first step, which compiles, changes no median."""
    speeds = run.speeds
    if len(speeds) < MIN_STEPS:
        return None
    ends = np.linspace(0, len(speeds), min(GROUPS, len(speeds) // MIN_GROUP_STEPS) + 1).astype(int)
    groups = tuple(median(speeds[start:end]) for start, end in pairwise(ends))
    return Throughput(len(speeds), median(speeds), groups)
