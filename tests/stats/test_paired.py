"""Paired tests of two models agree with scipy."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from regpt.stats.describe import accuracy_test_text
from regpt.stats.outcome import Outcome
from regpt.stats.paired import PairedAccuracyTest, holm_adjusted, mcnemar_test, paired_t_test


@pytest.mark.parametrize("only", [(0, 0), (1, 0), (5, 5), (3, 12), (40, 61), (300, 380), (2000, 2200), (0, 30)])
def test_mcnemar_p_value_is_that_of_the_exact_binomial_test(only: tuple[int, int]) -> None:
    result = PairedAccuracyTest(10_042, (3000 + only[0], 3000 + only[1]), only)
    expected = stats.binomtest(only[0], sum(only), 0.5).pvalue if sum(only) else 1.0
    assert result.p_value == pytest.approx(expected, rel=1e-9)


def test_mcnemar_test_pairs_items_instead_of_counting_them() -> None:
    """Equal accuracies, or equally different ones, are not equally sure."""
    first = np.array([True] * 300 + [False] * 700)
    second = np.array([True] * 280 + [False] * 720)
    agreeing = mcnemar_test(first, second)
    assert (agreeing.only, agreeing.right, agreeing.difference) == ((20, 0), (300, 280), 0.02)
    disagreeing = mcnemar_test(first, np.roll(second, 500))
    assert disagreeing.difference == agreeing.difference
    assert agreeing.outcome is Outcome.HIGHER
    assert disagreeing.outcome is Outcome.INDISTINGUISHABLE


def test_bootstrap_interval_is_as_wide_as_a_normal_one() -> None:
    result = PairedAccuracyTest(10_042, (3000, 2900), (700, 600))
    low, high = result.interval()
    width = 1.96 * np.sqrt(700 + 600) / 10_042
    assert low < result.difference < high
    assert (high - low) / 2 == pytest.approx(width, rel=0.05)
    assert result.interval() == (low, high)  # always the same resamples


def test_accuracy_outcome_follows_from_the_p_value() -> None:
    assert PairedAccuracyTest(1000, (300, 280), (20, 0)).outcome is Outcome.HIGHER
    assert PairedAccuracyTest(1000, (280, 300), (0, 20)).outcome is Outcome.LOWER
    unsure = PairedAccuracyTest(1000, (300, 295), (105, 100))
    assert unsure.outcome is Outcome.INDISTINGUISHABLE
    assert "a: 0.3000; b: 0.2950; difference +0.0050" in accuracy_test_text(unsure, "a", "b", unsure.p_value)
    assert PairedAccuracyTest(1000, (300, 280), (20, 0)).outcome_at(0.06) is Outcome.INDISTINGUISHABLE


def test_accuracies_near_guessing_are_not_called_different() -> None:
    """200 items with four choices: 61 right are no better than guessing (0.25 + 1.64 standard errors), 62 are."""
    assert PairedAccuracyTest(200, (60, 40), (20, 0), guessing=0.25).outcome is Outcome.NOT_TESTED
    assert PairedAccuracyTest(200, (61, 41), (20, 0), guessing=0.25).outcome is Outcome.HIGHER


def test_smallest_difference_is_found_in_four_of_five_cases() -> None:
    random, items, disagreement = np.random.default_rng(3), 2000, 0.2
    smallest = PairedAccuracyTest(items, (900, 900), (200, 200)).smallest_difference
    only = (disagreement + smallest) / 2, (disagreement - smallest) / 2
    draws = random.multinomial(items, [*only, 1 - disagreement], size=400)
    found = [PairedAccuracyTest(items, (900, 900), (int(a), int(b))).outcome is Outcome.HIGHER for a, b, _ in draws]
    assert 0.72 < np.mean(found) < 0.88


def test_p_values_of_several_tasks_are_adjusted_by_holms_rule() -> None:
    assert holm_adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_adjusted([0.5]) == [0.5] and holm_adjusted([]) == []
    assert holm_adjusted([0.4, 0.6]) == pytest.approx([0.8, 0.8])


def losses_of(seed: int, windows: int, apart: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of two models on windows that differ much, by `apart` and a little noise."""
    drawn = np.random.default_rng(seed)
    hard = drawn.normal(4.0, 1.0, windows)
    return hard + apart + drawn.normal(0.0, 0.05, windows), hard + drawn.normal(0.0, 0.05, windows)


@pytest.mark.parametrize(("windows", "apart"), [(32, 0.0), (64, 0.01), (64, -0.05), (640, 0.004)])
def test_paired_t_test_over_groups_of_windows_agrees_with_scipy(windows: int, apart: float) -> None:
    for seed in range(20):
        first, second = losses_of(seed, windows, apart)
        found = paired_t_test(first, second)
        theirs = stats.ttest_1samp((first - second).reshape(16, -1).mean(axis=1), 0.0)
        assert found is not None and found.groups == 16
        assert found.difference == pytest.approx(first.mean() - second.mean())
        assert found.difference / found.standard_error == pytest.approx(theirs.statistic)
        assert found.windows_lower == int((first < second).sum())
        if not 0.048 < theirs.pvalue < 0.052:  # the point of Student's t is within 1 %
            assert found.is_difference == (theirs.pvalue < 0.05)


def test_windows_of_one_document_do_not_count_as_independent() -> None:
    """No difference, but each document's four windows differ alike: single windows would find one in a third."""
    drawn = np.random.default_rng(3)
    found = [paired_t_test(np.repeat(drawn.normal(0.0, 1.0, 32), 4), np.zeros(128)) for _ in range(400)]
    assert sum(one is not None and one.is_difference for one in found) < 0.08 * len(found)


def test_small_difference_is_found_between_very_different_windows() -> None:
    first, second = losses_of(1, 64, -0.1)
    found = paired_t_test(first, second)
    assert found is not None and found.is_difference and found.threshold < 0.03
    assert first.std(ddof=1) / 8 > 0.1  # each one's own error would have hidden it


def test_too_few_windows_and_nan_losses_are_not_tested() -> None:
    assert paired_t_test(np.ones(7), np.zeros(7)) is None
    assert paired_t_test(np.array([1.0] * 7 + [np.nan]), np.ones(8)) is None
