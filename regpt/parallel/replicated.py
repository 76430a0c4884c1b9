"""Data parallel: every rank has the whole model, and gradients are averaged over ranks, in any or in a fixed order."""

import contextlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regpt.distributed.rank_group import RankGroup
from regpt.machine.device import Device
from regpt.optimizer.exchange import Exchange, ReplicatedExchange
from regpt.parallel.model import Parallel
from regpt.recipe.recipe import Recipe

# DDP's argument for sending buffers before each forward pass, which torch 2.13 renamed.
DDP_ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in DDP_ARGUMENTS else "broadcast_buffers"
WITHOUT_BUFFERS: dict[str, Any] = {SYNC_BUFFERS: False}


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
