"""The mixture of experts: routing, the product of each expert, gradients, load and balance, compilation."""

import contextlib
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regpt.base.errors import RecipeError
from regpt.cli.main import main
from regpt.model import moe
from regpt.model.cache import KeyValueCache
from regpt.model.gpt import GPT, MLP
from regpt.model.moe import MixtureOfExperts, balance_experts, balances, expert_loads, mixtures
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.settings import load_recipe

SMALL = ModelRecipe(n_layer=2, n_head=2, n_embd=16, block_size=24, mlp_hidden=24, experts=4)
MIXES = {
    "two of four": SMALL,
    "one of four": replace(SMALL, experts_per_token=1),
    "all": replace(SMALL, experts=3, experts_per_token=3),
    "shared expert": replace(SMALL, shared_experts=1),
    "gelu": replace(SMALL, activation="gelu", shared_experts=1),
}


def model_of(recipe: ModelRecipe) -> GPT:
    model = GPT(recipe)
    model.initialize(1)
    return model


def mixture_of(recipe: ModelRecipe) -> MixtureOfExperts:
    """Return a mixture with large weights, so that its router chooses clearly."""
    torch.manual_seed(2)
    mixture = MixtureOfExperts(recipe, MLP(recipe) if recipe.shared_experts else None)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixture


def tokens(recipe: ModelRecipe, length: int) -> Tensor:
    return torch.randint(0, 50_257, (2, length), generator=torch.Generator().manual_seed(3))


def expected_output(mixture: MixtureOfExperts, recipe: ModelRecipe, token: Tensor) -> Tensor:
    """Compute one token as the papers write it, expert by expert."""
    scores = torch.sigmoid(mixture.router.weight @ token)
    best = sorted(range(recipe.experts), key=lambda e: -float(scores[e] + mixture.balance[e]))
    best = best[: recipe.experts_per_token]
    total = sum(scores[e] for e in best) if len(best) > 1 else 1.0
    result = torch.zeros_like(token)
    for e in best:
        expert = MLP(recipe)
        expert.expand.weight.data, expert.down.weight.data = mixture.expand.weight[e].data, mixture.down.weight[e].data
        result = result + scores[e] / total * expert(token)
    return result + (mixture.shared(token) if mixture.shared is not None else 0.0)


@pytest.mark.parametrize("recipe", MIXES.values(), ids=MIXES)
def test_mixture_of_experts_computes_what_the_papers_define(recipe: ModelRecipe) -> None:
    mixture = mixture_of(recipe)
    mixture.balance.copy_(torch.linspace(-0.3, 0.3, recipe.experts))
    x = torch.randn(2, 7, recipe.n_embd)
    with torch.no_grad():
        expected = torch.stack([expected_output(mixture, recipe, token) for token in x.flatten(0, 1)])
        torch.testing.assert_close(mixture(x).flatten(0, 1), expected)


def test_gradients_of_a_mixture_equal_numerical_ones() -> None:
    recipe = replace(SMALL, n_embd=4, mlp_hidden=3, activation="gelu")  # swiglu's backward pass runs once only
    mixture = mixture_of(recipe).double()
    names = [name for name, _ in mixture.named_parameters()]
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)

    def outputs(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(mixture, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, (x, *mixture.parameters()))


@pytest.mark.parametrize("recipe", MIXES.values(), ids=MIXES)
def test_every_weight_of_a_mixture_gets_a_gradient(recipe: ModelRecipe) -> None:
    """The router's too, with one expert per token, and the weights of an expert without tokens, whose gradient is 0."""
    model, x = model_of(recipe), tokens(recipe, 25)
    mixture = mixtures(model)["blocks.0.mlp"]
    if recipe.experts > recipe.experts_per_token:
        mixture.balance[0] = -9.0
    model(x[:, :-1], x[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    if recipe.experts > recipe.experts_per_token:
        assert mixture.expand.weight.grad is not None and not mixture.expand.weight.grad[0].any()


def test_grouped_product_equals_a_product_per_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = mixture_of(SMALL).bfloat16()
    x = torch.randn(3, 9, 16, dtype=torch.bfloat16)
    found = []
    for is_grouped in (True, False):
        monkeypatch.setattr(moe, "has_grouped_product", lambda kind, answer=is_grouped: answer)
        mixture.zero_grad()
        mixture(x).float().square().sum().backward()
        found.append([parameter.grad for parameter in mixture.parameters()])
    assert moe.try_grouped_product("cpu")
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_torch_without_grouped_products_computes_expert_by_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.delattr("torch.nn.functional.grouped_mm")
        patched.setattr(moe, "GROUPED_PRODUCTS", {})
        assert not moe.has_grouped_product("cpu")
        mixture = mixture_of(SMALL).bfloat16()
        assert mixture(torch.randn(1, 3, 16, dtype=torch.bfloat16)).isfinite().all()


def test_trying_the_grouped_product_does_not_disturb_recomputation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass of a process tries it, inside a block whose saved tensors are counted."""
    monkeypatch.setattr(moe, "GROUPED_PRODUCTS", {})
    x = torch.randn(1, 5, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = checkpoint(mixture_of(SMALL), x, use_reentrant=False)
    outputs.float().sum().backward()
    assert x.grad is not None and x.grad.any()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"experts": 1}, ["model.experts = 1"]),
        ({"experts": -4}, ["model.experts = -4"]),
        ({"experts": 2, "experts_per_token": 3}, ["model.experts_per_token = 3", "model.experts = 2"]),
        ({"experts": 4, "experts_per_token": 0}, ["model.experts_per_token = 0", "model.experts = 4"]),
        ({"experts": 0, "shared_experts": 1}, ["model.shared_experts = 1", "model.experts"]),
        ({"experts": 4, "shared_experts": 2}, ["model.shared_experts = 2"]),
        ({"experts": 4, "expert_balance_rate": -0.1}, ["model.expert_balance_rate = -0.1"]),
    ],
)
def test_impossible_mixture_is_refused_with_its_values(settings: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe("demo-modern", [f"model.{name}={value}" for name, value in settings.items()])
    (problem,) = refused.value.problems
    assert all(value in problem.text for value in named)


def test_recipe_counts_total_and_active_parameters_of_experts() -> None:
    for recipe in MIXES.values():
        model = GPT(recipe)
        assert sum(p.numel() for p in model.parameters()) == recipe.parameters
        idle = sum(
            part.weight[recipe.experts_per_token :].numel()
            for part in model.modules()
            if isinstance(part, moe.ExpertLinear)
        )
        assert recipe.parameters - idle == recipe.active_parameters
        dense = replace(recipe, experts=0, shared_experts=0)
        mlps = recipe.experts_per_token + recipe.shared_experts - 1
        per_layer = mlps * recipe.mlp_parameters + recipe.experts * recipe.n_embd
        assert recipe.matmul_parameters == dense.matmul_parameters + recipe.n_layer * per_layer
        assert recipe.flops_per_token == dense.flops_per_token + 6 * recipe.n_layer * per_layer


def test_recipe_show_and_plan_print_total_and_active_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["demo-modern", "model.experts=8", "model.shared_experts=1"]
    model = load_recipe(settings[0], settings[1:]).model
    assert main(["recipe", "show", *settings]) == 0
    assert main(["plan", *settings, "--gpu", "h100"]) == 0
    for printed in capsys.readouterr().out.split("# Derived values")[1].split("Model: "):
        assert f"{model.parameters:,}" in printed and f"{model.active_parameters:,}" in printed
    assert 0.4 < model.active_parameters / model.parameters < 0.95


def test_load_is_set_by_passes_with_gradients_only_and_not_doubled_by_recomputation() -> None:
    model, x = model_of(SMALL), tokens(SMALL, 25)
    model(x[:, :-1], x[:, 1:]).backward()
    loads = expert_loads(model)
    assert loads is not None and loads.sum(1).tolist() == [2 * 48, 2 * 48]
    model.activation_checkpointing = True
    model(x[:, :-1], x[:, 1:]).backward()
    again = expert_loads(model)
    model.losses(x[:, :-5], x[:, 1:-4])
    evaluated = expert_loads(model)
    assert again is not None and torch.equal(loads, again) and evaluated is not None and torch.equal(loads, evaluated)
    assert expert_loads(GPT(replace(SMALL, experts=0))) is None


def test_balance_moves_against_the_load_by_its_rate() -> None:
    model = model_of(SMALL)
    balance_experts(model, torch.tensor([[9, 5, 3, 3], [5, 5, 5, 5]]), 0.5)
    first, second = balances(model).values()
    assert first.tolist() == [-0.5, 0.0, 0.5, 0.5] and not second.any()
    assert not any(balance.requires_grad for balance in balances(model).values())


def test_planted_imbalance_is_corrected_by_the_balance_alone() -> None:
    """The router is never trained here, and prefers the first expert for every token."""
    mixture = mixture_of(SMALL)
    x = torch.randn(1, 400, 16)
    mixture.router.weight.data[0] = 0.0
    mixture.router.weight.data[1:] *= 0.2
    x[..., 0], mixture.router.weight.data[0, 0] = 5.0, 0.5
    mixture(x)
    assert mixture.load[0] == 400
    for _ in range(300):
        mixture(x)
        balance_experts(mixture, mixture.load[None], 5e-3)
    assert mixture.load.sum() == 800 and (mixture.load - 200).abs().max() < 20
    without = mixture_of(SMALL)
    without.load_state_dict(mixture.state_dict() | {"balance": torch.zeros(4)})
    without(x)
    assert without.load[0] == 400


def test_hidden_states_of_a_mixture_with_a_cache_equal_those_without() -> None:
    model, x = model_of(replace(SMALL, shared_experts=1)).eval(), tokens(SMALL, 24)
    cache = KeyValueCache(SMALL, 2, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        pieces = [model.hidden(x[:, :10], cache), *(model.hidden(x[:, i : i + 1], cache) for i in range(10, 24))]
        torch.testing.assert_close(torch.cat(pieces, 1), model.hidden(x), rtol=1e-5, atol=1e-5)


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_compiled_mixture_equals_the_eager_one_and_compiles_once(backend: str, bfloat16: bool) -> None:
    """With other loads in each pass. In bfloat16 with grouped products, and recomputed in the backward pass."""
    mixture = mixture_of(replace(SMALL, shared_experts=1))
    torch._dynamo.reset()

    def recomputed(x: Tensor) -> Tensor:
        result: Tensor = checkpoint(mixture, x, use_reentrant=False)
        return result

    eager_one = recomputed if bfloat16 else mixture
    compiled = torch.compile(eager_one, backend=backend)
    cast = torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext()
    tolerance = {"rtol": 2e-2, "atol": 0.2} if bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for batch in range(3):
        x = torch.randn(2, 25, 16, generator=torch.Generator().manual_seed(batch)).requires_grad_()
        found = []
        for function in (eager_one, compiled):
            mixture.zero_grad()
            with torch.compiler.set_stance("fail_on_recompile" if batch else "default"), cast:
                outputs = function(x)
            outputs.float().square().mean().backward()
            gradients = [parameter.grad for parameter in mixture.parameters()]
            found.append([outputs.detach(), *gradients, mixture.load.clone()])
        for eager, other in zip(*found, strict=True):
            torch.testing.assert_close(other, eager, **tolerance)
