"""The model: number of parameters, initial weights, causality, and the key-value cache."""

import inspect
import shutil
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from regpt.model.cache import KeyValueCache
from regpt.model.gpt import GPT
from regpt.model.loss import LossOptions
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.settings import load_recipe

SMALL = ModelRecipe(n_layer=2, n_head=2, n_embd=16, block_size=24, mlp_hidden=40)
CLASSIC = replace(SMALL, positions="learned", activation="gelu", normalization="layernorm", bias=True)
EVERY_MIX = [
    replace(SMALL, positions=p, activation=a, normalization=n, bias=b, tied_head=t)  # type: ignore[arg-type]
    for p, a, n, b, t in product(
        ("learned", "rope"), ("gelu", "swiglu"), ("layernorm", "rmsnorm"), (False, True), (False, True)
    )
]


def model_of(recipe: ModelRecipe, seed: int = 1) -> GPT:
    model = GPT(recipe)
    model.initialize(seed)
    return model.eval()


def tokens(recipe: ModelRecipe, length: int) -> torch.Tensor:
    return torch.randint(0, 50_257, (2, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("name", "parameters"), [("gpt2-classic", 124_475_904), ("gpt2-modern", 123_587_328)])
def test_full_size_models_have_the_expected_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = GPT(load_recipe(name).model)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("recipe", EVERY_MIX, ids=str)
def test_recipe_computes_the_parameter_count_of_its_model(recipe: ModelRecipe) -> None:
    with torch.device("meta"):
        model = GPT(recipe)
    assert sum(p.numel() for p in model.parameters()) == recipe.parameters
    products = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embedding" not in n and n != "head.weight"
    )
    assert products + recipe.vocab_size * recipe.n_embd == recipe.matmul_parameters


def test_logits_without_targets_give_the_loss_with_targets() -> None:
    model, x = model_of(SMALL), tokens(SMALL, 25)
    logits = model(x[:, :-1])
    assert logits.shape == (2, 24, SMALL.vocab_size)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
    torch.testing.assert_close(loss, model(x[:, :-1], x[:, 1:]))


@pytest.mark.parametrize("recipe", EVERY_MIX, ids=str)
def test_loss_starts_near_ln_v_and_falls_for_every_mix_of_parts(recipe: ModelRecipe) -> None:
    model = model_of(recipe).train()
    x = tokens(recipe, 25)
    first = model(x[:, :-1], x[:, 1:])
    assert abs(first.item() - 10.826) < 0.3  # ln 50,304
    first.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert model(x[:, :-1], x[:, 1:]) < first


def test_initial_weights_have_the_standard_deviations_of_gpt2() -> None:
    recipe = replace(CLASSIC, n_embd=64, mlp_hidden=256, n_layer=3)
    for name, parameter in model_of(recipe).named_parameters():
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            assert parameter.std().item() == pytest.approx(0.02 * 6**-0.5, rel=0.05)
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.06), name
        else:
            assert torch.all(parameter == (1.0 if name.endswith("norm.weight") else 0.0)), name


def test_initial_weights_depend_on_the_seed_alone() -> None:
    one, same, other = (model_of(SMALL, seed).token_embedding.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("recipe", [SMALL, CLASSIC], ids=["modern", "classic"])
def test_hidden_states_do_not_depend_on_later_tokens(recipe: ModelRecipe) -> None:
    model, x = model_of(recipe), tokens(recipe, 20)
    changed = x.clone()
    changed[:, 12:] = 7
    before, after = model.hidden(x), model.hidden(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("recipe", [SMALL, CLASSIC], ids=["modern", "classic"])
def test_hidden_states_with_a_cache_equal_those_without(recipe: ModelRecipe) -> None:
    model, x = model_of(recipe), tokens(recipe, 24)
    cache = KeyValueCache(recipe, 2, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        pieces = [model.hidden(x[:, :10], cache)]
        pieces += [model.hidden(x[:, i : i + 1], cache) for i in range(10, 24)]
        torch.testing.assert_close(torch.cat(pieces, 1), model.hidden(x), rtol=1e-5, atol=1e-5)


def test_token_losses_average_to_the_mean_loss() -> None:
    model, x = model_of(SMALL), tokens(SMALL, 25)
    losses = model.losses(x[:, :-1], x[:, 1:])
    assert losses.shape == (2, 24)
    torch.testing.assert_close(losses.mean(), model(x[:, :-1], x[:, 1:]).detach())


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_loss_and_gradients_equal_the_eager_ones() -> None:
    model, x = model_of(SMALL).train(), tokens(SMALL, 25)
    found = []
    for function in (model, torch.compile(model)):
        model.zero_grad()
        loss = function(x[:, :-1], x[:, 1:])
        loss.backward()
        found.append(
            [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)]
        )
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


def test_dropout_is_active_in_training_only() -> None:
    model, x = model_of(replace(SMALL, dropout=0.5)), tokens(SMALL, 20)
    assert torch.equal(model.hidden(x), model.hidden(x))
    model.train()
    assert not torch.equal(model.hidden(x), model.hidden(x))


def test_forward_methods_lists_every_method_that_runs_a_complete_pass() -> None:
    """FSDP gathers parameters around these alone; `hidden` and `hidden_at` run inside them. A mask reads none."""
    from_tokens = {
        name
        for name, method in vars(GPT).items()
        if inspect.isfunction(method) and "tokens" in inspect.signature(method).parameters
    }
    assert from_tokens == {"forward", "hidden", "hidden_at", "attention_mask", "cached_mask", *GPT.FORWARD_METHODS}


def test_softcap_reaches_the_loss_the_evaluation_and_the_logits() -> None:
    model = model_of(SMALL)
    inputs, targets = tokens(SMALL, 12), tokens(SMALL, 12).flip(1)
    uncapped = model(inputs, targets).item()
    model.loss_options = LossOptions(softcap=0.01)
    logits = model(inputs)
    assert 0.009 < logits.abs().max() <= 0.01
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
    assert expected != pytest.approx(uncapped, abs=1e-4)
    assert model(inputs, targets).item() == pytest.approx(expected, abs=1e-5)
    assert model.losses(inputs, targets).mean().item() == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        assert model(inputs, targets).item() == pytest.approx(expected, abs=1e-5)
        cache = KeyValueCache(SMALL, 2, torch.float32, torch.device("cpu"))
        assert model.next_logits(inputs, cache).abs().max() <= 0.01
