"""Token shards on the disk: plain .npy files of uint16, sealed by a manifest that holds their sizes and hashes."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import sha256_of_file, sha256_of_json, write_json

FORMAT = "regpt-tokens"
FORMAT_VERSION = 1
DTYPE = np.dtype("<u2")

Split = Literal["train", "val"]
PREPARE_AGAIN = "delete the folder and run `regpt prepare` again"


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one file."""

    name: str
    split: Split
    tokens: int
    documents: int  # that begin in it
    sha256: str  # of the whole file


@dataclass(frozen=True)
class Manifest:
    """What a data set is: enough to know it again anywhere."""

    tokenizer: dict[str, Any]
    source: dict[str, Any]
    split_rule: str
    shards: tuple[Shard, ...]
    statistics: dict[str, Any]

    @property
    def digest(self) -> str:
        """Names the data set for ever: SHA-256 over tokenizer, shards and split, not over where the text lay."""
        return sha256_of_json(
            {
                "tokenizer": self.tokenizer,
                "split_rule": self.split_rule,
                "shards": [asdict(shard) for shard in self.shards],
            }
        )

    def tokens(self, split: Split) -> int:
        return sum(shard.tokens for shard in self.shards if shard.split == split)

    def write(self, directory: Path) -> None:
        write_json(
            directory / "manifest.json",
            {"format": FORMAT, "version": FORMAT_VERSION, **asdict(self), "digest": self.digest},
        )


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a data set. Raises DataError where there is none or where it is not ours or not whole."""
    path = directory / "manifest.json"
    if not path.is_file():
        raise DataError(
            f"{directory}: is no prepared data set (it has no manifest.json)",
            "name the folder of one (data.path=…), or make one: regpt prepare RECIPE data.source=… data.path=…",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind, version, digest = values.pop("format"), values.pop("version"), values.pop("digest")
        manifest = Manifest(**{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: is not a manifest of regpt's, or not a whole one", PREPARE_AGAIN) from None
    if (kind, version) != (FORMAT, FORMAT_VERSION):
        raise DataError(
            f"{path}: is {kind} version {version}; this regpt reads {FORMAT} version {FORMAT_VERSION}",
            PREPARE_AGAIN,
        )
    if digest != manifest.digest:
        raise DataError(f"{path}: was changed after it was written (its digest does not fit)", PREPARE_AGAIN)
    return manifest


def write_shard(directory: Path, name: str, split: Split, tokens: NDArray[np.uint16], documents: int) -> Shard:
    """Write one shard and say what the manifest has to say of it."""
    path = directory / name
    with path.open("wb") as file:
        np.save(file, tokens.astype(DTYPE, copy=False))
        file.flush()
        os.fsync(file.fileno())
    return Shard(name, split, len(tokens), documents, sha256_of_file(path))


class TokenWindows:
    """A split as windows of block_size + 1 tokens, numbered through all its shards, read from mapped files.

    A window gives block_size inputs and, one token later, block_size targets; the next begins where its inputs end. No
    window crosses from one shard into the next, so up to block_size tokens at the end of a shard are not used.
    """

    def __init__(self, directory: Path, manifest: Manifest, split: Split, block_size: int) -> None:
        self.block_size = block_size
        self.shards = [shard for shard in manifest.shards if shard.split == split]
        self.paths = [directory / shard.name for shard in self.shards]
        windows = [max(0, (shard.tokens - 1) // block_size) for shard in self.shards]
        self.first_window = np.concatenate([[0], np.cumsum(windows, dtype=np.int64)])
        for path, shard in zip(self.paths, self.shards, strict=True):
            check_shard(path, shard)

    def __len__(self) -> int:
        return int(self.first_window[-1])

    @cached_property
    def tokens(self) -> list[NDArray[np.uint16]]:
        return [np.load(path, mmap_mode="r") for path in self.paths]

    def rows(self, windows: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """The tokens of the windows, (windows, block_size + 1)."""
        numbers = np.asarray(windows, dtype=np.int64)
        out = np.empty((len(numbers), self.block_size + 1), dtype=np.int64)
        of_shard = np.searchsorted(self.first_window, numbers, side="right") - 1
        for row, (number, shard) in enumerate(zip(numbers, of_shard, strict=True)):
            begin = int(number - self.first_window[shard]) * self.block_size
            out[row] = self.tokens[shard][begin : begin + self.block_size + 1]
        return out


def check_shard(path: Path, shard: Shard) -> None:
    """Hold a file's size and header against the manifest; cheap, done at every start. `regpt` never maps another."""
    if not path.is_file():
        raise DataError(f"{path}: is missing", PREPARE_AGAIN)
    try:
        tokens = np.load(path, mmap_mode="r")
        found = (tokens.dtype, tokens.ndim, len(tokens))
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: was cut short or is no token shard ({error})", PREPARE_AGAIN) from None
    if found != (DTYPE, 1, shard.tokens):
        raise DataError(
            f"{path}: holds {found[2]:,} {found[0]}, the manifest promises {shard.tokens:,} {DTYPE} tokens",
            PREPARE_AGAIN,
        )


def check_fits(tokens: dict[str, int], windows: dict[str, int], batch_windows: int, block_size: int) -> None:
    """Whether both splits hold something to work with. Raises DataError with a remedy in numbers."""
    total, fitting = sum(tokens.values()), max(block_size + 1, sum(tokens.values()) // 10)
    needed = fitting + batch_windows * block_size + 1
    fix = (
        f"set data.validation_tokens={fitting}" if total >= needed else f"bring more text (at least {needed:,} tokens)"
    )
    if windows["val"] < 1:
        raise DataError(
            f"the validation split holds {tokens['val']:,} of {total:,} tokens, under one window of {block_size} + 1",
            fix,
        )
    if windows["train"] < batch_windows:
        smaller = "" if total >= needed else f", or set data.total_batch_tokens lower than {batch_windows * block_size}"
        raise DataError(
            f"the training split holds {tokens['train']:,} of {total:,} tokens, {windows['train']:,} windows;"
            f" a batch takes {batch_windows:,} (data.validation_tokens took {tokens['val']:,})",
            fix + smaller,
        )
