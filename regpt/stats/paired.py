"""Whether two models that met the same questions or windows differ: McNemar's test, a bootstrap, a paired t-test."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
GROUPS, FEWEST_GROUPS = 16, 4  # of neighbouring windows
LEVEL = 0.05
NORMAL = 1.959964  # two-sided point of the normal distribution at that level


@dataclass(frozen=True)
class Paired:
    """Of N items: how often each of two models was right, and how often only one."""

    items: int
    right: tuple[int, int]
    only: tuple[int, int]  # right where the other is wrong

    @property
    def difference(self) -> float:
        """In accuracy, the first less the second."""
        return (self.only[0] - self.only[1]) / self.items

    @property
    def p_value(self) -> float:
        """Exact, two-sided (McNemar 1947): how likely so uneven a split of the items is on which just one was right,
        if each of the two were as likely to be that one."""
        fewer, apart = min(self.only), sum(self.only)
        ways, total = 1, 0  # binomial coefficients, exactly
        for number in range(fewer + 1):
            total += ways
            ways = ways * (apart - number) // (number + 1)
        return min(1.0, 2 * total / 2**apart)

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % of the differences that 10,000 resamples of the items have (Efron 1979)."""
        both = self.items - sum(self.only)
        shares = np.array([self.only[0], self.only[1], both]) / self.items
        drawn = np.random.default_rng(seed).multinomial(self.items, shares, size=RESAMPLES)
        low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / self.items, [LEVEL / 2, 1 - LEVEL / 2])
        return float(low), float(high)

    @property
    def is_difference(self) -> bool:
        return self.p_value < LEVEL


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """From which items each model got right, in one order.  (N), (N)"""
    assert first.shape == second.shape
    return Paired(
        items=len(first),
        right=(int(first.sum()), int(second.sum())),
        only=(int((first & ~second).sum()), int((second & ~first).sum())),
    )


@dataclass(frozen=True)
class PairedLosses:
    """How two models' losses differ on the same windows."""

    windows: int
    groups: int  # of neighbouring windows, whose means are compared
    difference: float  # mean, nats per token, the first less the second
    standard_error: float  # of that mean, from the groups' spread
    lower: int  # windows on which the first loses less

    @property
    def needed(self) -> float:
        """How large a difference must be that chance would seldom make (paired t-test, 5 %, two-sided)."""
        return student(self.groups - 1) * self.standard_error

    @property
    def is_difference(self) -> bool:
        return abs(self.difference) > self.needed

    @property
    def words(self) -> str:
        return (
            f"{self.difference:+.4f} ± {self.standard_error:.4f} over the same {self.windows:,} windows, lower on"
            f" {self.lower:,} of them; a paired t-test over {self.groups} groups of neighbouring windows needs"
            f" {self.needed:.4f}"
        )


def paired_losses(first: NDArray[np.float64], second: NDArray[np.float64]) -> PairedLosses | None:
    """From each window's loss under each model. (N), (N). None where there are too few windows, or no numbers.

    Neighbouring windows are often of one document and differ alike, so they count as one: the test is over the means
    of up to 16 groups of neighbours (batch means). Over single windows it found differences four times too often.
    """
    assert first.shape == second.shape
    apart = first - second
    groups = min(GROUPS, len(apart) // 2)
    if groups < FEWEST_GROUPS or not np.isfinite(apart).all():
        return None
    means = np.array([part.mean() for part in np.array_split(apart, groups)])
    error = float(means.std(ddof=1)) / math.sqrt(groups)
    return PairedLosses(len(apart), groups, float(apart.mean()), error, int((apart < 0).sum()))


def student(degrees: int) -> float:
    """The two-sided point of Student's t at 5 % (Abramowitz and Stegun 1964, 26.7.5), within 1 % from 3 degrees on."""
    z, n = NORMAL, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
