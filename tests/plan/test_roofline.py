"""The predicted speed range of a card."""

from dataclasses import replace

import pytest

from regpt.base.cards import find_card
from regpt.plan.estimate import Hardware, estimate
from regpt.plan.published_speeds import published_speeds
from regpt.plan.roofline import HIGH, LOW, parts_per_token, seconds_per_token, speed_range
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe


def test_speed_range_of_small_models_surrounds_the_formula() -> None:
    model, card = Recipe(name="x").model, find_card("H100")
    formula = 1 / seconds_per_token(model, card)
    assert speed_range(model, card) == pytest.approx((LOW * formula, HIGH * formula))


def test_speed_range_of_large_models_is_a_published_share_of_peak() -> None:
    seven = replace(Recipe(name="x").model, n_layer=32, n_head=32, n_embd=4096, mlp_hidden=11008, tied_head=False)
    low, high = speed_range(seven, find_card("H100"))
    assert low * seven.flops_per_token == pytest.approx(0.30 * 989.4e12)
    assert high * seven.flops_per_token == pytest.approx(0.48 * 989.4e12)


@pytest.mark.parametrize(("name", "compiled", "uncompiled"), [("H100", 12, 26), ("V100 16GB", 24, 20)])
def test_loss_traffic_depends_on_compilation_and_precision(name: str, compiled: int, uncompiled: int) -> None:
    model, card = Recipe(name="x").model, find_card(name)
    for is_compiled, per_logit in ((True, compiled), (False, uncompiled)):
        seconds = parts_per_token(model, card, is_compiled).loss
        assert seconds == pytest.approx(per_logit * model.vocab_size / card.bandwidth)


def test_run_without_compilation_is_estimated_to_be_slower() -> None:
    recipe, hardware = load_recipe("gpt2-modern"), Hardware(find_card("H100"))
    uncompiled = load_recipe("gpt2-modern", ["run.compile=off"])
    speeds = [estimate(one, 1, hardware).tokens_per_second.optimistic for one in (recipe, uncompiled)]  # type: ignore[union-attr]
    seconds = 14 * recipe.model.vocab_size / hardware.card.bandwidth / HIGH
    assert 1 / speeds[1] - 1 / speeds[0] == pytest.approx(seconds)


def test_published_speeds_of_a_card_are_those_of_models_as_large() -> None:
    model = load_recipe("gpt2-modern").model
    found = [(speed.project, speed.tokens_per_second) for speed in published_speeds(find_card("H100"), model)]
    assert found == [("modded-nanogpt", 450_000), ("Jjschwartz", 380_800), ("Jjschwartz", 350_000)]
    assert not published_speeds(find_card("RTX 3060"), model)
    assert not published_speeds(find_card("H100"), load_recipe("demo-modern").model)
