"""What is reckoned follows from counts that are held against the real thing, and docs/scale.md shows just that."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.scale import table
from regpt.base.recipe import ModelRecipe, Recipe
from regpt.model.gpt import GPT
from regpt.model.optimizer import make_optimizer
from regpt.results.reckoning import H100, activation_bytes, bytes_sent, compute_seconds, memory, reckon

MODERN = ModelRecipe(n_embd=128, n_head=2, mlp_hidden=352, block_size=64)
CLASSIC = replace(MODERN, positions="learned", activation="gelu", normalization="layernorm", bias=True, mlp_hidden=512)


def kept_by_autograd(model: GPT, sequences: int) -> int:
    """Bytes of all tensors but the weights that a forward pass in bfloat16 leaves for the backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros(sequences, model.recipe.block_size + 1, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model(tokens[:, :-1], tokens[:, 1:])
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("recipe", [MODERN, CLASSIC])
def test_activations_are_what_autograd_keeps(recipe: ModelRecipe) -> None:
    kept = {
        (layers, sequences): kept_by_autograd(GPT(replace(recipe, n_layer=layers)), sequences)
        for layers in (1, 3)
        for sequences in (1, 3)
    }
    # what grows with both: without the casts of weights and what lies outside the blocks
    of_both = kept[3, 3] - kept[3, 1] - kept[1, 3] + kept[1, 1]
    a_token_and_layer = of_both / (2 * 2 * recipe.block_size)
    assert activation_bytes(Recipe(name="x", model=recipe)) == pytest.approx(a_token_and_layer, rel=0.1)


def test_state_is_what_a_model_and_its_optimizer_hold() -> None:
    recipe = Recipe(name="x", model=MODERN)
    model = GPT(MODERN)
    optimizer = make_optimizer(model, recipe)
    tokens = torch.zeros(1, 9, dtype=torch.int64)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    held = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    held += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert memory(recipe, 1, 1, 1, sharded=False).state == sum(tensor.nbytes for tensor in held)
    assert memory(recipe, 8, 1, 1, sharded=True).state == sum(tensor.nbytes for tensor in held) / 8


def test_more_cards_compute_less_each_and_send_almost_the_same() -> None:
    recipe = Recipe(name="x")
    assert compute_seconds(recipe, 8, H100)[0] == pytest.approx(compute_seconds(recipe, 1, H100)[0] / 8)
    assert bytes_sent(recipe, 2, 1, sharded=False) == 4 * recipe.model.parameters
    assert bytes_sent(recipe, 64, 1, sharded=False) == pytest.approx(8 * recipe.model.parameters, rel=0.02)
    blocks = 12 * (4 * 768**2 + 3 * 768 * 2048)
    outside = recipe.model.parameters - blocks
    expected = (4 * (2 * 2 * blocks + 4 * outside) + 4 * recipe.model.parameters) / 2
    assert bytes_sent(recipe, 2, 4, sharded=True) == expected


def test_what_does_not_fit_is_sharded_and_what_cannot_is_said() -> None:
    large = replace(
        Recipe(name="x"),
        model=ModelRecipe(n_layer=32, n_head=32, n_embd=4096, mlp_hidden=11008, tied_head=False),
    )
    assert reckon(large, 1, H100) is None
    on_eight = reckon(large, 8, H100)
    assert on_eight is not None and on_eight.sharded and on_eight.memory.total < H100.memory
    assert reckon(replace(large, data=replace(large.data, total_batch_tokens=3 * 1024)), 8, H100) is None


def test_the_page_shows_the_table_that_the_command_prints() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in page
