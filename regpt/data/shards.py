"""A dataset on the disk: shards of tokens, and a manifest with their counts and hashes."""

import contextlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError, reading_advice
from regpt.base.files import sha256_of_json, write_json
from regpt.data.formats import ShardFormat, read_header, shard_format
from regpt.data.loss_masks import LossMasks, refuse_other_rows
from regpt.data.tokenizer import END_OF_TEXT, GPT2_TOKENIZER, VOCABULARY, Vocabulary, owner
from regpt.data.validation_split import FIRST_TOKENS, SplitRule, ValidationSplit

FORMAT = "regpt-tokens"
FORMAT_VERSION = 2

Split = Literal["train", "val"]
SPLITS, SHARD_FORMATS = get_args(Split), get_args(ShardFormat)
PREPARE_AGAIN = "download the dataset again, or delete the folder and run `regpt prepare`"
MANIFEST_FILE = "manifest.json"
PREPARATION_FILE = "preparation.json"  # next to the manifest: how the preparation went; not part of the digest
MAX_OPEN_FILES = 64  # per split; a terabyte of shards has more files than a process may open


@dataclass(frozen=True)
class Shard:
    """The manifest's record of one file."""

    name: str
    split: Split
    form: ShardFormat
    tokens: int
    documents: int  # that start in the shard
    sha256: str  # of the whole file
    tokens_sha256: str  # of the tokens alone, the same in every format
    mask_sha256: str = ""  # of the file of the loss mask; empty: all tokens count


@dataclass(frozen=True)
class Manifest:
    """The identity of a dataset: its tokenizer, source, shards and statistics."""

    tokenizer: dict[str, Any]
    source: dict[str, Any]
    split_rule: str
    shards: tuple[Shard, ...]
    statistics: dict[str, Any]
    made_with: dict[str, Any] = field(default_factory=dict)
    validation: ValidationSplit = FIRST_TOKENS  # the rule of earlier versions
    row_tokens: int = 0  # length of the rows that conversations are packed into; 0: text without rows

    @property
    def digest(self) -> str:
        """SHA-256 over the tokenizer and each shard's split, number of tokens and tokens: identifies the dataset.

        The source and the names and formats of the files do not count: the same tokens in llm.c's format have the same.
        Of packed conversations the loss masks and the length of the rows count too.
        """
        masks = [shard.mask_sha256 for shard in self.shards]
        packed = {"masks": masks, "row_tokens": self.row_tokens} if self.row_tokens else {}
        return sha256_of_json(
            {
                "tokenizer": self.tokenizer,
                "shards": [(shard.split, shard.tokens, shard.tokens_sha256) for shard in self.shards],
                **packed,
            }
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """The token ids. The record of GPT-2's tokenizer does not name them."""
        record = self.tokenizer
        return Vocabulary(record.get("vocabulary", VOCABULARY), record.get("end_of_text", END_OF_TEXT))

    def tokens(self, split: Split) -> int:
        return sum(shard.tokens for shard in self.shards if shard.split == split)

    def of_split(self, split: Split) -> list[Shard]:
        return [shard for shard in self.shards if shard.split == split]

    def write(self, directory: Path) -> None:
        values = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(self), "digest": self.digest}
        for record in [] if self.row_tokens else [values, *values["shards"]]:  # text: as in earlier versions
            record.pop("row_tokens", None)
            record.pop("mask_sha256", None)
        write_json(directory / MANIFEST_FILE, values)


def gpt2_tokenizer_record() -> dict[str, Any]:
    """Return the manifest's record of GPT-2's byte-pair encoding."""
    return GPT2_TOKENIZER.record


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a dataset. Raise DataError if it is missing, damaged or of another program."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        has_shards = directory.is_dir() and any(shard_format(file) for file in directory.iterdir())
        raise DataError(
            f"{directory}: not a prepared dataset (no manifest.json){relative_to(directory)}",
            f"make one of its shards: regpt data import {directory}"
            if has_shards
            else "set data.path to a dataset, or prepare one: regpt prepare RECIPE data.source=… data.path=…",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind, version, digest = values.pop("format"), values.pop("version"), values.pop("digest")
        if (kind, version) == (FORMAT, FORMAT_VERSION):
            if "validation" in values:
                values["validation"] = ValidationSplit.from_json(values["validation"])
            elif values["source"].get("imported"):
                values["validation"] = ValidationSplit(rule=SplitRule.FILES)
            manifest = Manifest(**{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])})
            check_types(manifest)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DataError(f"{path}: damaged, or not a manifest of regpt", PREPARE_AGAIN) from None
    if (kind, version) != (FORMAT, FORMAT_VERSION):
        raise DataError(
            f"{path}: {kind} version {version}; this regpt reads {FORMAT} version {FORMAT_VERSION}",
            PREPARE_AGAIN,
        )
    if digest != manifest.digest:
        raise DataError(f"{path}: changed after it was written (the digest does not match)", PREPARE_AGAIN)
    return manifest


def relative_to(directory: Path) -> str:
    """Say where a relative path begins; empty for an absolute one."""
    return "" if directory.is_absolute() else f"; the path is relative to the current directory, {Path.cwd()}"


def check_types(manifest: Manifest) -> None:
    """Raise TypeError or ValueError if a manifest holds values that regpt never writes."""
    for shard in manifest.shards:
        texts = (shard.name, shard.sha256, shard.tokens_sha256, shard.mask_sha256)
        counts = (shard.tokens, shard.documents, manifest.row_tokens)
        if not all(type(text) is str for text in texts) or not all(type(count) is int for count in counts):
            raise TypeError
        if Path(shard.name).name != shard.name or shard.split not in SPLITS or shard.form not in SHARD_FORMATS:
            raise ValueError  # a shard must lie in the folder of the manifest
    ids = manifest.vocabulary
    if type(manifest.tokenizer["name"]) is not str or type(ids.size) is not int or type(ids.end_of_text) is not int:
        raise TypeError
    if not isinstance(manifest.made_with, dict) or not isinstance(manifest.statistics, dict):
        raise TypeError
    if type(manifest.source["asked"]) is not str or type(manifest.source["description"]) is not str:
        raise TypeError
    if type(manifest.statistics["documents"]) is not int or type(manifest.statistics["tokens"]) is not int:
        raise TypeError


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Read a JSON object that regpt wrote; return an empty one if the file is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


class TokenWindows:
    """A split as windows of block_size + 1 tokens, numbered across its shards and read from the files on demand.

    A window gives block_size inputs and, one token later, block_size targets; the next starts where its inputs end. No
    window crosses a shard boundary, so up to block_size tokens at the end of a shard are not used.

    The files are read, not memory-mapped: truncating a mapped file kills the process without a message, and mapped
    pages count as memory of the process. Safe to use from several threads.
    """

    def __init__(self, directory: Path, manifest: Manifest, split: Split, block_size: int) -> None:
        self.block_size, self.vocabulary = block_size, manifest.vocabulary
        self.manifest, self.dtype = manifest, manifest.vocabulary.dtype
        self.open: OrderedDict[int, IO[bytes]] = OrderedDict()  # shard number -> file, least recently used first
        self.reading = threading.Lock()
        refuse_other_rows(directory, manifest.row_tokens, block_size)
        self.shards = manifest.of_split(split)
        self.paths = [directory / shard.name for shard in self.shards]
        windows = [max(0, (shard.tokens - 1) // block_size) for shard in self.shards]
        self.first_window = np.concatenate([[0], np.cumsum(windows, dtype=np.int64)])
        self.header_bytes = [
            check_shard(path, shard, self.dtype) for path, shard in zip(self.paths, self.shards, strict=True)
        ]
        tokens = [shard.tokens for shard in self.shards]
        self.masks = LossMasks(self.paths, tokens, block_size) if manifest.row_tokens else None

    def __len__(self) -> int:
        return int(self.first_window[-1])

    def rows(self, windows: Sequence[int] | NDArray[np.integer]) -> NDArray[np.integer]:
        """Read the tokens of windows.  (windows) -> (windows, block_size + 1)

        Raise DataError, naming the file, if a shard has changed since it was checked.
        """
        of_shard, tokens_before = self.places(np.asarray(windows, dtype=np.int64))
        out = np.empty((len(of_shard), self.block_size + 1), dtype=self.dtype)
        with self.reading:
            for row, shard, before in zip(out, of_shard.tolist(), tokens_before.tolist(), strict=True):
                self.read_row(row, shard, self.header_bytes[shard] + before * self.dtype.itemsize)
        if out.size and int(out.max()) >= self.vocabulary.size:
            shard = int(of_shard[out.max(axis=1).argmax()])
            raise outside(self.paths[shard], int(out.max()), self.manifest)
        return out

    def counted(self, windows: Sequence[int] | NDArray[np.integer]) -> NDArray[np.bool_] | None:
        """Read which targets of windows count in the loss; None if all do.  (windows) -> (windows, block_size)"""
        return None if self.masks is None else self.masks.rows(*self.places(np.asarray(windows, dtype=np.int64)))

    def read_row(self, row: NDArray[np.integer], shard: int, position: int) -> None:
        """Fill a row from a position in a shard's file. A failed read is tried once more with the file opened again.

        That helps where a network file system has lost its server for a while and the old handle is stale.
        """
        for is_last in (False, True):
            try:
                file = self.file(shard)
                file.seek(position)
                count = file.readinto(row)  # type: ignore[attr-defined]
                break
            except OSError as error:
                self.forget(shard)
                if is_last:
                    problem = f"{self.paths[shard]}: cannot be read ({error.strerror})"
                    raise DataError(problem, reading_advice(error, PREPARE_AGAIN)) from None
        if count != row.nbytes:
            raise DataError(f"{self.paths[shard]}: truncated while in use", PREPARE_AGAIN)

    def places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for each window the number of its shard and the tokens before it in that shard."""
        of_shard = np.searchsorted(self.first_window, numbers, side="right") - 1
        return of_shard, (numbers - self.first_window[of_shard]) * self.block_size

    def place(self, number: int) -> tuple[Shard, int]:
        """Return a window's shard and the tokens before it in that shard. Raise DataError if it does not exist."""
        if not 0 <= number < len(self):
            raise DataError(
                f"no window {number:,}: the split has {len(self):,} windows of {self.block_size:,} tokens",
                f"choose a number from 0 to {len(self) - 1:,}" if len(self) else "the split is too short for one",
            )
        of_shard, before = self.places(np.array([number]))
        return self.shards[int(of_shard[0])], int(before[0])

    def documents_before(self, number: int) -> int:
        """Return the number of documents that start in the window's shard before the window."""
        of_shard, before = self.places(np.array([number]))
        shard, left, found = int(of_shard[0]), int(before[0]), 0
        with self.paths[shard].open("rb") as file:
            file.seek(self.header_bytes[shard])
            while left > 0:
                some = np.frombuffer(file.read(self.dtype.itemsize * min(left, 1 << 22)), dtype=self.dtype)
                found += int(np.count_nonzero(some == self.vocabulary.end_of_text))
                left -= max(1, len(some))
        return found

    def file(self, shard: int) -> IO[bytes]:
        if shard not in self.open:
            if len(self.open) >= MAX_OPEN_FILES:
                self.open.popitem(last=False)[1].close()
            self.open[shard] = self.paths[shard].open("rb", buffering=0)
        self.open.move_to_end(shard)
        return self.open[shard]

    def forget(self, shard: int) -> None:
        """Close the file of a shard, if it is open."""
        if file := self.open.pop(shard, None):
            with contextlib.suppress(OSError):
                file.close()

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self.reading:
            while self.open:
                self.open.popitem()[1].close()

    def __del__(self) -> None:
        self.close()


def outside(path: Path, token: int, manifest: Manifest) -> DataError:
    """Return the error for a token that the tokenizer does not have."""
    name, size = owner(manifest.tokenizer["name"]), manifest.vocabulary.size
    return DataError(f"{path}: token {token} is outside {name}'s {size:,}", PREPARE_AGAIN)


def check_shard(path: Path, shard: Shard, dtype: np.dtype[Any]) -> int:
    """Compare a file's size and header with the manifest, and return the header's bytes. Cheap: done at every start."""
    tokens, header_bytes = read_header(path, shard.form, dtype)
    if tokens != shard.tokens:
        raise DataError(f"{path}: {tokens:,} tokens, but the manifest says {shard.tokens:,}", PREPARE_AGAIN)
    return header_bytes
