"""Writes shards: tokens are appended as they come, and after each `flush` everything written survives a kill."""

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError, writing_errors
from regpt.base.files import flush_descriptor, write_bytes
from regpt.data.formats import npy_header_bytes
from regpt.data.shards import Shard, Split
from regpt.data.tokenizer import GPT2_VOCABULARY, Tokenizer, Vocabulary

HEADER_BYTES = len(npy_header_bytes(0))
BYTES_PER_READ = 1 << 22
FOLDER = "tokenizer"  # of the tokenizer's files, in a dataset and in a run whose tokenizer is not GPT-2's


class ShardFile:
    """One shard that is being written. Until it is sealed, its header and hash are those of `expected` tokens."""

    def __init__(
        self,
        path: Path,
        split: Split,
        expected: int,
        tokens: int = 0,
        documents: int = 0,
        vocabulary: Vocabulary = GPT2_VOCABULARY,
    ) -> None:
        """Start the file, or continue it after `tokens` tokens and truncate what follows them."""
        self.path, self.split, self.expected, self.vocabulary = path, split, expected, vocabulary
        self.tokens, self.documents = tokens, documents
        header = npy_header_bytes(expected, vocabulary.dtype)
        self.hash, self.tokens_hash = hashlib.sha256(header), hashlib.sha256()
        self.file: IO[bytes]
        if tokens == 0:
            self.file = path.open("wb")
            self.file.write(header)
            return
        self.file = path.open("r+b")
        self.file.truncate(HEADER_BYTES + tokens * vocabulary.dtype.itemsize)
        self.file.seek(HEADER_BYTES)
        while piece := self.file.read(BYTES_PER_READ):
            self.hash.update(piece)
            self.tokens_hash.update(piece)

    def append(self, ids: NDArray[np.integer]) -> None:
        data = np.ascontiguousarray(ids, dtype=self.vocabulary.dtype).view(np.uint8).data
        with writing_errors(self.path):
            self.file.write(data)
        self.hash.update(data)
        self.tokens_hash.update(data)
        self.tokens += len(ids)
        self.documents += int(np.count_nonzero(ids == self.vocabulary.end_of_text))  # at the start of each document

    def flush(self) -> None:
        """Wait until everything is on the disk."""
        with writing_errors(self.path):
            self.file.flush()
            flush_descriptor(self.file.fileno())

    def seal(self) -> Shard:
        """Write the final header, wait until the file is on the disk, and return its record."""
        header = npy_header_bytes(self.tokens, self.vocabulary.dtype)
        if self.tokens != self.expected:  # the last shard of its split
            self.file.seek(0)
            self.file.write(header)
        self.flush()
        self.file.close()
        if self.tokens != self.expected:
            self.hash = hashlib.sha256()
            with self.path.open("rb") as file:
                while piece := file.read(BYTES_PER_READ):
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
class WrittenShards:
    """What a `ShardWriter` has written: the sealed shards, and the counts of the open one."""

    shards: tuple[Shard, ...] = ()
    tokens: int = 0  # in the open shard
    documents: int = 0

    @staticmethod
    def from_json(values: dict[str, Any]) -> "WrittenShards":
        return WrittenShards(**{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])})


class ShardWriter:
    """Takes tokens in order and writes shards of `shard_tokens` tokens: first the validation split, then training.

    Only the last shard of a split may hold fewer.
    """

    def __init__(
        self,
        directory: Path,
        validation_tokens: int,
        shard_tokens: int,
        written: WrittenShards,
        train_name: str = "train",
        vocabulary: Vocabulary = GPT2_VOCABULARY,
    ) -> None:
        """Continue after what is `written`. Raise DataError if a file is missing or too short."""
        self.directory, self.shard_tokens, self.train_name = directory, shard_tokens, train_name
        self.vocabulary = vocabulary
        self.shards = list(written.shards)
        self.validation_left = validation_tokens - sum(s.tokens for s in self.shards if s.split == "val")
        self.open_shard: ShardFile | None = None
        sizes = [(shard.name, shard.tokens) for shard in self.shards]
        if written.tokens:
            sizes.append((self.next_name(), written.tokens))
        for name, tokens in sizes:
            path = directory / name
            if not path.is_file() or path.stat().st_size < HEADER_BYTES + tokens * vocabulary.dtype.itemsize:
                raise DataError(f"{path}: missing, or shorter than the {tokens:,} tokens written to it", "start again")
        if written.tokens:
            self.open_shard = self.start_shard(written.tokens, written.documents)

    @property
    def split(self) -> Split:
        return "val" if self.validation_left > 0 else "train"

    def next_name(self) -> str:
        name = self.train_name if self.split == "train" else self.split
        return f"{name}_{sum(shard.split == self.split for shard in self.shards):06d}.npy"

    def start_shard(self, tokens: int = 0, documents: int = 0) -> ShardFile:
        expected = min(self.shard_tokens, self.validation_left) if self.split == "val" else self.shard_tokens
        path = self.directory / self.next_name()
        return ShardFile(path, self.split, expected, tokens, documents, self.vocabulary)

    def add(self, ids: NDArray[np.integer]) -> None:
        while len(ids):
            if self.open_shard is None:
                self.open_shard = self.start_shard()
            room = self.open_shard.expected - self.open_shard.tokens
            self.open_shard.append(ids[:room])
            ids = ids[room:]
            if self.open_shard.tokens == self.open_shard.expected:
                self.seal()

    def seal(self) -> None:
        assert self.open_shard is not None
        shard = self.open_shard.seal()
        if shard.split == "val":
            self.validation_left -= shard.tokens
        self.shards.append(shard)
        self.open_shard = None

    def flush(self) -> WrittenShards:
        """Wait until everything is on the disk, and return its record."""
        if self.open_shard is None:
            return WrittenShards(tuple(self.shards))
        self.open_shard.flush()
        return WrittenShards(tuple(self.shards), self.open_shard.tokens, self.open_shard.documents)

    def finish(self) -> list[Shard]:
        if self.open_shard is not None:
            self.seal()
        return self.shards

    def close(self) -> None:
        """Close the open shard without sealing it. A full disk has been reported before."""
        if self.open_shard is not None:
            with contextlib.suppress(OSError):
                self.open_shard.file.close()


def write_tokenizer(found: Tokenizer, directory: Path) -> None:
    """Write the files of a tokenizer into the folder `tokenizer` of a dataset or a run; nothing for GPT-2's."""
    files = found.files()
    if not files:
        return
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the folder `tokenizer` of a dataset into a run, if it has one."""
    if not (source / FOLDER).is_dir():
        return
    (target / FOLDER).mkdir(parents=True, exist_ok=True)
    for path in sorted((source / FOLDER).iterdir()):
        if path.is_file():
            write_bytes(target / FOLDER / path.name, path.read_bytes())
