"""The model and its optimizer on one rank, with everything that a training loop calls.

The classes for several ranks are subclasses: forward pass of a micro-batch, gradients averaged over the global batch,
and weights and optimizer state that can be saved, loaded and initialized.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regpt.checkpoint.store import load_moments, load_weights
from regpt.distributed.dtensor import copy_local_, to_local
from regpt.distributed.rank_group import RankGroup
from regpt.machine.device import Device
from regpt.model.gpt import GPT
from regpt.model.moe import balances, has_grouped_product
from regpt.optimizer.average import drop_average, update_average
from regpt.optimizer.base import Optimizer
from regpt.optimizer.exchange import Exchange, NoExchange
from regpt.optimizer.making import make_optimizer
from regpt.optimizer.rates import set_rates
from regpt.recipe.recipe import Recipe


class Parallel:
    """A model and its optimizer on one rank, without communication; the base class of the others."""

    name = "alone"

    def __init__(self, recipe: Recipe, device: Device, ranks: RankGroup) -> None:
        self.recipe, self.device, self.ranks = recipe, device, ranks
        if recipe.model.experts:
            has_grouped_product(device.torch_device.type)  # before a graph is traced
        self.model = self.build_model()
        self.model.activation_checkpointing = recipe.run.activation_checkpointing
        self.model.loss_options = replace(self.model.loss_options, compiled=device.compiled)
        self.optimizer: Optimizer = make_optimizer(self.model, recipe, self.exchange())
        self.train_module = self.build_train_module()

    def build_model(self) -> GPT:
        return GPT(self.recipe.model).to(self.device.torch_device)

    def exchange(self) -> Exchange:
        """Return how ranks share the work of Muon: here, each does all of it."""
        return NoExchange()

    def build_train_module(self) -> nn.Module:
        """Return the module that a training step calls: loss of a micro-batch.

        Evaluation and sampling use `model` with the same weights, uncompiled, because their shapes vary.
        """
        return self.compiled(self.model)

    def compiled(self, module: nn.Module) -> nn.Module:
        return torch.compile(module) if self.device.compiled else module  # type: ignore[return-value]

    # A step

    def shared_casts(self) -> contextlib.AbstractContextManager[None]:
        """Return the context of all micro-batches of a step, which share the weights that are cast."""
        return self.device.shared_casts()

    def micro_batches_in_mean(self, of_rank: int) -> int:
        """Return the divisor for the loss of a micro-batch, given the number of micro-batches of this rank."""
        return of_rank

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context for forward and backward pass of a micro-batch; the last one reduces the gradients."""
        return contextlib.nullcontext()

    def trial(self) -> contextlib.AbstractContextManager[None]:
        """Return the context for a micro-batch whose gradients are discarded, if possible without other ranks."""
        return self.micro_batch(last=False)

    def after_backward(self) -> None:
        """Do what follows the backward pass of each micro-batch."""

    def after_last_backward(self) -> None:
        """Complete the gradients of the global batch after the last backward pass."""

    def gradients(self) -> list[Tensor]:
        """Return the gradients, or the shards of them, that this rank has."""
        return [to_local(parameter.grad) for parameter in self.model.parameters() if parameter.grad is not None]

    def squared_norm(self) -> float:
        """Return the sum of the squares of this rank's gradients.

        Summed by row, then in float64: torch's sum over a large tensor on a CPU is wrong in the third digit.
        """
        rows = torch.cat([torch.linalg.vector_norm(gradient, dim=-1).reshape(-1) for gradient in self.gradients()])
        return float(rows.cpu().double().square().sum())

    def reduce_squared_norm(self, squares: NDArray[np.float64]) -> float:
        """Return the squared norm of the whole gradient from the sums of all ranks, NaN if one of them is NaN.

        Here every rank has the whole gradient, so the sums are equal.
        """
        return float(np.max(squares))

    def clip(self, norm: float) -> None:
        """Scale the gradients, which have the norm `norm`, down to the recipe's `optimizer.grad_clip`."""
        scale = self.recipe.optimizer.grad_clip / (norm + 1e-6)
        if scale < 1.0:
            for gradient in self.gradients():
                gradient.mul_(scale)

    def update(self, norm: float, step: int) -> None:
        """Update the weights with the gradients, clipped by their norm `norm`, at the rates of `step`, from 0."""
        self.clip(norm)
        set_rates(self.optimizer, step, self.recipe)
        self.optimizer.step()
        update_average(self.optimizer, self.recipe.optimizer)
        self.optimizer.zero_grad()
        self.device.synchronize()

    # Evaluation

    @contextmanager
    def eval_mode(self) -> Iterator[GPT]:
        """Yield the model for evaluation and sampling, which do not change it."""
        yield self.model

    # State

    def initialize(self, seed: int) -> None:
        """Initialize the weights from `seed`, the same on every rank, and clear the optimizer state."""
        with torch.no_grad():
            for parameter, drawn in zip(self.model.parameters(), self.model.initial_weights(seed), strict=True):
                copy_local_(parameter, drawn)
            for balance in balances(self.model).values():
                balance.zero_()
        self.optimizer.state.clear()

    def read(self, path: Path) -> None:
        """Read the weights and the optimizer state of this rank."""
        load_weights(path, self.model)
        load_moments(path, self.model, self.optimizer)
        if not self.recipe.optimizer.average_steps:  # a resume may end it
            drop_average(self.optimizer)

    def load(self, path: Path) -> None:
        """Load weights and optimizer state from a checkpoint: rank 0 reads it and broadcasts them."""
        if self.ranks.is_main:
            self.read(path)
        if self.ranks.size == 1:
            return
        state, place = self.optimizer.state, self.device.torch_device
        for tensor in (*self.model.parameters(), *balances(self.model).values()):
            self.ranks.broadcast_(tensor.data)
        shapes = self.ranks.on_main(
            lambda: [{key: list(value.shape) for key, value in state[p].items()} for p in self.model.parameters()]
        )
        for parameter, names in zip(self.model.parameters(), shapes, strict=True):
            if not self.ranks.is_main:
                state[parameter] = {key: torch.empty(shape, device=place) for key, shape in names.items()}
            for key in names:
                self.ranks.broadcast_(state[parameter][key])
