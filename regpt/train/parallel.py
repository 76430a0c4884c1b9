"""The model on all ranks: whole on each (ddp), a share of it on each (fsdp), or whole with sums in one fixed order.

What the training loop asks of it is the same for all: a forward pass of a micro-batch, gradients that are everybody's
mean, and weights and optimizer state that can be saved, loaded and drawn anew.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
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

from regpt.base.recipe import Recipe
from regpt.checkpoint.store import load_moments, load_weights
from regpt.distributed.device import Device
from regpt.distributed.dtensor import copy_local_, to_local
from regpt.distributed.rank_group import RankGroup
from regpt.model.gpt import GPT, Block, rotary_table
from regpt.model.optimizer import make_optimizer


class Parallel:
    """A model and its optimizer on one rank: nothing is to be reduced. The other forms say what differs."""

    name = "alone"

    def __init__(self, recipe: Recipe, device: Device, ranks: RankGroup) -> None:
        self.recipe, self.device, self.ranks = recipe, device, ranks
        self.model = self.build_model()
        self.model.activation_checkpointing = recipe.run.activation_checkpointing
        self.optimizer: Optimizer = make_optimizer(self.model, recipe)
        self.train_module = self.build_train_module()

    def build_model(self) -> GPT:
        return GPT(self.recipe.model).to(self.device.torch_device)

    def build_train_module(self) -> nn.Module:
        """What a training step calls. Evaluation and sampling use `model`, the same weights, as their shapes vary."""
        return self.compiled(self.model)

    def compiled(self, module: nn.Module) -> nn.Module:
        return torch.compile(module) if self.device.compiled else module  # type: ignore[return-value]

    # A step

    def micro_batches_in_mean(self, of_rank: int) -> int:
        """By how many the loss of a micro-batch is divided before its backward pass."""
        return of_rank

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward pass of a step's micro-batch: gradients are reduced with the last."""
        return contextlib.nullcontext()

    def trial(self) -> contextlib.AbstractContextManager[None]:
        """Around a micro-batch whose gradients will be thrown away: as far as can be without the other ranks."""
        return self.micro_batch(last=False)

    def after_backward(self) -> None:
        """After each micro-batch's backward pass."""

    def after_last_backward(self) -> None:
        """Afterwards the gradients are the global batch's."""

    def gradients(self) -> list[Tensor]:
        """What of them is on this rank."""
        return [to_local(parameter.grad) for parameter in self.model.parameters() if parameter.grad is not None]

    def squared_norm(self) -> float:
        """The sum of the squares of this rank's gradients.

        Row by row, then in float64: over all of a large tensor, torch's sum on a CPU is wrong in the third digit.
        """
        rows = torch.cat([torch.linalg.vector_norm(gradient, dim=-1).reshape(-1) for gradient in self.gradients()])
        return float(rows.cpu().double().square().sum())

    def reduce_squared_norm(self, squares: NDArray[np.float64]) -> float:
        """Of all ranks' sums that of the whole gradient: everybody's, or no number if one rank has none."""
        return float(np.max(squares))

    def clip(self, norm: float) -> None:
        """Scale the gradients, whose norm this is, to the recipe's `optimizer.grad_clip` at most."""
        scale = self.recipe.optimizer.grad_clip / (norm + 1e-6)
        if scale < 1.0:
            for gradient in self.gradients():
                gradient.mul_(scale)

    # Looking

    @contextmanager
    def eval_mode(self) -> Iterator[GPT]:
        """The model for evaluation and sampling, which leave training as it was."""
        yield self.model

    # State

    def initialize(self, seed: int) -> None:
        """As at the start of a run; every rank draws the same."""
        with torch.no_grad():
            for parameter, drawn in zip(self.model.parameters(), self.model.initial_weights(seed), strict=True):
                copy_local_(parameter, drawn)
        self.optimizer.state.clear()

    def load(self, path: Path) -> None:
        """Weights and optimizer state as a checkpoint has them: read by rank 0, which hands them out."""
        if self.ranks.is_main:
            load_weights(path, self.model)
            load_moments(path, self.model, self.optimizer)
        if self.ranks.size == 1:
            return
        state, place = self.optimizer.state, self.device.torch_device
        for parameter in self.model.parameters():
            self.ranks.broadcast_(parameter.data)
        shapes = self.ranks.on_main(
            lambda: [{key: list(value.shape) for key, value in state[p].items()} for p in self.model.parameters()]
        )
        for parameter, names in zip(self.model.parameters(), shapes, strict=True):
            if not self.ranks.is_main:
                state[parameter] = {key: torch.empty(shape, device=place) for key, shape in names.items()}
            for key in names:
                self.ranks.broadcast_(state[parameter][key])


class DeterministicDDP(Parallel):
    """Whole on each rank; the gradients of all micro-batches are added one after another, as one rank adds them.

    Micro-batch number n is rank n mod ranks'. So after each round of one micro-batch a rank, everybody adds the round's
    gradients in the order of the ranks. Every micro-batch's gradients travel, which is why it is slow.
    """

    name = "ddp in one order"

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
    """Whole on each rank, by DistributedDataParallel: gradients travel while the last backward pass goes on."""

    name = "ddp"

    def build_train_module(self) -> nn.Module:
        cards = [self.device.torch_device] if self.device.torch_device.type == "cuda" else None
        # Weights are drawn or handed out by us, the same on all; the one buffer never changes.
        self.replica = DistributedDataParallel(
            self.model, device_ids=cards, forward_sync_buffers=False, init_sync=False, gradient_as_bucket_view=True
        )
        return self.compiled(self.replica)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        with contextlib.nullcontext() if last else self.replica.no_sync():
            yield


class FSDPParallel(Parallel):
    """Rows of every parameter, its gradient and its moments on each rank, by fully_shard; gathered part by part.

    Products see the same numbers as in the other forms, and gradients are added in float32.
    """

    name = "fsdp"

    model: Any  # a GPT and an FSDPModule at once

    def build_model(self) -> GPT:
        with torch.device("meta"):
            model = GPT(self.recipe.model)
        mesh = init_device_mesh(self.device.torch_device.type, (self.ranks.size,))
        # What autocast would cast travels cast already; norms, embedding and head stay float32, as in the other forms.
        cast = None if self.device.precision == torch.float32 else self.device.precision
        policy = MixedPrecisionPolicy(param_dtype=cast, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in model.blocks:
            assert isinstance(block, Block)
            for part in (block.attention, block.mlp):
                if self.device.compiled:
                    part.compile()
                fully_shard(part, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh)
        for method in ("losses", "losses_at", "next_logits"):
            register_fsdp_forward_method(model, method)
        model.to_empty(device=self.device.torch_device)
        if self.recipe.model.positions == "rope":
            model.rotations = rotary_table(self.recipe.model).to(self.device.torch_device)
        return model

    def build_train_module(self) -> nn.Module:
        model: nn.Module = self.model
        return model

    def load(self, path: Path) -> None:
        """Every rank reads its own rows; the directory must lie where all of them see it."""
        load_weights(path, self.model)
        load_moments(path, self.model, self.optimizer)

    def reduce_squared_norm(self, squares: NDArray[np.float64]) -> float:
        return float(np.sum(squares))

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(last or self.recipe.run.gradients_reduced == "micro-batch")
        yield

    def trial(self) -> contextlib.AbstractContextManager[None]:
        """With all ranks: what was not reduced would be kept, out of reach, and added to the next gradients."""
        return self.micro_batch(last=True)

    @contextmanager
    def eval_mode(self) -> Iterator[GPT]:
        """Every rank must make the same number of passes within, because each gathers from all."""
        try:
            eager = torch.compiler.set_stance("force_eager") if self.device.compiled else contextlib.nullcontext()
            with eager, self.device.autocast():  # for sampling too: the weights of products come cast
                yield self.model
        finally:
            self.model.reshard()


def make_parallel(recipe: Recipe, device: Device, ranks: RankGroup) -> Parallel:
    """As `run.parallel` and `run.strict_sum` ask, on the ranks there are."""
    if ranks.size == 1:
        return Parallel(recipe, device, ranks)
    if recipe.run.parallel == "fsdp":
        return FSDPParallel(recipe, device, ranks)
    return (DeterministicDDP if recipe.run.strict_sum else DDPParallel)(recipe, device, ranks)
