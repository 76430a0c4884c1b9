"""Differences of several recipes from one, all trained with the same seeds, with errors that share information.

Three seeds say little about the spread of one recipe, but those of twenty recipes together say much. The seeds are
blocks (Fisher 1935, The Design of Experiments): what a seed does to all recipes is subtracted, by the median. The
variance of what is left is estimated for each recipe, and drawn towards the common one as far as the recipes agree on
it (Smyth 2004, Linear Models and Empirical Bayes Methods). A recipe whose variance is ten times the
common one keeps its own.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from regpt.stats.seeds import ROUNDING, MeanDifference

MIN_RECIPES = 6  # with fewer, each difference has its own spread: `paired_difference`
WILD = 10.0  # times the common variance, which chance alone exceeds in 1 of 20,000 recipes with three seeds
SMALLEST_SHARE = 1e-5  # of the median variance; smaller ones count as that (as in Smyth's limma)
SERIES_FROM = 8.0  # the asymptotic series of the polygamma functions have ten digits from here on


@dataclass(frozen=True)
class CommonVariance:
    """What the recipes' variances have in common: its value, and the degrees of freedom that it is worth."""

    value: float
    degrees: float  # infinite where all recipes seem to have the same variance

    def drawn(self, variance: float, degrees: int) -> float:
        """Return the variance of a recipe, drawn towards the common one."""
        if math.isinf(self.degrees):
            return self.value
        return (self.degrees * self.value + degrees * variance) / (self.degrees + degrees)


def differences_in_blocks(losses: Sequence[Sequence[float]]) -> list[MeanDifference]:
    """Return the differences of all other recipes from the first.  losses: (recipes, seeds) -> recipes - 1 of them

    Needs MIN_RECIPES recipes and two seeds.
    """
    recipes, seeds = len(losses), len(losses[0])
    assert recipes >= MIN_RECIPES and seeds > 1
    freedom = (
        (seeds - 1) * (recipes - 1) / recipes
    )  # of the residuals of one recipe: the effects of seeds are estimated
    variances = [math.fsum(x * x for x in row) / freedom for row in residuals(losses)]
    common = common_variance(variances, seeds - 1)
    shared = int(min(common.degrees + seeds - 1, (seeds - 1) * (recipes - 1)) + ROUNDING)
    means = [statistics.fmean(row) for row in losses]
    base = common.drawn(variances[0], seeds - 1)
    found = []
    for mean, variance in zip(means[1:], variances[1:], strict=True):
        is_wild = variance > WILD * common.value
        own = variance if is_wild else common.drawn(variance, seeds - 1)
        error = math.sqrt((own + base) / seeds)
        found.append(MeanDifference(mean - means[0], error, seeds - 1 if is_wild else shared))
    return found


def residuals(losses: Sequence[Sequence[float]]) -> list[list[float]]:
    """Subtract from each loss the mean of its recipe and the median effect of its seed.  (recipes, seeds) -> same"""
    centered = [[loss - statistics.fmean(row) for loss in row] for row in losses]
    effects = [statistics.median(column) for column in zip(*centered, strict=True)]
    middle = statistics.fmean(effects)
    return [[loss - effect + middle for loss, effect in zip(row, effects, strict=True)] for row in centered]


def common_variance(variances: Sequence[float], degrees: int) -> CommonVariance:
    """Fit a scaled F distribution to variances of `degrees` degrees of freedom each, by moments of their logarithms.

    Source: Smyth 2004, section 6.2.
    """
    floor = SMALLEST_SHARE * statistics.median(variances)
    if not floor:
        return CommonVariance(statistics.fmean(variances), 0.0)
    half = degrees / 2
    logs = [math.log(max(variance, floor)) - digamma(half) + math.log(half) for variance in variances]
    spread = statistics.variance(logs) - trigamma(half)
    if spread <= 0:
        return CommonVariance(math.exp(statistics.fmean(logs)), math.inf)
    prior = trigamma_inverse(spread)
    return CommonVariance(math.exp(statistics.fmean(logs) + digamma(prior) - math.log(prior)), 2 * prior)


def digamma(x: float) -> float:
    """Return the derivative of log gamma (Abramowitz and Stegun 1964, 6.3.5 and 6.3.18)."""
    if x < SERIES_FROM:
        return digamma(x + 1) - 1 / x
    y = 1 / x**2
    return math.log(x) - 1 / (2 * x) - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y / 240)))


def trigamma(x: float) -> float:
    """Return the second derivative of log gamma (Abramowitz and Stegun 1964, 6.4.6 and 6.4.12)."""
    if x < SERIES_FROM:
        return trigamma(x + 1) + 1 / x**2
    y = 1 / x**2
    return 1 / x + y / 2 + y / x * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y / 30)))


def trigamma_inverse(value: float) -> float:
    """Return the x > 0 with trigamma(x) = value > 0, by bisection of its logarithm."""
    low, high = -20.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if trigamma(math.exp(middle)) > value else (low, middle)
    return math.exp(high)
