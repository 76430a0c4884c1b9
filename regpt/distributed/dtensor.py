"""Sharded tensors: this rank's rows of a DTensor, and the same functions for plain tensors.

A process that shards nothing does not import DTensor, which takes half a second.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is one rank's part of a larger one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def to_local(tensor: Tensor) -> Tensor:
    """Return this rank's rows of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full_scalar(tensor: Tensor) -> Tensor:
    """Return a scalar that is replicated or is a sum over ranks."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_rows(tensor: Tensor) -> tuple[int, int]:
    """Return this rank's first row and last row + 1: all rows unless the tensor is sharded."""
    count = tensor.shape[0] if tensor.ndim else 1
    if not is_sharded(tensor):
        return 0, count
    return rows_of_rank(count, tensor.device_mesh.get_local_rank(), tensor.device_mesh.size())


def rows_of_rank(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return the first row and the last row + 1 of a rank's shard of `count` rows."""
    each = -(-count // ranks)  # fully_shard splits like torch.chunk
    return min(count, rank * each), min(count, (rank + 1) * each)


def copy_local_(tensor: Tensor, whole: Tensor) -> None:
    """Fill a tensor, or this rank's rows of it."""
    first, last = local_rows(tensor)
    to_local(tensor).copy_(whole[first:last] if is_sharded(tensor) else whole)


def shard_like(model: Tensor, rows: Tensor) -> Tensor:
    """Return this rank's rows as a tensor with the sharding of `model`, whose number of rows it has."""
    if not is_sharded(model):
        return rows
    mesh, placements = model.device_mesh, model.placements
    shape = torch.Size([model.shape[0], *rows.shape[1:]])
    stride = rows.contiguous().stride()  # does not depend on the number of rows
    return type(model).from_local(rows, mesh, placements, run_check=False, shape=shape, stride=stride)
