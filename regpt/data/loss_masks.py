"""Loss masks: which tokens of a shard count in the loss when they are predicted. One byte for each token, 1 or 0.

The mask of `train_000000.npy` is `train_000000.mask.npy` next to it. Only datasets of conversations have masks.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import sha256_of_file, write_bytes
from regpt.data.formats import file_size, npy_header_bytes

IGNORED = -100  # a target that does not count, as in PyTorch's cross_entropy
DTYPE = np.dtype("u1")
PREPARE_AGAIN = "delete the folder of the dataset and run `regpt prepare`"


def mask_path(shard: Path) -> Path:
    """Return the path of a shard's mask."""
    return shard.with_suffix(f".mask{shard.suffix}")


def write_mask(shard: Path, mask: NDArray[np.bool_]) -> str:
    """Write the mask of a shard; return the SHA-256 of the file."""
    path = mask_path(shard)
    write_bytes(path, npy_header_bytes(len(mask), DTYPE) + mask.astype(DTYPE).tobytes())
    return sha256_of_file(path)


class LossMasks:
    """The masks of a split's shards, read on demand. Safe to use from several threads."""

    def __init__(self, shards: list[Path], tokens: list[int], block_size: int) -> None:
        """Compare the sizes of the masks with the tokens of their shards. Raises DataError if one does not fit."""
        self.block_size = block_size
        self.paths = [mask_path(shard) for shard in shards]
        self.header_bytes = len(npy_header_bytes(0, DTYPE))
        for path, count in zip(self.paths, tokens, strict=True):
            if file_size(path) != self.header_bytes + count:
                raise DataError(f"{path}: not the mask of {count:,} tokens", PREPARE_AGAIN)

    def rows(self, shards: NDArray[np.int64], tokens_before: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Read which targets of windows count: window i begins behind `tokens_before[i]` tokens of `shards[i]`.

        (windows), (windows) -> (windows, block_size)
        """
        out = np.empty((len(shards), self.block_size), dtype=np.bool_)
        for row, shard, before in zip(out, shards.tolist(), tokens_before.tolist(), strict=True):
            with self.paths[shard].open("rb") as file:
                file.seek(self.header_bytes + before + 1)  # targets are one token later than inputs
                found = np.frombuffer(file.read(self.block_size), dtype=DTYPE)
            if len(found) != self.block_size:
                raise DataError(f"{self.paths[shard]}: truncated while in use", PREPARE_AGAIN)
            row[:] = found != 0
        return out


def mask_faults(shard: Path, expected: str) -> Iterator[str]:
    """Yield what is wrong with the mask of a shard. `expected` is its SHA-256; empty: it has none."""
    path = mask_path(shard)
    if expected and not path.is_file():
        yield f"{path}: missing"
    elif expected and (found := sha256_of_file(path)) != expected:
        yield f"{path}: SHA-256 is {found[:12]}…, but the manifest says {expected[:12]}…"


def refuse_other_rows(directory: Path, row_tokens: int, block_size: int) -> None:
    """Raise DataError if conversations are packed into rows of another length than the model reads; 0: no rows."""
    if row_tokens not in (0, block_size):
        raise DataError(
            f"{directory}: its conversations are packed into rows of {row_tokens} tokens;"
            f" model.block_size = {block_size}",
            f"set model.block_size={row_tokens}, or prepare the conversations again with another data.path",
        )


def targets_of(tokens: NDArray[np.integer], counted: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Return the targets of windows, with `IGNORED` for those that do not count; None: all count.

    (windows, block_size + 1), (windows, block_size) -> (windows, block_size)
    """
    targets = tokens[..., 1:].astype(np.int64)
    return targets if counted is None else np.where(counted, targets, IGNORED)
