"""The gradients of a global batch: forward and backward passes of this rank's micro-batches, reduced over ranks."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regpt.console.training import TrainingConsole
from regpt.data.batches import Batch, combine_digests
from regpt.distributed.rank_group import RankGroup
from regpt.machine.compilation import compilation_errors
from regpt.machine.device import Device, seed_micro_batch
from regpt.machine.oom import is_out_of_memory
from regpt.model.moe import expert_loads
from regpt.parallel.model import Parallel


class Gradients:
    """Computes the gradients of one batch after another, in `parameter.grad`."""

    def __init__(
        self,
        seed: int,
        device: Device,
        ranks: RankGroup,
        parallel: Parallel,
        check_stop: Callable[[], None],
        console: TrainingConsole,
    ) -> None:
        """`seed` is the recipe's. `check_stop` is called before each micro-batch; it raises to stop the run."""
        self.seed, self.device, self.ranks, self.parallel = seed, device, ranks, parallel
        self.check_stop, self.console = check_stop, console
        self.expert_loads: Tensor | None = None  # rows of each expert in the last global batch, (layers, experts)

    def compute(self, step: int, batch: Batch) -> tuple[float, float, str]:
        """Compute the gradients of the global batch; return its (mean loss, gradient norm, digest).

        The mean is over the targets of the global batch that count.
        """
        weight = self.weight_of_losses(batch)
        return self.share_results(self.forward_and_backward(step, batch, weight), batch, weight)

    def weight_of_losses(self, batch: Batch) -> float:
        """Return the number of all targets of the global batch, divided by those that count.

        A micro-batch's mean is over all its targets. With this weight the mean of these means is the mean over the
        targets that count, which the mean of means over each micro-batch's own is not.
        """
        if not batch.is_masked:
            return 1.0
        mine = np.array([batch.targets.size, batch.counted_targets], dtype=np.int64)
        targets, counted = self.ranks.all_gather(mine).sum(axis=0).tolist()
        return targets / max(1, counted)

    def forward_and_backward(self, step: int, batch: Batch, weight: float = 1.0) -> Tensor:
        """Compute the gradients; return the losses of this rank's micro-batches, without weight.  -> (micro-batches)"""
        with self.parallel.shared_casts():
            return self.accumulate(step, batch, weight)

    def accumulate(self, step: int, batch: Batch, weight: float) -> Tensor:
        """Do the same in the present context."""
        count = len(batch.numbers)
        share = weight / self.parallel.micro_batches_in_mean(count)
        losses, loads = [], []
        for turn, (number, inputs, targets) in enumerate(zip(batch.numbers, batch.inputs, batch.targets, strict=True)):
            self.check_stop()
            if turn:
                self.console.show_progress("micro-batch", turn, count)
            seed_micro_batch(self.seed, step, number)
            with self.parallel.micro_batch(last=turn == count - 1), compilation_errors():
                with self.device.autocast():
                    loss = self.parallel.train_module(self.on_device(inputs), self.on_device(targets))
                with self.device.without_autocast():
                    (share * loss).backward()
            self.parallel.after_backward()
            losses.append(loss.detach())
            if (load := expert_loads(self.parallel.model)) is not None:
                loads.append(load)
        self.parallel.after_last_backward()
        self.expert_loads = self.sum_over_ranks(torch.stack(loads).sum(0)) if loads else None
        return torch.stack(losses)

    def sum_over_ranks(self, counts: Tensor) -> Tensor:
        """Add whole numbers of all ranks, which gives the same on any number of ranks.  (...) -> (...), on the CPU"""
        return torch.from_numpy(self.ranks.all_gather(counts.cpu().numpy()).sum(0))

    def share_results(self, losses: Tensor, batch: Batch, weight: float) -> tuple[float, float, str]:
        """Return (mean loss, gradient norm, digest) of the global batch, the same on every rank.

        The losses of all micro-batches are added in their order, so the mean is the same for any number of ranks.
        """
        mine = np.array([self.parallel.squared_norm(), *losses.cpu().double().tolist()])
        squares, *by_turn = self.ranks.all_gather(mine).T  # (ranks) each: micro-batch n belongs to rank n mod ranks
        seals = self.ranks.all_gather(np.array([batch.partial_digest], dtype=np.uint64).view(np.int64)).view(np.uint64)
        in_order = [float(loss) for losses_of_turn in by_turn for loss in losses_of_turn]
        norm = math.sqrt(self.parallel.reduce_squared_norm(squares))
        return weight * (sum(in_order) / len(in_order)), norm, combine_digests(int(seal) for seal in seals.ravel())

    def runs_out_of_memory(self, batch: Batch) -> bool:
        """Return whether this rank runs out of memory with a micro-batch, whose gradients are discarded."""
        try:
            with self.parallel.trial(), compilation_errors():
                with self.device.autocast():
                    loss = self.parallel.train_module(self.on_device(batch.inputs[0]), self.on_device(batch.targets[0]))
                loss.backward()
            return False
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return True
        finally:
            self.parallel.optimizer.zero_grad()

    def on_device(self, array: NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.torch_device.type == "cuda":
            return tensor.pin_memory().to(self.device.torch_device, non_blocking=True)
        return tensor.to(self.device.torch_device)
