"""Write and read named tensors as safetensors files; with sharded tensors, the rows of this rank.

torch.distributed.checkpoint is not used because its metadata is a pickle.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from regpt.base.errors import CheckpointError

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}  # safetensors' names
ROWS = "rows"  # key of the metadata: first row and total number of rows of each sharded tensor


# In memory


# On the disk


def write_tensors(
    path: Path, tensors: dict[str, Tensor], rows: dict[str, list[int]], metadata: Mapping[str, str] | None = None
) -> dict[str, int | str]:
    """Write a safetensors file and return its size and hash.

    `rows` maps each sharded tensor to its first row and the number of rows of the full tensor. `metadata` is stored
    in the header.

    The library's `save_file` copies everything into Python's bytes first and holds the interpreter while it does, which
    training would wait for; and its files are readable by their owner only. The form
    (https://github.com/huggingface/safetensors#format) is a length, a header in JSON, and the tensors one after
    another; the library reads it, and a test compares both.
    """
    header: dict[str, Any] = {}
    shares = {name: rows[name] for name in tensors if name in rows}
    if about := {**(metadata or {}), **({ROWS: json.dumps(shares)} if shares else {})}:
        header["__metadata__"] = about
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for piece in chain([memoryview(struct.pack("<Q", len(text)) + text)], map(tensor_bytes, tensors.values())):
            digest.update(piece)
            left = piece
            while left:
                left = left[file.write(left) :]
    return {"bytes": 8 + len(text) + end, "sha256": digest.hexdigest()}


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


class SavedTensors:
    """Reads full tensors or rows of them from files that hold full tensors or shards. Raises CheckpointError."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the full tensors
        self.shares: dict[str, list[tuple[int, int, Any]]] = {}  # first row, last + 1, and the open file
        try:
            for path in paths:
                self.add(safe_open(path, "pt"))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})", "use another checkpoint") from None

    def add(self, file: Any) -> None:
        rows = json.loads((file.metadata() or {}).get(ROWS, "{}"))
        for name in file.keys():  # noqa: SIM118  a safetensors file is no dictionary
            shape = file.get_slice(name).get_shape()
            here = shape[0] if shape else 1
            first, count = rows.get(name, (0, here))
            self.shapes[name] = (count, *shape[1:]) if shape else ()
            self.shares.setdefault(name, []).append((first, first + here, file))

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Return rows `first` to `last` - 1 of a tensor; a scalar is returned whole."""
        if not self.shapes[name]:
            number: Tensor = self.shares[name][0][2].get_tensor(name)
            return number
        pieces = []
        at = first
        for begin, end, file in sorted(self.shares[name], key=lambda share: share[0]):
            if begin <= at < min(end, last):
                pieces.append(file.get_slice(name)[at - begin : min(end, last) - begin])
                at = min(end, last)
        if at < last:
            raise CheckpointError(
                f"{self.paths[0].parent}: lacks rows {at:,} to {last:,} of {name}", "use another checkpoint"
            )
        shape = (0, *self.shapes[name][1:])
        return pieces[0] if len(pieces) == 1 else torch.cat([torch.empty(shape), *pieces])
