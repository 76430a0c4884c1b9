"""Parameter groups, weight decay, and the learning rate schedule."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from regpt.base.errors import RecipeError
from regpt.model.gpt import GPT
from regpt.optimizer.groups import Method, Role, groups_of_recipe, parameter_groups, role_of, stacked_matrices
from regpt.optimizer.making import make_optimizer
from regpt.optimizer.rates import set_rates
from regpt.optimizer.schedule import GroupKind, learning_rate, multiplier
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.optimization import OptimizerRecipe
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe, override
from tests.helpers.switches import covering_set
from tests.model.test_gpt import CLASSIC, EVERY_MIX

RATES = ["optimizer.embedding_lr=0.3", "optimizer.vector_lr=0.03"]
MUON = ["optimizer.kind=muon", *RATES]


@pytest.mark.parametrize(
    "settings",
    [OptimizerRecipe(), OptimizerRecipe(kind="muon"), OptimizerRecipe(vector_lr=0.1)],
    ids=["adamw", "muon", "own rates"],
)
@pytest.mark.parametrize("model", EVERY_MIX[:2] + EVERY_MIX[-2:] + covering_set(), ids=str)
def test_each_parameter_is_in_one_group_and_only_matrices_decay(model: ModelRecipe, settings: OptimizerRecipe) -> None:
    groups = groups_of_recipe(Recipe(name="x", model=model, optimizer=settings))
    names = [name for group in groups for name in group.parameters]
    with torch.device("meta"):
        assert sorted(names) == sorted(dict(GPT(model).named_parameters()))
    assert sum(group.size for group in groups) == model.parameters
    for group in groups:
        is_decayed = group.name != "vectors"
        no_gates = [p for name, p in group.parameters.items() if "gate" not in name and "router" not in name]
        assert all((p.ndim >= 2) is is_decayed for p in no_gates)
        expected = {"hidden": 0.0 if group.method is Method.MUON else 0.1, "vectors": 0.0}
        assert group.decay == expected.get(group.name, 0.1)


def test_parameter_without_a_group_fails_an_assertion() -> None:
    model = GPT(CLASSIC)
    model.token_embedding.weight.requires_grad_(False)
    with pytest.raises(AssertionError, match="exactly one group"):
        parameter_groups(model, Recipe(name="x"))
    with pytest.raises(AssertionError, match=r"extra\.weight"):
        role_of("extra.weight", 2)


@pytest.mark.parametrize(
    ("name", "dimensions", "role"),
    [
        ("token_embedding.weight", 2, Role.EMBEDDING),
        ("position_embedding.weight", 2, Role.EMBEDDING),
        ("value_embeddings.3.weight", 2, Role.EMBEDDING),
        ("embedding_norm.weight", 1, Role.VECTORS),
        ("head.weight", 2, Role.HEAD),
        ("residual_lambdas", 1, Role.VECTORS),
        ("blocks.0.attention.value_gate.weight", 2, Role.VECTORS),
        ("blocks.0.mlp.router.weight", 2, Role.VECTORS),
        ("blocks.0.attention.qkv.weight", 2, Role.HIDDEN),
        ("blocks.0.attention.qkv.bias", 1, Role.VECTORS),
        ("blocks.0.mlp.experts.down", 3, Role.HIDDEN),
    ],
)
def test_role_follows_from_name_and_number_of_dimensions(name: str, dimensions: int, role: Role) -> None:
    assert role_of(name, dimensions) is role


def test_stacked_matrices_are_those_of_qkv_and_swiglu() -> None:
    gated, plain = ModelRecipe(activation="swiglu"), ModelRecipe(activation="gelu")
    names = ["attention.qkv.weight", "attention.out.weight", "mlp.expand.weight", "mlp.down.weight"]
    assert [stacked_matrices(f"blocks.1.{name}", gated) for name in names] == [(1, 1, 1), (1,), (1, 1), (1,)]
    assert [stacked_matrices(f"blocks.1.{name}", plain) for name in names] == [(1, 1, 1), (1,), (1,), (1,)]
    grouped = ModelRecipe(n_head=12, n_kv_head=4)
    assert stacked_matrices("blocks.1.attention.qkv.weight", grouped) == (3, 1, 1)


def test_groups_of_muon_have_their_own_rates_and_decays() -> None:
    words = [*MUON, "model.tied_head=false", "optimizer.head_lr=0.004", "optimizer.muon_weight_decay=0.05"]
    groups = groups_of_recipe(load_recipe("demo-modern", words))
    assert [(group.name, group.method, group.peak_rate, group.decay) for group in groups] == [
        ("hidden", Method.MUON, 0.02, 0.05),
        ("embedding", Method.ADAMW, 0.3, 0.1),
        ("head", Method.ADAMW, 0.004, 0.1),
        ("vectors", Method.ADAMW, 0.03, 0.0),
    ]
    assert [len(group.parameters) for group in groups] == [16, 1, 1, 9]


def test_rate_of_a_head_that_is_tied_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.head_lr = 0\.004 .* model\.tied_head = true"):
        load_recipe("demo-modern", ["optimizer.head_lr=0.004"])


def test_normuon_without_muon_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.normuon = true needs optimizer\.kind = 'muon', not 'adamw'"):
        load_recipe("demo-modern", ["optimizer.normuon=true"])


def test_adamw_updates_to_the_bit_as_torchs_fused_one() -> None:
    recipe = load_recipe("demo-modern", ["model.n_embd=16", "model.n_head=2", "model.mlp_hidden=32"])
    models = [GPT(recipe.model) for _ in range(2)]
    for model in models:
        model.initialize(1)
    ours = make_optimizer(models[0], recipe)
    groups = [{"params": [p for p in models[1].parameters() if (p.ndim > 1) == matrices]} for matrices in (True, False)]
    settings = recipe.optimizer
    torchs = AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)
    for step in range(3):
        set_rates(ours, step, recipe)
        for group, own in zip(torchs.param_groups, ours.param_groups, strict=True):
            group.update(lr=own["lr"], weight_decay=own["weight_decay"])
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            one.grad = torch.randn_like(one) * 10.0**-step
            other.grad = one.grad.clone()
        ours.step()
        torchs.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
        state, theirs = ours.state[one], torchs.state[other]
        assert set(state) == set(theirs) and all(torch.equal(state[name], theirs[name]) for name in theirs)


def test_adamw_has_two_groups_and_decays_matrices_alone() -> None:
    recipe = load_recipe("demo-modern")
    optimizer = make_optimizer(GPT(recipe.model), recipe)
    assert [len(group["params"]) for group in optimizer.param_groups] == [17, 9]
    for step in (0, 39, 100):
        set_rates(optimizer, step, recipe)
        assert {group["lr"] for group in optimizer.param_groups} == {learning_rate(step, recipe)}
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_rates_follow_the_schedule_at_each_groups_peak() -> None:
    recipe = load_recipe("demo-modern", [*MUON, "optimizer.weight_decay_schedule=lr"])
    optimizer = make_optimizer(GPT(recipe.model), recipe)
    for step in (0, 39, 100):
        share = learning_rate(step, recipe) / recipe.optimizer.max_lr
        set_rates(optimizer, step, recipe)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [0.02 * share, 0.3 * share, 0.03 * share]
        )
        assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0, 0.1 * share, 0])


def test_groups_of_adam_have_the_cooldown_of_adam() -> None:
    words = ["optimizer.schedule=trapezoid", "optimizer.cooldown_steps=100", "optimizer.adam_cooldown_steps=50"]
    recipe = load_recipe("demo-modern", [*MUON, *words])
    optimizer = make_optimizer(GPT(recipe.model), recipe)
    step = recipe.run.max_steps - 70
    set_rates(optimizer, step, recipe)
    hidden, embedding, vectors = (group["lr"] / group["peak_rate"] for group in optimizer.param_groups)
    assert embedding == pytest.approx(1.0) and vectors == pytest.approx(1.0)
    assert hidden == pytest.approx(multiplier(step, recipe, GroupKind.MATRICES)) and hidden < 0.8


def test_momentum_of_muon_rises_linearly_and_stays() -> None:
    recipe = load_recipe("demo-modern", ["optimizer.kind=muon", "optimizer.muon_momentum_warmup_steps=10"])
    optimizer = make_optimizer(GPT(recipe.model), recipe)
    momenta = []
    for step in (0, 5, 10, 50):
        set_rates(optimizer, step, recipe)
        momenta.append(optimizer.param_groups[0]["momentum"])
    assert momenta == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert "momentum" not in optimizer.param_groups[1]


def test_cautious_adamw_decays_only_where_the_update_shrinks() -> None:
    recipe = load_recipe("demo-modern", ["optimizer.cautious_weight_decay=true", "optimizer.max_lr=0.01"])
    layer, plain = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    plain.load_state_dict(layer.state_dict())
    cautious = make_optimizer(layer, recipe)
    without = make_optimizer(plain, override(recipe, ["optimizer.cautious_weight_decay=false"]))
    for group in without.param_groups:
        group["weight_decay"] = 0.0
    for _ in range(3):
        before = layer.weight.detach().clone()
        plain.weight.data.copy_(before)
        layer.weight.grad = torch.randn(8, 8)
        plain.weight.grad = layer.weight.grad.clone()
        cautious.step()
        without.step()
        update = before - plain.weight.detach()
        decayed = torch.where(update * before > 0, before * 0.01 * 0.1, 0.0)
        assert 8 < (decayed != 0).sum() < 56
        torch.testing.assert_close(layer.weight.detach(), plain.weight.detach() - decayed)
    assert cautious.param_groups[0]["weight_decay"] == 0.1


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
