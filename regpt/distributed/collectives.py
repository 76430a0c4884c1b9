"""Collectives: operations that all ranks call at the same time, through torch.distributed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from regpt.distributed.failures import RankConnections


class Collectives(RankConnections):
    """Exchange of arrays and tensors. All ranks call the same methods in the same order; one rank alone skips them.

    NumPy arrays use gloo, which does not wait for a GPU; tensors use the default backend.
    """

    def all_gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return every rank's values, in order of ranks. (...) -> (ranks, ...)

        Shape and type must be the same on all ranks; the type is float64 or int64.
        """
        if self.size == 1:
            return values[None]
        own = torch.from_numpy(np.ascontiguousarray(values))
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        with self.connection_errors():
            dist.all_gather(gathered, own, group=self.cpu_group)
        return np.stack([tensor.numpy() for tensor in gathered])

    def all_reduce_max(self, number: int) -> int:
        """Return the largest number of all ranks."""
        return int(self.all_gather(np.array([number], dtype=np.int64)).max())

    def all_gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in order of ranks, on the device. Their shapes must be equal."""
        if self.size == 1:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor.contiguous())
        return gathered

    def all_to_all(self, flat: Tensor, sent: Sequence[int], received: Sequence[int]) -> Sequence[Tensor]:
        """Send the first `sent[0]` elements to rank 0, the next to rank 1 and so on; return what each rank sent here.

        From rank r come `received[r]` elements.
        """
        result = flat.new_empty(sum(received))
        with self.connection_errors():
            dist.all_to_all_single(result, flat, list(received), list(sent))
        return result.split(list(received))

    def broadcast_(self, tensor: Tensor) -> None:
        """Overwrite a tensor with rank 0's."""
        if self.size > 1:
            with self.connection_errors():
                dist.broadcast(tensor, src=0)
