"""Tests over seeds agree with scipy, are paired where the seeds are the same, and call nulls at the level."""

import math

import numpy as np
import pytest
from scipy import stats

from regpt.stats.outcome import LEVEL, Outcome
from regpt.stats.seeds import MeanDifference, holm_adjusted_tests, paired_difference, seeds_test, welch_difference

OURS = {1: 4.53, 2: 4.61, 3: 4.55}
THEIRS = {1: 4.57, 2: 4.64, 3: 4.60}


def test_paired_difference_is_that_of_scipy() -> None:
    found = paired_difference([-0.03, -0.05, -0.01, -0.04])
    expected = stats.ttest_1samp([-0.03, -0.05, -0.01, -0.04], 0.0)
    assert (found.p_value, *found.interval) == pytest.approx((expected.pvalue, *expected.confidence_interval(0.95)))


@pytest.mark.parametrize("ours", [(4.1, 4.3, 4.2), (4.1, 4.1001), (4.4, 4.9, 4.0, 4.3, 4.2)])
def test_welch_difference_is_that_of_scipy_with_degrees_rounded_down(ours: tuple[float, ...]) -> None:
    theirs = (4.25, 4.45, 4.37)
    found, expected = welch_difference(ours, theirs), stats.ttest_ind(ours, theirs, equal_var=False)
    assert (found.mean / found.error, found.degrees) == pytest.approx((expected.statistic, math.floor(expected.df)))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(expected.statistic), found.degrees))
    assert found.p_value >= expected.pvalue


def test_welch_degrees_of_equal_spreads_are_those_of_students_test() -> None:
    """A rounding error below a whole number must not cost a degree."""
    assert welch_difference([0.1, 0.2, 0.3], [1.1, 1.2, 1.3]).degrees == 4


def test_same_seeds_are_paired_and_others_are_not() -> None:
    paired = seeds_test(OURS, THEIRS, same_windows=True)
    assert paired and paired.is_paired and paired.outcome is Outcome.LOWER
    assert paired.difference == paired_difference([OURS[seed] - THEIRS[seed] for seed in (1, 2, 3)])
    in_other_order = seeds_test(OURS, dict(reversed(THEIRS.items())), same_windows=True)
    assert in_other_order == paired
    for other, same_windows in ((THEIRS, False), ({n + 1: loss for n, loss in THEIRS.items()}, True)):
        independent = seeds_test(OURS, other, same_windows)
        assert independent and not independent.is_paired and independent.outcome is Outcome.INDISTINGUISHABLE
        assert independent.difference == welch_difference([*OURS.values()], [*other.values()])


def test_one_seed_is_not_tested() -> None:
    assert seeds_test({1: 4.0}, THEIRS, same_windows=True) is None
    assert welch_difference([4.0], [*THEIRS.values()]).interval == (-math.inf, math.inf)


def test_several_groups_are_adjusted_together() -> None:
    tests = [seeds_test({n: x - shift for n, x in OURS.items()}, THEIRS, same_windows=True) for shift in (0.0, 0.5)]
    adjusted = holm_adjusted_tests([test for test in tests if test])
    p_values = [test.difference.p_value for test in tests if test]
    assert [test.adjusted_p_value for test in adjusted] == pytest.approx([max(p_values), 2 * min(p_values)])


def test_spread_of_zero_is_certain_unless_the_means_are_equal() -> None:
    assert MeanDifference(0.1, 0.0, 2).p_value == 0.0 and MeanDifference(0.0, 0.0, 2).p_value == 1.0
    assert welch_difference([1.0, 1.0], [1.0, 1.0]).p_value == 1.0


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_welch_calls_at_most_the_level_of_nulls(seeds: int) -> None:
    draws = np.random.default_rng(seeds).normal(0.0, 0.01, (1500, 2, seeds)).tolist()
    called = np.mean([welch_difference(*pair).p_value < LEVEL for pair in draws])
    assert called < LEVEL + 0.01
