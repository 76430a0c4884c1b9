"""Parameter groups, weight decay, and the learning rate schedule."""

from dataclasses import replace

import pytest
import torch

from regpt.model.gpt import GPT
from regpt.optimizer.groups import make_optimizer, parameter_groups
from regpt.optimizer.schedule import learning_rate
from regpt.recipe.settings import load_recipe
from tests.model.test_gpt import CLASSIC, EVERY_MIX


@pytest.mark.parametrize("recipe", EVERY_MIX[:4] + EVERY_MIX[-4:], ids=str)
def test_each_parameter_is_in_one_group_and_only_matrices_decay(recipe) -> None:  # type: ignore[no-untyped-def]
    model = GPT(recipe)
    decayed, undecayed = parameter_groups(model)
    assert {**decayed, **undecayed}.keys() == dict(model.named_parameters()).keys()
    assert not decayed.keys() & undecayed.keys()
    assert all(p.ndim >= 2 for p in decayed.values()) and all(p.ndim == 1 for p in undecayed.values())


def test_parameter_without_a_group_fails_an_assertion() -> None:
    model = GPT(CLASSIC)
    model.token_embedding.weight.requires_grad_(False)
    with pytest.raises(AssertionError, match="exactly one group"):
        parameter_groups(model)


def test_weight_decay_shrinks_matrices_alone_by_rate_times_decay() -> None:
    model = GPT(CLASSIC)
    model.initialize(1)
    recipe = load_recipe("demo-modern")
    optimizer = make_optimizer(model, recipe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        kept = 1 - recipe.optimizer.max_lr * 0.1 if p.ndim >= 2 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * kept)


def test_learning_rate_warms_up_peaks_and_decays_to_the_minimum() -> None:
    recipe = load_recipe("gpt2-modern")
    rates = [learning_rate(step, recipe) for step in range(38_146)]
    assert rates[0] == pytest.approx(1.8e-3 / 285)
    assert rates[284] == rates[285] == pytest.approx(1.8e-3)
    assert rates[(38_146 + 285) // 2] == pytest.approx((1.8e-3 + 1.8e-4) / 2, rel=1e-3)
    assert rates[-1] == pytest.approx(1.8e-4, rel=1e-4)
    assert rates[:285] == sorted(rates[:285]) and rates[285:] == sorted(rates[285:], reverse=True)


def test_learning_rate_without_warm_up_starts_at_the_maximum() -> None:
    recipe = load_recipe("demo-modern", ["optimizer.warmup_steps=0"])
    assert learning_rate(0, recipe) == recipe.optimizer.max_lr
    assert learning_rate(0, replace(recipe)) > learning_rate(100, recipe)


def test_learning_rate_follows_the_cosine_at_every_step_and_is_lowest_at_max_steps() -> None:
    """A short schedule, where one step more or less changes the rate by several percent."""
    settings = ["run.max_steps=8", "optimizer.warmup_steps=2", "optimizer.max_lr=1.0", "optimizer.min_lr=0.2"]
    recipe = load_recipe("demo-modern", settings)
    rates = [learning_rate(step, recipe) for step in range(10)]
    half = 0.5 * 3**0.5  # cos(30 degrees)
    cosines = [1.0, half, 0.5, 0.0, -0.5, -half, -1.0, -1.0]
    assert rates == pytest.approx([0.5, 1.0, *(0.6 + 0.4 * cosine for cosine in cosines)])
