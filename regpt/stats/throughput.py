"""Whether one run's steps were faster than another's: by groups of neighbouring steps, since a machine's load lasts."""

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from regpt.stats.paired import GROUPS, student
from regpt.tracking.run import Run

FEWEST_STEPS = 8  # of which a median is said
FEWEST_TESTED = 96  # below, a load that comes and goes may cover most of a run
UNEVEN = 1.5  # times as fast in one group of steps as in another of the same run
OTHER_WORK = "as under other work on the machine"
SMALLEST_GROUP = 4  # steps, so that one that is slow moves no median
FAR = math.log(2)  # medians so far apart are said of two runs, whatever moved them


@dataclass(frozen=True)
class Throughput:
    """A run's speed, group of neighbouring steps by group. Speeds are tokens a second."""

    steps: int
    middle: float  # of the median step
    groups: tuple[float, ...]  # of the median step of each

    @property
    def mean_log(self) -> float:
        """Mean of the groups' logarithms: being held up to half the speed counts as much as doubling it."""
        return float(np.log(self.groups).mean())

    @property
    def variance(self) -> float:
        """Variance of what this run's level would be on another day.

        Within a run the mean of G groups has the variance of one over G. But loads last, and the day of a run is one
        more draw of them: that machines change between runs as much as within one is the least to be assumed. So the
        variance of a whole group is added.
        """
        return float(np.log(self.groups).var(ddof=1)) * (1 + 1 / len(self.groups))


@dataclass(frozen=True)
class ThroughputTest:
    """One pace against another."""

    ours: Throughput
    theirs: Throughput

    @property
    def apart(self) -> float:
        """Logarithm of how many times as fast the first is, by its groups."""
        return self.ours.mean_log - self.theirs.mean_log

    @property
    def needed(self) -> float:
        """How far apart chance, and loads that come and go, would seldom put them (Welch's t, 5 %, two-sided)."""
        doubts = [pace.variance for pace in (self.ours, self.theirs)]
        if not any(doubts):
            return 0.0
        parts = [
            doubt**2 / (len(pace.groups) - 1) for doubt, pace in zip(doubts, (self.ours, self.theirs), strict=True)
        ]
        return student(max(1, int(sum(doubts) ** 2 / sum(parts)))) * math.sqrt(sum(doubts))

    @property
    def tested(self) -> bool:
        """Whether the groups carry a difference, and the median steps show the same."""
        enough = min(self.ours.steps, self.theirs.steps) >= FEWEST_TESTED
        return enough and abs(self.apart) > self.needed and self.apart * self.middles > 0

    @property
    def is_twofold(self) -> bool:
        """Whether the median steps are so far apart that it is said of the two runs as they were."""
        return abs(self.middles) >= FAR

    @property
    def middles(self) -> float:
        """Logarithm of how many times as fast the first's median step is."""
        return math.log(self.ours.middle / self.theirs.middle)

    @property
    def faster(self) -> bool | None:
        """None where they are not told apart."""
        if self.tested:
            return self.apart > 0
        return self.middles > 0 if self.is_twofold else None

    @property
    def test(self) -> str:
        """In a few words, for whoever sees both medians beside it."""
        if self.is_twofold and not self.tested:
            return f"at least twofold at the median step; but {self.ranges}, {OTHER_WORK}"
        groups = " and ".join(
            str(count) for count in dict.fromkeys(len(one.groups) for one in (self.ours, self.theirs))
        )
        uneven = any(max(pace.groups) > UNEVEN * min(pace.groups) for pace in (self.ours, self.theirs))
        return (
            f"group by group × {math.exp(self.apart):.3g} over {groups} groups of neighbouring steps,"
            f" where Welch's t-test needs × {math.exp(math.copysign(self.needed, self.apart)):.3g}"
            + (f"; but {self.ranges}, {OTHER_WORK}" if uneven else "")
        )

    @property
    def ranges(self) -> str:
        """Between which speeds the groups of each lie."""
        ours, theirs = (f"{min(pace.groups):,.0f} to {max(pace.groups):,.0f}" for pace in (self.ours, self.theirs))
        return f"groups of steps ran at {ours} here and {theirs} there"


def compare_throughput(run: Run, other: Run) -> ThroughputTest | None:
    """None where the two have too few steps to say anything of how far they are apart."""
    ours, theirs = throughput_of(run), throughput_of(other)
    if ours is None or theirs is None:
        return None
    found = ThroughputTest(ours, theirs)
    return found if found.is_twofold or min(ours.steps, theirs.steps) >= FEWEST_TESTED else None


def throughput_of(run: Run) -> Throughput | None:
    """In up to 16 groups. The first step of an attempt, which compiles, moves no median."""
    batch = run.recipe.data.total_batch_tokens
    speeds = [batch / step.seconds for step in run.history.steps if step.seconds > 0]
    if len(speeds) < FEWEST_STEPS:
        return None
    ends = np.linspace(0, len(speeds), min(GROUPS, len(speeds) // SMALLEST_GROUP) + 1).astype(int)
    groups = tuple(median(speeds[start:end]) for start, end in pairwise(ends))
    return Throughput(len(speeds), median(speeds), groups)
