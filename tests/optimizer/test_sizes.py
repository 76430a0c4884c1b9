"""The bytes and operations of an optimizer, compared with a real step."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from regpt.machine import products
from regpt.model.gpt import GPT
from regpt.optimizer.making import make_optimizer
from regpt.optimizer.muon import orthogonalize
from regpt.optimizer.sizes import buffer_bytes, checkpoint_bytes, moment_bytes, newton_schulz_flops, newton_schulz_share
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe

MUON = ["optimizer.kind=muon"]


class PeakMemory(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations allocate, and keeps the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        inputs = {t.untyped_storage()._cdata for t in given if isinstance(t, torch.Tensor)}
        result = function(*given, **(named or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in inputs | self.known:
                self.add(key, tensor.untyped_storage())
        return result

    def add(self, key: int, storage: torch.UntypedStorage) -> None:
        self.known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, key, storage.nbytes())

    def remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.fixture
def whole_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply stacks of matrices at once, as on a GPU, not one matrix after another as on some CPUs."""
    monkeypatch.setattr(products, "has_faster_products", lambda: False)


def with_muon(*words: str) -> Recipe:
    return load_recipe("demo-modern", ["optimizer.kind=muon", *words])


@pytest.mark.parametrize("words", [[], MUON, [*MUON, "optimizer.normuon=true"], [*MUON, "model.n_kv_head=2"]])
def test_moments_are_exactly_those_of_a_step(words: list[str]) -> None:
    recipe = load_recipe("demo-modern", ["model.n_embd=64", *words])
    model = GPT(recipe.model)
    optimizer = make_optimizer(model, recipe)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for of_one in optimizer.state.values() for value in of_one.values() if value.ndim]
    assert moment_bytes(recipe) == sum(tensor.nbytes for tensor in state)
    assert checkpoint_bytes(recipe) == moment_bytes(recipe) + 4 * recipe.model.parameters


def test_checkpoint_of_muon_is_smaller_by_a_moment_of_the_hidden_matrices() -> None:
    plain = load_recipe("gpt2-modern")
    muon = load_recipe("gpt2-modern", ["optimizer.kind=muon"])
    assert checkpoint_bytes(plain) == 12 * plain.model.parameters
    assert checkpoint_bytes(plain) - checkpoint_bytes(muon) == 4 * 12 * (4 * 768**2 + 3 * 768 * 2048)


def test_newton_schulz_takes_under_two_percent_of_the_flops_of_a_step_of_124m() -> None:
    recipe = load_recipe("gpt2-modern", ["optimizer.kind=muon"])
    square, wide = 4 * 768**3 + 2 * 768**3, 4 * 768**2 * 2048 + 2 * 768**3
    assert newton_schulz_flops(recipe) == 5 * 12 * (4 * square + 3 * wide)
    assert newton_schulz_share(recipe) == pytest.approx(0.00376, rel=0.01)
    assert newton_schulz_share(load_recipe("gpt2-modern")) == 0


@pytest.mark.usefixtures("whole_stacks")  # torch does not count oneDNN's products
def test_flops_of_newton_schulz_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    recipe = with_muon("model.n_embd=64", "model.mlp_hidden=96")
    with FlopCounterMode(display=False) as counted:
        for shape in ((16, 64, 64), (8, 96, 64), (4, 64, 96)):
            orthogonalize(torch.randn(shape), 5)
    assert newton_schulz_flops(recipe) == counted.get_total_flops()
    grouped = with_muon("model.n_embd=64", "model.mlp_hidden=96", "model.n_kv_head=1")
    with FlopCounterMode(display=False) as counted:
        for shape in ((8, 64, 64), (8, 16, 64), (8, 96, 64), (4, 64, 96)):
            orthogonalize(torch.randn(shape), 5)
    assert newton_schulz_flops(grouped) == counted.get_total_flops()


@pytest.mark.parametrize(
    "words",
    [
        ["model.mlp_hidden=512"],
        ["model.mlp_hidden=128", "model.n_layer=6"],
        ["model.mlp_hidden=64", "model.n_head=8", "model.head_dim=32", "model.n_kv_head=2"],
    ],
)
@pytest.mark.usefixtures("whole_stacks")
def test_buffers_of_an_update_are_within_a_tenth_of_those_that_are_allocated(words: list[str]) -> None:
    recipe = with_muon("model.n_embd=128", "optimizer.muon_weight_decay=0.1", *words)
    model = GPT(recipe.model)
    optimizer = make_optimizer(model, recipe)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # allocates the state
    with PeakMemory() as memory:
        optimizer.parts[0].step()  # type: ignore[attr-defined]
    assert buffer_bytes(recipe, on_cpu=True) == pytest.approx(memory.peak, rel=0.1)
