"""Shards in the making: tokens are appended as they come, and after each `flush` what was written survives a kill."""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.data import tokenizer
from regpt.data.formats import DTYPE, npy_header_bytes
from regpt.data.shards import Shard, Split

HEADER_BYTES = len(npy_header_bytes(0))
READ_AT_A_TIME = 1 << 22  # bytes


class ShardFile:
    """One shard being written. Its header, and so its hash, are those of `expected` tokens until it is sealed."""

    def __init__(self, path: Path, split: Split, expected: int, tokens: int = 0, documents: int = 0) -> None:
        """Begin the file, or with `tokens` go on after so many; what stands behind them is cut off."""
        self.path, self.split, self.expected = path, split, expected
        self.tokens, self.documents = tokens, documents
        header = npy_header_bytes(expected)
        self.hash, self.tokens_hash = hashlib.sha256(header), hashlib.sha256()
        self.file: IO[bytes]
        if tokens == 0:
            self.file = path.open("wb")
            self.file.write(header)
            return
        self.file = path.open("r+b")
        self.file.truncate(HEADER_BYTES + tokens * DTYPE.itemsize)
        self.file.seek(HEADER_BYTES)
        while piece := self.file.read(READ_AT_A_TIME):
            self.hash.update(piece)
            self.tokens_hash.update(piece)

    def append(self, ids: NDArray[np.uint16]) -> None:
        data = np.ascontiguousarray(ids, dtype=DTYPE).view(np.uint8).data
        self.file.write(data)
        self.hash.update(data)
        self.tokens_hash.update(data)
        self.tokens += len(ids)
        self.documents += int(np.count_nonzero(ids == tokenizer.END_OF_TEXT))  # the end token stands once a document

    def flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def seal(self) -> Shard:
        """Give the file its true header, and wait until it is on the disk."""
        header = npy_header_bytes(self.tokens)
        if self.tokens != self.expected:  # the last of its split
            self.file.seek(0)
            self.file.write(header)
        self.flush()
        self.file.close()
        if self.tokens != self.expected:
            self.hash = hashlib.sha256()
            with self.path.open("rb") as file:
                while piece := file.read(READ_AT_A_TIME):
                    self.hash.update(piece)
        return Shard(
            self.path.name,
            self.split,
            "npy",
            self.tokens,
            self.documents,
            self.hash.hexdigest(),
            self.tokens_hash.hexdigest(),
        )


@dataclass(frozen=True)
class Written:
    """How far a data set is: what a later process needs to go on with its shards."""

    shards: tuple[Shard, ...] = ()
    tokens: int = 0  # in the shard that is not sealed yet
    documents: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Written":
        return Written(**{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])})


class ShardWriter:
    """Takes tokens in order and writes shards, each filled to the brim: first the validation split, then training."""

    def __init__(self, directory: Path, validation_tokens: int, shard_tokens: int, written: Written) -> None:
        """Go on after what is `written`. Raises DataError where that is not there."""
        self.directory, self.shard_tokens = directory, shard_tokens
        self.shards = list(written.shards)
        self.validation_left = validation_tokens - sum(s.tokens for s in self.shards if s.split == "val")
        self.current: ShardFile | None = None
        sizes = [(shard.name, shard.tokens) for shard in self.shards]
        if written.tokens:
            sizes.append((self.next_name(), written.tokens))
        for name, tokens in sizes:
            path = directory / name
            if not path.is_file() or path.stat().st_size < HEADER_BYTES + tokens * DTYPE.itemsize:
                raise DataError(f"{path}: is missing or shorter than what was written to it", "start anew")
        if written.tokens:
            self.current = self.begin(written.tokens, written.documents)

    @property
    def split(self) -> Split:
        return "val" if self.validation_left > 0 else "train"

    def next_name(self) -> str:
        return f"{self.split}_{sum(shard.split == self.split for shard in self.shards):06d}.npy"

    def begin(self, tokens: int = 0, documents: int = 0) -> ShardFile:
        whole = min(self.shard_tokens, self.validation_left) if self.split == "val" else self.shard_tokens
        return ShardFile(self.directory / self.next_name(), self.split, whole, tokens, documents)

    def add(self, ids: NDArray[np.uint16]) -> None:
        while len(ids):
            if self.current is None:
                self.current = self.begin()
            room = self.current.expected - self.current.tokens
            self.current.append(ids[:room])
            ids = ids[room:]
            if self.current.tokens == self.current.expected:
                self.seal()

    def seal(self) -> None:
        assert self.current is not None
        shard = self.current.seal()
        if shard.split == "val":
            self.validation_left -= shard.tokens
        self.shards.append(shard)
        self.current = None

    def flush(self) -> Written:
        """Wait until everything is on the disk, and say what that is."""
        if self.current is None:
            return Written(tuple(self.shards))
        self.current.flush()
        return Written(tuple(self.shards), self.current.tokens, self.current.documents)

    def finish(self) -> list[Shard]:
        if self.current is not None:
            self.seal()
        return self.shards

    def close(self) -> None:
        """Let go of the file, as it is."""
        if self.current is not None:
            self.current.file.close()
