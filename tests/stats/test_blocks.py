"""Errors that several recipes share: false calls stay at the level, and three seeds find what they should."""

import math

import numpy as np
import pytest

from regpt.stats.blocks import MIN_RECIPES, common_variance, differences_in_blocks, digamma, trigamma, trigamma_inverse
from regpt.stats.outcome import LEVEL
from regpt.stats.seeds import paired_difference

special = pytest.importorskip("scipy.special")


@pytest.mark.parametrize("x", [0.5, 1.0, 1.5, 3.7, 40.0])
def test_polygamma_functions_are_those_of_scipy(x: float) -> None:
    assert digamma(x) == pytest.approx(special.digamma(x), abs=1e-9)
    assert trigamma(x) == pytest.approx(special.polygamma(1, x), rel=1e-9)
    assert trigamma_inverse(trigamma(x)) == pytest.approx(x, rel=1e-8)


def share_called(spreads: np.ndarray, effect: float = 0.0, repetitions: int = 400) -> np.ndarray:
    """Return for each arm but the first how often it is called; `effect` is in standard errors of a difference."""
    rng, calls = np.random.default_rng(1), np.zeros(len(spreads) - 1)
    for _ in range(repetitions):
        losses = rng.normal(0.0, 1.0, (len(spreads), 3)) * spreads[:, None] + rng.normal(0.0, 3.0, 3)
        losses[1:] += effect * math.sqrt(2 / 3)
        calls += [one.p_value < LEVEL for one in differences_in_blocks(losses.tolist())]
    return calls / repetitions


@pytest.mark.parametrize("recipes", [MIN_RECIPES, 21])
def test_nulls_of_equal_spread_are_called_at_the_level(recipes: int) -> None:
    """400 ablations of three seeds; a paired t-test of each arm alone has the same level."""
    assert 0.025 < share_called(np.ones(recipes)).mean() < 0.06


def test_nulls_of_unequal_spread_are_called_about_at_the_level() -> None:
    """Spreads that differ from arm to arm by factors of e, as if by chance."""
    spreads = np.exp(np.random.default_rng(2).normal(0.0, 0.7, 21))
    spreads[0] = 1.0
    assert 0.02 < share_called(spreads).mean() < 0.06


def test_wild_arm_hides_no_other_and_is_not_called_too_often_itself() -> None:
    spreads = np.ones(21)
    spreads[-1] = 30.0
    nulls = share_called(spreads)
    assert nulls.mean() < 0.06 and nulls[-1] < 0.08
    assert share_called(spreads, effect=6.0)[:-1].mean() > 0.9


def test_three_seeds_find_an_effect_that_a_paired_t_test_of_one_arm_misses() -> None:
    """An effect of four standard errors, found by 9 of 10 ablations and by a third of the tests of a single arm."""
    assert share_called(np.ones(21), effect=4.0).mean() > 0.9
    rng = np.random.default_rng(3)
    noise = rng.normal(0.0, 1.0, (2000, 3)) * math.sqrt(2) + 4.0 * math.sqrt(2 / 3)
    assert np.mean([paired_difference(row).p_value < LEVEL for row in noise.tolist()]) < 0.6


def test_effect_of_a_seed_on_all_arms_is_no_noise() -> None:
    rng = np.random.default_rng(4)
    losses = rng.normal(0.0, 0.01, (8, 3))
    shifted = losses + np.array([5.0, -3.0, 1.0])
    for one, other in zip(differences_in_blocks(losses.tolist()), differences_in_blocks(shifted.tolist()), strict=True):
        assert (one.mean, one.error, one.degrees) == pytest.approx((other.mean, other.error, other.degrees))


def test_variances_that_agree_are_one_and_those_that_do_not_keep_apart() -> None:
    rng = np.random.default_rng(6)
    same = common_variance((rng.chisquare(2, 2000) / 2 * 4.0).tolist(), 2)
    assert same.degrees > 50 and same.value == pytest.approx(4.0, rel=0.1)
    scaled = rng.chisquare(2, 4000) / 2 * 4.0 / (rng.chisquare(6, 4000) / 6)
    apart = common_variance(scaled.tolist(), 2)
    assert apart.degrees == pytest.approx(6.0, rel=0.3) and apart.value == pytest.approx(4.0, rel=0.15)


def test_equal_losses_have_no_effect() -> None:
    found = differences_in_blocks([[1.0, 2.0, 3.0]] * 7)
    assert all((one.mean, one.p_value) == (0.0, 1.0) for one in found)
