"""Micro-batches share the weights that are cast to bfloat16, which changes no gradient and no loss."""

import contextlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from regpt.console.training import Console, TrainingConsole
from regpt.data.batches import Batch
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.validation import validation
from regpt.machine.device import Device
from regpt.model.gpt import GPT
from regpt.parallel.making import make_parallel
from regpt.parallel.model import Parallel
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.settings import load_recipe
from regpt.training.gradients import Gradients

MICRO_BATCHES = 3
MODEL = ModelRecipe(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=192, mlp_hidden=80)
RECIPE = replace(load_recipe("demo-modern"), model=MODEL)
WIDEST = (160, 32)  # the shape of the first matrix of an MLP
HEAD = (192, 32)


class CastsOfWeights(TorchDispatchMode):
    """Counts the casts to bfloat16, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16:
            self.counts[tuple(args[0].shape)] += 1
        return func(*args, **kwargs)


DEVICE = Device(torch.device("cpu"), "CPU", torch.bfloat16, compiled=False, peak_flops=1.0, peak_source="unused")


def compute(checkpointing: bool) -> tuple[Tensor, list[Tensor], Counter[tuple[int, ...]]]:
    """Return losses of the micro-batches, gradients of their sum, and how often tensors of each shape were cast."""
    parallel = make_parallel(RECIPE, DEVICE, RankGroup())
    parallel.initialize(1)
    parallel.model.activation_checkpointing = checkpointing
    tokens = np.random.default_rng(1).integers(0, 192, (MICRO_BATCHES, 2, 65))
    batch = Batch(tokens[:, :, :-1], tokens[:, :, 1:], np.arange(MICRO_BATCHES), np.arange(2 * MICRO_BATCHES), 0)
    console = TrainingConsole(Console(), RECIPE, DEVICE, ranks=1)
    gradients = Gradients(1, DEVICE, RankGroup(), parallel, lambda: None, console)
    with CastsOfWeights() as casts:
        losses = gradients.forward_and_backward(0, batch)
    return losses, parallel.gradients(), casts.counts


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_are_cast_once_per_step(monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    losses, gradients, casts = compute(checkpointing)
    assert casts[WIDEST] == MODEL.n_layer
    assert casts[HEAD] == 1
    monkeypatch.setattr(Parallel, "shared_casts", lambda self: contextlib.nullcontext())
    expected_losses, expected, casts = compute(checkpointing)
    assert casts[WIDEST] >= 2 * MICRO_BATCHES
    assert casts[HEAD] == MICRO_BATCHES
    assert torch.equal(losses, expected_losses)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients, expected, strict=True))


def test_weights_are_cast_once_per_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(MODEL)
    model.initialize(1)
    windows: Any = DrawnWindows()
    recipe = replace(RECIPE, data=replace(RECIPE.data, micro_batch=len(windows) // MICRO_BATCHES))
    with CastsOfWeights() as casts:
        found = validation(model, windows, recipe, DEVICE)
    assert (casts.counts[WIDEST], casts.counts[HEAD]) == (MODEL.n_layer, 1)
    monkeypatch.setattr(Device, "shared_casts", Device.autocast)
    with CastsOfWeights() as casts:
        expected = validation(model, windows, recipe, DEVICE)
    assert casts.counts[HEAD] == MICRO_BATCHES
    assert found.loss == expected.loss


class DrawnWindows:
    """Two windows of random tokens for each micro-batch."""

    block_size = 64

    def __len__(self) -> int:
        return 2 * MICRO_BATCHES

    def rows(self, numbers: range) -> Any:
        return np.stack([np.random.default_rng(number).integers(0, 192, 65) for number in numbers])

    def counted(self, numbers: range) -> None:
        return None
