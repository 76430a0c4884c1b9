"""Weights in float16 change a text only where two tokens are almost equally likely, and nothing else of a model."""

from dataclasses import replace

import pytest
import torch

from regpt.evaluation.sampling import generate
from regpt.export.precision import Precision
from regpt.generation import half_weights
from regpt.generation.drawing import Sampling
from regpt.generation.half_weights import HalfLinear, has_half_products, with_half_weights
from tests.model.test_gpt import CLASSIC, SMALL, model_of, tokens

needs_products = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"), reason="torch multiplies by float16 on x86 only"
)
RECIPES = [SMALL, CLASSIC, replace(SMALL, qkv_bias=True, tied_head=False), replace(SMALL, logit_softcap=15.0)]


@needs_products
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_logits_move_by_no_more_than_rounding_the_weights_explains(recipe: object) -> None:
    model = model_of(recipe)  # type: ignore[arg-type]
    with torch.no_grad():
        exact, rounded = model(tokens(model.recipe, 20)), with_half_weights(model)(tokens(model.recipe, 20))
    moved = (exact - rounded).abs().max() / exact.std()
    assert 1e-6 < moved < Precision.FLOAT16.bound


@needs_products
def test_model_stays_as_it_is_and_shares_its_other_tensors() -> None:
    model = model_of(SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    half = with_half_weights(model)
    assert {name: tensor.equal(before[name]) for name, tensor in model.state_dict().items()} == dict.fromkeys(
        before, True
    )
    assert half.token_embedding.weight is model.token_embedding.weight and half.rotations is model.rotations
    assert sum(isinstance(part, HalfLinear) for part in half.modules()) == 4 * SMALL.n_layer + 1


@needs_products
def test_row_of_a_product_does_not_depend_on_the_other_rows() -> None:
    layer, rows = HalfLinear(torch.randn(50, 30)), torch.randn(9, 30)
    assert torch.cat([layer(row[None]) for row in rows]).equal(layer(rows))


@needs_products
def test_greedy_text_of_a_batch_is_that_of_each_row() -> None:
    half, prompts = with_half_weights(model_of(SMALL)), tokens(SMALL, 5)
    together = generate(half, prompts, 30, Sampling(temperature=0.0))
    alone = [generate(half, prompt[None], 30, Sampling(temperature=0.0)) for prompt in prompts]
    assert together.equal(torch.cat(alone))


@needs_products
@pytest.mark.parametrize("value", [1e5, float("nan"), float("inf")])
def test_layer_that_float16_cannot_hold_stays_in_float32(value: float) -> None:
    model = model_of(SMALL)
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[0, 0] = value  # type: ignore[union-attr, index]
    half = with_half_weights(model)
    assert half.blocks[1].mlp.down.weight is model.blocks[1].mlp.down.weight  # type: ignore[union-attr]
    assert sum(isinstance(part, HalfLinear) for part in half.modules()) == 4 * SMALL.n_layer


def test_model_is_used_as_it_is_where_torch_has_no_such_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("This PyTorch installation was not built with FBGEMM operators")

    monkeypatch.setattr(half_weights, "HalfLinear", missing)
    has_half_products.cache_clear()
    model = model_of(SMALL)
    try:
        assert with_half_weights(model) is model
    finally:
        has_half_products.cache_clear()


def test_model_in_another_precision_is_used_as_it_is() -> None:
    model = model_of(SMALL).double()
    assert with_half_weights(model) is model
