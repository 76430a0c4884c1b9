"""The gradients of a step's global batch: this rank's share forward and backward, and what all ranks make of it."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regpt.data.batches import Batch, combine_digests
from regpt.distributed.device import Device, seed_micro_batch
from regpt.distributed.rank_group import RankGroup
from regpt.train.console import Console
from regpt.train.oom import is_out_of_memory
from regpt.train.parallel import Parallel


class Gradients:
    """Makes them where the optimizer looks for them, one batch after another."""

    def __init__(
        self,
        seed: int,
        device: Device,
        ranks: RankGroup,
        parallel: Parallel,
        check: Callable[[], None],
        console: Console,
    ) -> None:
        """`seed` is the recipe's; `check` is called before each micro-batch, and raises where the run is to stop."""
        self.seed, self.device, self.ranks, self.parallel = seed, device, ranks, parallel
        self.check, self.console = check, console

    def compute(self, step: int, batch: Batch) -> tuple[float, float, str]:
        """(mean loss, gradient norm, digest) of the global batch; afterwards the gradients are there."""
        return self.share_results(self.forward_and_backward(step, batch), batch)

    def forward_and_backward(self, step: int, batch: Batch) -> Tensor:
        """The losses of this rank's micro-batches; afterwards the gradients are the global batch's.  (micro-batches)"""
        count = len(batch.numbers)
        share = 1.0 / self.parallel.micro_batches_in_mean(count)
        losses = []
        for turn, (number, inputs, targets) in enumerate(zip(batch.numbers, batch.inputs, batch.targets, strict=True)):
            self.check()
            if turn:
                self.console.busy(f"step {step + 1:,}: micro-batch", turn, count)
            seed_micro_batch(self.seed, step, number)
            with self.parallel.micro_batch(last=turn == count - 1):
                with self.device.autocast():
                    loss = self.parallel.train_module(self.on_device(inputs), self.on_device(targets))
                (share * loss).backward()
            self.parallel.after_backward()
            losses.append(loss.detach())
        self.parallel.after_last_backward()
        return torch.stack(losses)

    def share_results(self, losses: Tensor, batch: Batch) -> tuple[float, float, str]:
        """Mean loss, gradient norm and digest of the global batch, the same on every rank, so that all decide alike.

        The losses of all micro-batches are added in the order of their numbers, so the mean depends on no split.
        """
        mine = np.array([self.parallel.squared_norm(), *losses.double().tolist()])
        squares, *of_turns = self.ranks.all_gather(mine).T  # each by rank; turn by turn, the losses are in order
        seals = self.ranks.all_gather(np.array([batch.partial_digest], dtype=np.uint64).view(np.int64)).view(np.uint64)
        in_order = [float(loss) for of_turn in of_turns for loss in of_turn]
        norm = math.sqrt(self.parallel.reduce_squared_norm(squares))
        return sum(in_order) / len(in_order), norm, combine_digests(int(seal) for seal in seals.ravel())

    def runs_out_of_memory(self, batch: Batch) -> bool:
        """Whether this rank runs out of memory with a micro-batch. Its gradients are thrown away."""
        try:
            with self.parallel.trial():
                with self.device.autocast():
                    loss = self.parallel.train_module(self.on_device(batch.inputs[0]), self.on_device(batch.targets[0]))
                loss.backward()
            return False
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return True
        finally:
            self.parallel.optimizer.zero_grad(set_to_none=True)

    def on_device(self, array: NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.torch_device.type == "cuda":
            return tensor.pin_memory().to(self.device.torch_device, non_blocking=True)
        return tensor.to(self.device.torch_device)
