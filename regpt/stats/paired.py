"""Paired tests of two models: McNemar's test and a bootstrap for accuracy, a paired t-test for losses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from regpt.stats.outcome import LEVEL, Outcome, by_sign

RESAMPLES = 10_000
GROUPS, MIN_GROUPS = 16, 4  # of neighbouring windows
NORMAL = 1.959964  # two-sided 5 % point of the normal distribution
ONE_SIDED = 1.644854  # one-sided 5 % point
POWER = 0.841621  # 80 % point: a test finds a difference of (NORMAL + POWER) errors in four of five cases


@dataclass(frozen=True)
class PairedAccuracyTest:
    """McNemar's test of two models on the same N items."""

    items: int
    right: tuple[int, int]  # by the first model, by the second
    only: tuple[int, int]  # right where the other is wrong
    guessing: float = 0.0  # expected accuracy of a random choice

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

    @property
    def is_near_guessing(self) -> bool:
        """Whether neither model is significantly better than a random choice (one-sided, 5 %, normal approximation)."""
        error = math.sqrt(self.guessing * (1 - self.guessing) / self.items)
        return max(self.right) / self.items <= self.guessing + ONE_SIDED * error

    @property
    def smallest_difference(self) -> float:
        """The accuracy difference that a test of these items finds in four of five cases (Connor 1987, one term).

        It follows from the share of items on which the two models disagree; 0 if they agree on all.
        """
        return (NORMAL + POWER) * math.sqrt(sum(self.only)) / self.items

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the difference, from 10,000 resamples of the items (Efron 1979)."""
        both = self.items - sum(self.only)
        shares = np.array([self.only[0], self.only[1], both]) / self.items
        drawn = np.random.default_rng(seed).multinomial(self.items, shares, size=RESAMPLES)
        low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / self.items, [LEVEL / 2, 1 - LEVEL / 2])
        return float(low), float(high)

    @property
    def outcome(self) -> Outcome:
        return self.outcome_at(self.p_value)

    def outcome_at(self, p_value: float) -> Outcome:
        """Return the outcome at a p-value that was adjusted for several tests."""
        if self.is_near_guessing:
            return Outcome.NOT_TESTED
        return by_sign(self.difference, p_value < LEVEL)


def mcnemar_test(first: NDArray[np.bool_], second: NDArray[np.bool_], guessing: float = 0.0) -> PairedAccuracyTest:
    """Test which items each model got right, both in the same order.  (N), (N)"""
    assert first.shape == second.shape
    return PairedAccuracyTest(
        items=len(first),
        right=(int(first.sum()), int(second.sum())),
        only=(int((first & ~second).sum()), int((second & ~first).sum())),
        guessing=guessing,
    )


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values, so that the chance of any false claim among several tests stays at the level (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


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


@cache
def students_t_threshold(degrees: int) -> float:
    """Return the two-sided 5 % point of Student's t, to nine digits, by bisection."""
    low, high = 1.0, 13.0  # 12.71 for one degree
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if students_t_p_value(middle, degrees) > LEVEL else (low, middle)
    return high


def students_t_p_value(t: float, degrees: int) -> float:
    """Return the two-sided p-value of Student's t: a finite series (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term = cosine if is_odd else 1.0
    total = term if degrees > 1 else 0.0
    for n in range(3 if is_odd else 2, degrees - 1, 2):
        term *= (n - 1) / n * cosine**2
        total += term
    within = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return 1.0 - within
