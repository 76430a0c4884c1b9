"""The model on one or several ranks: data parallel (DDP), sharded (FSDP), or data parallel with a fixed order of sums.

The training loop uses all of them in the same way: forward pass of a micro-batch, gradients averaged over the global
batch, and weights and optimizer state that can be saved, loaded and initialized.
"""

import contextlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from regpt.checkpoint.store import load_moments, load_weights
from regpt.distributed.dtensor import copy_local_, to_local
from regpt.distributed.rank_group import RankGroup
from regpt.machine.device import Device
from regpt.model.gpt import GPT, Block
from regpt.model.moe import balances
from regpt.model.rotary import rotary_table
from regpt.optimizer.average import drop_average, update_average
from regpt.optimizer.exchange import Exchange, NoExchange, ReplicatedExchange, ShardedExchange
from regpt.optimizer.making import make_optimizer
from regpt.optimizer.rates import set_rates
from regpt.recipe.recipe import Recipe

# DDP's argument for sending buffers before each forward pass, which torch 2.13 renamed.
DDP_ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in DDP_ARGUMENTS else "broadcast_buffers"
WITHOUT_BUFFERS: dict[str, Any] = {SYNC_BUFFERS: False}


class Parallel:
    """A model and its optimizer on one rank, without communication; the base class of the others."""

    name = "alone"

    def __init__(self, recipe: Recipe, device: Device, ranks: RankGroup) -> None:
        self.recipe, self.device, self.ranks = recipe, device, ranks
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
        self.optimizer.zero_grad(set_to_none=True)
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


class DeterministicDDP(Parallel):
    """Data parallel in proof mode (`run.strict_sum`): the result is bit-identical for any number of ranks.

    Gradients are added in the order of the micro-batches, as one rank adds them. Micro-batch n belongs to rank
    n mod ranks, so after each round of one micro-batch per rank, every rank adds the gradients of the round in the
    order of the ranks. This sends the gradients of every micro-batch and is slow: use it to prove that ranks change
    nothing but the order of a sum, not to train.
    """

    name = "ddp in a fixed order"

    def __init__(self, recipe: Recipe, device: Device, ranks: RankGroup) -> None:
        super().__init__(recipe, device, ranks)
        self.sums: list[Tensor | None] = [None for _ in self.model.parameters()]

    def micro_batches_in_mean(self, of_rank: int) -> int:
        return of_rank * self.ranks.size

    def after_backward(self) -> None:
        for number, parameter in enumerate(self.model.parameters()):
            assert parameter.grad is not None
            for gradient in self.ranks.all_gather_tensors(parameter.grad):
                earlier = self.sums[number]
                self.sums[number] = gradient if earlier is None else earlier.add_(gradient)
            parameter.grad = None

    def after_last_backward(self) -> None:
        for number, parameter in enumerate(self.model.parameters()):
            parameter.grad, self.sums[number] = self.sums[number], None


class DDPParallel(Parallel):
    """Data parallel by DistributedDataParallel: gradients are reduced during the last backward pass."""

    name = "ddp"

    def exchange(self) -> Exchange:
        return ReplicatedExchange(self.ranks)

    def build_train_module(self) -> nn.Module:
        cards = [self.device.torch_device] if self.device.torch_device.type == "cuda" else None
        # Weights are the same on all ranks from `initialize` or `load`; the one buffer never changes.
        self.replica = DistributedDataParallel(
            self.model, device_ids=cards, init_sync=False, gradient_as_bucket_view=True, **WITHOUT_BUFFERS
        )
        return self.compiled(self.replica)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        with contextlib.nullcontext() if last else self.replica.no_sync():
            yield


class FSDPParallel(Parallel):
    """Sharded by fully_shard: each rank has rows of every parameter, its gradient and its moments.

    Matrix products have the same inputs as without shards, and gradients are reduced in float32.
    """

    name = "fsdp"

    model: Any  # both a GPT and an FSDPModule

    def build_model(self) -> GPT:
        with torch.device("meta"):
            model = GPT(self.recipe.model)
        mesh = init_device_mesh(self.device.torch_device.type, (self.ranks.size,))
        # Weights that autocast would cast are sent in that type; norms, embedding and head stay float32, as in DDP.
        cast = None if self.device.precision == torch.float32 else self.device.precision
        policy = MixedPrecisionPolicy(param_dtype=cast, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in model.blocks:
            assert isinstance(block, Block)
            for part in (block.attention, block.mlp):
                if self.device.compiled:
                    part.compile()
                fully_shard(part, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh)
        for method in GPT.FORWARD_METHODS:
            register_fsdp_forward_method(model, method)
        model.to_empty(device=self.device.torch_device)
        if self.recipe.model.positions == "rope":
            model.rotations = rotary_table(self.recipe.model).to(self.device.torch_device)
        return model

    def exchange(self) -> Exchange:
        return ShardedExchange(self.ranks)

    def build_train_module(self) -> nn.Module:
        model: nn.Module = self.model
        return model

    def load(self, path: Path) -> None:
        """Load the rows of this rank; all ranks must see the directory."""
        self.read(path)

    def reduce_squared_norm(self, squares: NDArray[np.float64]) -> float:
        return float(np.sum(squares))

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(last or self.recipe.run.gradients_reduced == "micro-batch")
        yield

    def trial(self) -> contextlib.AbstractContextManager[None]:
        """Return the context with reduction: FSDP keeps unreduced gradients and adds them to the next ones."""
        return self.micro_batch(last=True)

    @contextmanager
    def eval_mode(self) -> Iterator[GPT]:
        """Yield the model; all ranks must make the same number of passes, because each pass gathers the weights."""
        try:
            eager = torch.compiler.set_stance("force_eager") if self.device.compiled else contextlib.nullcontext()
            with eager, self.device.autocast():  # also for sampling: FSDP gathers the weights in the lower precision
                yield self.model
        finally:
            self.model.reshard()


def make_parallel(recipe: Recipe, device: Device, ranks: RankGroup) -> Parallel:
    """Return the model and optimizer as `run.parallel` and `run.strict_sum` ask, for the number of ranks."""
    if ranks.size == 1:
        return Parallel(recipe, device, ranks)
    if recipe.run.parallel == "fsdp":
        return FSDPParallel(recipe, device, ranks)
    return (DeterministicDDP if recipe.run.strict_sum else DDPParallel)(recipe, device, ranks)
