"""Memory estimates agree with real forward passes; compute and communication follow from the recipe."""

import contextlib
from dataclasses import replace

import pytest
import torch

from regpt.base.cards import find_card
from regpt.model.chunks import ELEMENTS_IN_CACHE
from regpt.model.gpt import GPT
from regpt.optimizer.making import make_optimizer
from regpt.plan.estimate import Hardware, bytes_sent, compute_seconds, estimate, largest_micro_batch
from regpt.plan.memory import ParallelLayout, activation_bytes, block_bytes, block_weights, estimate_memory, loss_bytes
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.optimization import OptimizerRecipe
from regpt.recipe.recipe import Recipe
from regpt.recipe.run_settings import RunRecipe
from regpt.recipe.settings import load_recipe
from tests.helpers.switches import covering_set, each_alone

MODERN = ModelRecipe(n_layer=3, n_embd=128, n_head=2, mlp_hidden=352, block_size=64)
CLASSIC = replace(MODERN, positions="learned", activation="gelu", normalization="layernorm", bias=True, mlp_hidden=512)
MODELS = {
    "modern": MODERN,
    "classic": CLASSIC,
    "RoPE with GELU and LayerNorm": replace(CLASSIC, positions="rope"),
    "learned positions with SwiGLU": replace(MODERN, positions="learned"),
    "untied head": replace(MODERN, tied_head=False),
    "many heads, long block": replace(MODERN, block_size=256, n_head=8),
    "deep and wide": replace(MODERN, n_layer=6, n_embd=192, n_head=3, mlp_hidden=520),
    "modern with dropout": replace(MODERN, dropout=0.1),
    "classic with dropout": replace(CLASSIC, dropout=0.1),
    "experts": replace(MODERN, experts=4),
    "one expert per token, GELU": replace(MODERN, experts=8, experts_per_token=1, activation="gelu"),
    "experts with a shared one and dropout": replace(MODERN, experts=8, shared_experts=1, dropout=0.1),
}
SEQUENCES = 3
H100 = Hardware(find_card("H100"))


def saved_by_autograd(model: GPT, bfloat16: bool) -> int:
    """Return the bytes that a forward pass saves for the backward pass, excluding weights and rotary tables."""
    inputs = [*model.parameters(), *model.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros(SEQUENCES, model.recipe.block_size + 1, dtype=torch.int64)
    cast = torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), cast:
        model.hidden(tokens[:, :-1])  # the loss keeps nothing for autograd to save
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_activations_equal_what_autograd_saves(model: ModelRecipe, bfloat16: bool) -> None:
    layout = ParallelLayout(micro_batch=SEQUENCES, bfloat16=bfloat16, on_cpu=True)
    casts = 2 * block_weights(model) * model.n_layer if bfloat16 else 0  # autograd saves those too
    predicted = activation_bytes(Recipe(name="x", model=model), layout) + casts
    assert predicted == pytest.approx(saved_by_autograd(GPT(model), bfloat16), rel=0.01)


FEW_TOKENS = replace(MODERN, vocab_size=512)  # the vocabulary changes nothing here, and tables take time
WITH_SWITCHES = {**each_alone(FEW_TOKENS), **{f"pairs {n}": model for n, model in enumerate(covering_set(FEW_TOKENS))}}


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("model", WITH_SWITCHES.values(), ids=WITH_SWITCHES)
def test_activations_of_switches_equal_what_autograd_saves(model: ModelRecipe, bfloat16: bool) -> None:
    layout = ParallelLayout(micro_batch=SEQUENCES, bfloat16=bfloat16, on_cpu=True)
    casts = 2 * block_weights(model) * model.n_layer if bfloat16 else 0
    predicted = activation_bytes(Recipe(name="x", model=model), layout) + casts
    assert predicted == pytest.approx(saved_by_autograd(GPT(model), bfloat16), rel=0.04)


def test_activation_checkpointing_saves_inputs_and_one_block() -> None:
    model = GPT(MODERN)
    model.activation_checkpointing = True
    recipe = Recipe(name="x", model=MODERN, run=RunRecipe(activation_checkpointing=True))
    layout = ParallelLayout(micro_batch=SEQUENCES, bfloat16=False, on_cpu=True)
    recomputed = SEQUENCES * MODERN.block_size * block_bytes(MODERN, layout)
    assert activation_bytes(recipe, layout) - recomputed == pytest.approx(saved_by_autograd(model, False), rel=0.01)


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_loss_memory_is_logits_and_gradients(bfloat16: bool) -> None:
    model = GPT(MODERN)
    tokens = torch.zeros(SEQUENCES, MODERN.block_size + 1, dtype=torch.int64)
    cast = torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext()
    with cast:
        loss = model(tokens[:, :-1], tokens[:, 1:])
    assert loss.grad_fn is not None
    hidden_gradient, weight_gradient, positions = loss.grad_fn.gradients  # type: ignore[attr-defined]
    piece = ELEMENTS_IN_CACHE // MODERN.vocab_size
    logits = MODERN.vocab_size * (positions * 2 + piece * 4 if bfloat16 else positions * 4)
    predicted = loss_bytes(MODERN, positions, ParallelLayout(bfloat16=bfloat16, on_cpu=True))
    assert predicted == weight_gradient.nbytes + 3 * hidden_gradient.nbytes + logits


@pytest.mark.parametrize(("switches", "copies"), [({"logit_softcap": 15.0}, 1), ({"z_loss": 1e-4}, 0)])
def test_loss_memory_counts_the_copies_of_capped_logits(switches: dict[str, float], copies: int) -> None:
    """Of a piece on a CPU, of a chunk on a GPU."""
    model, layout = replace(MODERN, **switches), ParallelLayout(bfloat16=False, on_cpu=True)
    for on_cpu, rows in ((True, ELEMENTS_IN_CACHE // MODERN.vocab_size), (False, 64)):
        layout = replace(layout, on_cpu=on_cpu)
        more = loss_bytes(model, 64, layout) - loss_bytes(MODERN, 64, layout)
        assert more == 4 * copies * rows * MODERN.vocab_size
    assert loss_bytes(model, 64, replace(layout, compiled=True)) == loss_bytes(
        MODERN, 64, replace(layout, compiled=True)
    )


def test_state_equals_model_gradients_and_optimizer() -> None:
    recipe = Recipe(name="x", model=MODERN)
    model = GPT(MODERN)
    optimizer = make_optimizer(model, recipe)
    tokens = torch.zeros(1, 9, dtype=torch.int64)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    held = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    held += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert estimate_memory(recipe, ParallelLayout()).state == sum(tensor.nbytes for tensor in held)
    assert (
        estimate_memory(recipe, ParallelLayout(8, 1, 1, sharded=True)).state
        == sum(tensor.nbytes for tensor in held) / 8
    )


def test_largest_micro_batch_is_the_last_that_fits() -> None:
    recipe = Recipe(name="x", model=MODERN)
    for room in (1e6, 1e8, 3e8, 1e12):
        most = largest_micro_batch(recipe, ParallelLayout(), room)
        sizes = [estimate_memory(recipe, ParallelLayout(micro_batch=size)).total for size in (most, most + 1)]
        assert most == 0 or sizes[0] <= room
        assert most == recipe.batch_windows or sizes[1] > room


DDP, FSDP = ParallelLayout(4), ParallelLayout(4, sharded=True)


def test_muon_adds_its_operations_and_its_updates_to_a_step() -> None:
    plain, muon = Recipe(name="x"), Recipe(name="x", optimizer=OptimizerRecipe(kind="muon"))
    assert compute_seconds(muon, 8, H100)[0] / compute_seconds(plain, 8, H100)[0] == pytest.approx(1.00376, abs=1e-5)
    hidden = 12 * (4 * 768**2 + 3 * 768 * 2048)
    added = [bytes_sent(muon, layout) - bytes_sent(plain, layout) for layout in (DDP, FSDP)]
    assert added == [2 * hidden * 3 / 4, 2 * 2 * hidden / 4 * 3 / 4]


def test_cards_share_compute_but_send_the_same_bytes() -> None:
    recipe = Recipe(name="x")
    assert compute_seconds(recipe, 8, H100)[0] == pytest.approx(compute_seconds(recipe, 1, H100)[0] / 8)
    assert bytes_sent(recipe, ParallelLayout(2)) == 4 * recipe.model.parameters
    assert bytes_sent(recipe, ParallelLayout(64)) == pytest.approx(8 * recipe.model.parameters, rel=0.02)
    blocks = 12 * (4 * 768**2 + 3 * 768 * 2048)
    outside = recipe.model.parameters - blocks
    expected = (4 * (2 * 2 * blocks + 4 * outside) + 4 * recipe.model.parameters) / 2
    assert bytes_sent(recipe, ParallelLayout(2, 1, 4, sharded=True)) == expected


def test_model_too_large_for_a_card_is_sharded() -> None:
    large = replace(
        Recipe(name="x"),
        model=ModelRecipe(n_layer=32, n_head=32, n_embd=4096, mlp_hidden=11008, tied_head=False),
    )
    assert estimate(large, 1, H100) is None
    on_eight = estimate(large, 8, H100)
    assert on_eight is not None and on_eight.layout.sharded and on_eight.memory.total < H100.card.memory
    assert estimate(replace(large, data=replace(large.data, total_batch_tokens=3 * 1024)), 8, H100) is None


def test_card_without_bfloat16_is_estimated_in_float32() -> None:
    found = estimate(load_recipe("gpt2-classic", ["data.micro_batch=8"]), 1, Hardware(find_card("T4")))
    assert found is not None and found.is_speed_known and not found.layout.bfloat16
    assert found.share_of_peak.optimistic < 1.25 and found.hours.optimistic > 200  # 8.1 TFLOP/s
    forced = estimate(load_recipe("gpt2-classic", ["run.precision=bfloat16"]), 1, Hardware(find_card("T4")))
    assert forced is not None and not forced.is_speed_known


@pytest.mark.parametrize(
    ("name", "setting", "compiled"),
    [("H100", "auto", True), ("H100", "off", False), ("M1", "auto", False), ("M1", "on", True)],
)
def test_estimate_compiles_where_a_run_would(name: str, setting: str, compiled: bool) -> None:
    recipe = load_recipe("demo-modern", [f"run.compile={setting}"])
    found = estimate(recipe, 1, Hardware(find_card(name)))
    assert found is not None and found.layout.compiled == compiled
