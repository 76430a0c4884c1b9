"""The predicted speed range of a card."""

from dataclasses import replace

import pytest

from regpt.base.cards import find_card
from regpt.base.recipe import Recipe
from regpt.plan.roofline import HIGH, LOW, seconds_per_token, speed_range


def test_speed_range_of_small_models_surrounds_the_formula() -> None:
    model, card = Recipe(name="x").model, find_card("H100")
    formula = 1 / seconds_per_token(model, card)
    assert speed_range(model, card) == pytest.approx((LOW * formula, HIGH * formula))


def test_speed_range_of_large_models_is_a_published_share_of_peak() -> None:
    seven = replace(Recipe(name="x").model, n_layer=32, n_head=32, n_embd=4096, mlp_hidden=11008, tied_head=False)
    low, high = speed_range(seven, find_card("H100"))
    assert low * seven.flops_per_token == pytest.approx(0.30 * 989.4e12)
    assert high * seven.flops_per_token == pytest.approx(0.48 * 989.4e12)
