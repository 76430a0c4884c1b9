"""Two models on the same questions: the test is McNemar's, the interval the bootstrap's, checked against scipy."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from regpt.compare.models import verdict
from regpt.stats.paired import Paired, paired, paired_losses


@pytest.mark.parametrize("only", [(0, 0), (1, 0), (5, 5), (3, 12), (40, 61), (300, 380), (2000, 2200), (0, 30)])
def test_the_p_value_is_the_exact_binomial_tests(only: tuple[int, int]) -> None:
    result = Paired(10_042, (3000 + only[0], 3000 + only[1]), only)
    expected = stats.binomtest(only[0], sum(only), 0.5).pvalue if sum(only) else 1.0
    assert result.p_value == pytest.approx(expected, rel=1e-9)


def test_items_are_paired_and_not_only_counted() -> None:
    """Equal accuracies, or equally different ones, are not equally sure."""
    first = np.array([True] * 300 + [False] * 700)
    second = np.array([True] * 280 + [False] * 720)
    agreeing = paired(first, second)
    assert (agreeing.only, agreeing.right, agreeing.difference) == ((20, 0), (300, 280), 0.02)
    disagreeing = paired(first, np.roll(second, 500))
    assert disagreeing.difference == agreeing.difference
    assert agreeing.is_difference
    assert not disagreeing.is_difference


def test_the_interval_holds_the_difference_and_is_as_wide_as_a_normal_one() -> None:
    result = Paired(10_042, (3000, 2900), (700, 600))
    low, high = result.interval()
    width = 1.96 * np.sqrt(700 + 600) / 10_042
    assert low < result.difference < high
    assert (high - low) / 2 == pytest.approx(width, rel=0.05)
    assert result.interval() == (low, high)  # always the same resamples


def test_a_verdict_claims_only_what_the_test_carries() -> None:
    assert verdict(Paired(1000, (300, 280), (20, 0)), "a", "b").endswith(". a is better.")
    assert verdict(Paired(1000, (280, 300), (0, 20)), "a", "b").endswith(". b is better.")
    unsure = verdict(Paired(1000, (300, 295), (105, 100)), "a", "b")
    assert unsure.endswith(". No difference at the 5 % level.")
    assert "a 0.3000, b 0.2950, +0.0050" in unsure


def losses_of(seed: int, windows: int, apart: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of two models on windows that differ much, by `apart` and a little noise."""
    drawn = np.random.default_rng(seed)
    hard = drawn.normal(4.0, 1.0, windows)
    return hard + apart + drawn.normal(0.0, 0.05, windows), hard + drawn.normal(0.0, 0.05, windows)


@pytest.mark.parametrize(("windows", "apart"), [(32, 0.0), (64, 0.01), (64, -0.05), (640, 0.004)])
def test_losses_are_compared_by_groups_of_neighbours_as_scipy_does(windows: int, apart: float) -> None:
    for seed in range(20):
        first, second = losses_of(seed, windows, apart)
        found = paired_losses(first, second)
        theirs = stats.ttest_1samp((first - second).reshape(16, -1).mean(axis=1), 0.0)
        assert found is not None and found.groups == 16
        assert found.difference == pytest.approx(first.mean() - second.mean())
        assert found.difference / found.standard_error == pytest.approx(theirs.statistic)
        assert found.lower == int((first < second).sum())
        if not 0.048 < theirs.pvalue < 0.052:  # the point of Student's t is within 1 %
            assert found.is_difference == (theirs.pvalue < 0.05)


def test_neighbours_that_differ_alike_are_seldom_taken_for_a_difference() -> None:
    """No difference, but each document's four windows differ alike: single windows would find one in a third."""
    drawn = np.random.default_rng(3)
    found = [paired_losses(np.repeat(drawn.normal(0.0, 1.0, 32), 4), np.zeros(128)) for _ in range(400)]
    assert sum(one is not None and one.is_difference for one in found) < 0.08 * len(found)


def test_windows_that_differ_much_do_not_hide_a_small_difference() -> None:
    first, second = losses_of(1, 64, -0.1)
    found = paired_losses(first, second)
    assert found is not None and found.is_difference and found.needed < 0.03
    assert first.std(ddof=1) / 8 > 0.1  # each one's own error would have hidden it


def test_too_few_windows_and_losses_that_are_no_numbers_are_not_compared() -> None:
    assert paired_losses(np.ones(7), np.zeros(7)) is None
    assert paired_losses(np.array([1.0] * 7 + [np.nan]), np.ones(8)) is None
