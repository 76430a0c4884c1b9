"""Which rank orthogonalizes which matrices, and how they travel there and back.

All parameters of a batch have one shape. Of the ranks that share the work, rank r owns every parameter whose number in
the batch is r modulo the number of ranks.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from regpt.distributed.dtensor import rows_of_rank
from regpt.distributed.rank_group import RankGroup

Item = TypeVar("Item")


class Exchange(Protocol):
    """Gives each rank the whole matrices that it owns, and all ranks their rows of the results."""

    ranks: int  # that share the work

    def collect(self, local: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """Return this rank's own parameters of a batch, whole; `local` has its rows of all.  -> (own, *shape)"""
        ...

    def distribute(self, own: Tensor, count: int) -> Sequence[Tensor]:
        """Return this rank's rows of all `count` results, of which it computed its own.  (own, ...) -> count x (...)"""
        ...


class NoExchange:
    """Every rank has whole parameters and computes all results: one rank, or several that must agree to the bit."""

    ranks = 1

    def collect(self, local: Sequence[Tensor], shape: torch.Size) -> Tensor:
        return torch.stack(list(local))

    def distribute(self, own: Tensor, count: int) -> Sequence[Tensor]:
        return own.unbind()


class ReplicatedExchange:
    """Every rank has whole parameters (DDP): each computes its share, and all gather the results."""

    def __init__(self, group: RankGroup) -> None:
        self.group, self.ranks = group, group.size

    def collect(self, local: Sequence[Tensor], shape: torch.Size) -> Tensor:
        own = local[self.group.rank :: self.ranks]
        return torch.stack(list(own)) if own else local[0].new_empty((0, *shape))

    def distribute(self, own: Tensor, count: int) -> Sequence[Tensor]:
        padding = -(-count // self.ranks) - len(own)
        gathered = self.group.all_gather_tensors(torch.cat([own, own.new_zeros((padding, *own.shape[1:]))]))
        return [gathered[number % self.ranks][number // self.ranks] for number in range(count)]


class ShardedExchange:
    """Every rank has some rows of each parameter (FSDP): they travel to the owner, and those of the result back."""

    def __init__(self, group: RankGroup) -> None:
        self.group, self.ranks = group, group.size

    def collect(self, local: Sequence[Tensor], shape: torch.Size) -> Tensor:
        flat = torch.cat([rows.reshape(-1) for rank in self.all for rows in self.share(local, rank)])
        sent = [len(self.share(local, rank)) * local[0].numel() for rank in self.all]
        count = len(self.share(local, self.group.rank))
        shapes = [(count, self.rows(shape[0], rank), *shape[1:]) for rank in self.all]
        return torch.cat(self.pieces(flat, sent, shapes), dim=1)

    def distribute(self, own: Tensor, count: int) -> Sequence[Tensor]:
        parts = [own[:, slice(*rows_of_rank(own.shape[1], rank, self.ranks))] for rank in self.all]
        flat = torch.cat([part.reshape(-1) for part in parts])
        rows = self.rows(own.shape[1], self.group.rank)
        shapes = [(len(self.share(range(count), rank)), rows, *own.shape[2:]) for rank in self.all]
        by_owner = self.pieces(flat, [part.numel() for part in parts], shapes)
        return [by_owner[number % self.ranks][number // self.ranks] for number in range(count)]

    def pieces(self, flat: Tensor, sent: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Send this rank's elements to the others; return what comes from each, of the given shapes."""
        received = self.group.all_to_all(flat, sent, [torch.Size(shape).numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(received, shapes, strict=True)]

    @property
    def all(self) -> range:
        return range(self.ranks)

    def share(self, of_batch: Sequence[Item], rank: int) -> Sequence[Item]:
        return of_batch[rank :: self.ranks]

    def rows(self, count: int, rank: int) -> int:
        first, last = rows_of_rank(count, rank, self.ranks)
        return last - first
