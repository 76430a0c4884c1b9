"""Paired tests of two models: McNemar's test and a bootstrap for accuracy, a paired t-test for losses."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regpt.stats.outcome import LEVEL, Outcome, by_sign

RESAMPLES = 10_000
GROUPS, MIN_GROUPS = 16, 4  # of neighbouring windows
NORMAL = 1.959964  # two-sided 5 % point of the normal distribution


@dataclass(frozen=True)
class PairedAccuracyTest:
    """McNemar's test of two models on the same N items."""

    items: int
    right: tuple[int, int]  # by the first model, by the second
    only: tuple[int, int]  # right where the other is wrong

    @property
    def difference(self) -> float:
        """Accuracy of the first minus that of the second."""
        return (self.only[0] - self.only[1]) / self.items

    @property
    def p_value(self) -> float:
        """Exact two-sided p-value (McNemar 1947): a binomial test on the items that only one model got right."""
        fewer, either = min(self.only), sum(self.only)
        ways, total = 1, 0  # binomial coefficients, exactly
        for number in range(fewer + 1):
            total += ways
            ways = ways * (either - number) // (number + 1)
        return min(1.0, 2 * total / 2**either)

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the difference, from 10,000 resamples of the items (Efron 1979)."""
        both = self.items - sum(self.only)
        shares = np.array([self.only[0], self.only[1], both]) / self.items
        drawn = np.random.default_rng(seed).multinomial(self.items, shares, size=RESAMPLES)
        low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / self.items, [LEVEL / 2, 1 - LEVEL / 2])
        return float(low), float(high)

    @property
    def is_difference(self) -> bool:
        return self.p_value < LEVEL

    @property
    def outcome(self) -> Outcome:
        return by_sign(self.difference, self.is_difference)


def mcnemar_test(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> PairedAccuracyTest:
    """Test which items each model got right, both in the same order.  (N), (N)"""
    assert first.shape == second.shape
    return PairedAccuracyTest(
        items=len(first),
        right=(int(first.sum()), int(second.sum())),
        only=(int((first & ~second).sum()), int((second & ~first).sum())),
    )


@dataclass(frozen=True)
class PairedLossTest:
    """Paired t-test of two models' losses on the same windows."""

    windows: int
    groups: int  # of neighbouring windows, whose means are compared
    difference: float  # mean of the first minus the second, nats per token
    standard_error: float  # of that mean, from the spread of the groups
    windows_lower: int  # windows on which the first has the lower loss

    @property
    def threshold(self) -> float:
        """The smallest significant difference, two-sided at 5 %."""
        return students_t_threshold(self.groups - 1) * self.standard_error

    @property
    def is_difference(self) -> bool:
        return abs(self.difference) > self.threshold

    @property
    def outcome(self) -> Outcome:
        return by_sign(self.difference, self.is_difference)


def paired_t_test(first: NDArray[np.float64], second: NDArray[np.float64]) -> PairedLossTest | None:
    """Test each window's loss under two models.  (N), (N)

    Returns None for fewer than 8 windows and for losses that are NaN or infinite. Neighbouring windows often belong to
    one document and differ alike, so the test uses the means of up to 16 groups of neighbours (batch means). A test
    over single windows found differences between equal models four times too often.
    """
    assert first.shape == second.shape
    differences = first - second
    groups = min(GROUPS, len(differences) // 2)
    if groups < MIN_GROUPS or not np.isfinite(differences).all():
        return None
    means = np.array([part.mean() for part in np.array_split(differences, groups)])
    error = float(means.std(ddof=1)) / math.sqrt(groups)
    return PairedLossTest(len(differences), groups, float(differences.mean()), error, int((differences < 0).sum()))


def students_t_threshold(degrees: int) -> float:
    """The two-sided 5 % point of Student's t (Abramowitz and Stegun 1964, 26.7.5), within 1 % from 3 degrees on."""
    z, n = NORMAL, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
