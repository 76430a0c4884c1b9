"""Sharded tensors: this rank's rows of a DTensor, and the same functions for plain tensors."""

from torch import Tensor
from torch.distributed.tensor import DTensor


def to_local(tensor: Tensor) -> Tensor:
    """What of a tensor is on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_scalar(tensor: Tensor) -> Tensor:
    """A number that every rank holds, or to which every rank holds a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_rows(tensor: Tensor) -> tuple[int, int]:
    """The first row that this rank holds, and the last + 1: all of them, unless the tensor is sharded."""
    count = tensor.shape[0] if tensor.ndim else 1
    if not isinstance(tensor, DTensor):
        return 0, count
    rank, ranks = tensor.device_mesh.get_local_rank(), tensor.device_mesh.size()
    each = -(-count // ranks)  # fully_shard cuts as torch.chunk does
    return min(count, rank * each), min(count, (rank + 1) * each)


def copy_local_(tensor: Tensor, whole: Tensor) -> None:
    """Fill a tensor, or this rank's rows of it."""
    first, last = local_rows(tensor)
    to_local(tensor).copy_(whole[first:last] if isinstance(tensor, DTensor) else whole)


def shard_like(model: Tensor, rows: Tensor) -> Tensor:
    """This rank's rows as a tensor that is sharded as `model` is."""
    if not isinstance(model, DTensor):
        return rows
    mesh, placements = model.device_mesh, model.placements
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=model.shape, stride=model.stride())
