"""A data set on the disk: shards of uint16 tokens, sealed by a manifest that holds their counts and hashes."""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import sha256_of_json, write_json
from regpt.data import tokenizer
from regpt.data.formats import DTYPE, ShardFormat, read_header

FORMAT = "regpt-tokens"
FORMAT_VERSION = 2

Split = Literal["train", "val"]
SPLITS, SHARD_FORMATS = get_args(Split), get_args(ShardFormat)
PREPARE_AGAIN = "get the data set again, or delete the folder and run `regpt prepare`"
PREPARATION_FILE = "preparation.json"  # next to the manifest: how the preparation went; not part of the digest
OPEN_FILES = 64  # at once, of a split; a terabyte of shards has more files than a process may open


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one file."""

    name: str
    split: Split
    form: ShardFormat
    tokens: int
    documents: int  # that begin in it
    sha256: str  # of the whole file
    tokens_sha256: str  # of the tokens alone, which does not depend on the form


@dataclass(frozen=True)
class Manifest:
    """What a data set is: enough to know it again anywhere."""

    tokenizer: dict[str, Any]
    source: dict[str, Any]
    split_rule: str
    shards: tuple[Shard, ...]
    statistics: dict[str, Any]
    made_with: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Names the data set for ever: SHA-256 over the tokenizer and each shard's split, count and tokens.

        Neither where the text lay nor the files' names and form count: the same shards in llm.c's form have the same.
        """
        return sha256_of_json(
            {
                "tokenizer": self.tokenizer,
                "shards": [(shard.split, shard.tokens, shard.tokens_sha256) for shard in self.shards],
            }
        )

    def tokens(self, split: Split) -> int:
        return sum(shard.tokens for shard in self.shards if shard.split == split)

    def of_split(self, split: Split) -> list[Shard]:
        return [shard for shard in self.shards if shard.split == split]

    def write(self, directory: Path) -> None:
        write_json(
            directory / "manifest.json",
            {"format": FORMAT, "version": FORMAT_VERSION, **asdict(self), "digest": self.digest},
        )


def gpt2_tokenizer_record() -> dict[str, Any]:
    """The manifest's word for GPT-2's byte-pair encoding."""
    return {"name": tokenizer.NAME, "vocabulary_sha256": tokenizer.FILES["vocab.bpe"]}


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
        if (kind, version) == (FORMAT, FORMAT_VERSION):
            manifest = Manifest(**{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])})
            check_types(manifest)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DataError(f"{path}: is not a manifest of regpt's, or not a whole one", PREPARE_AGAIN) from None
    if (kind, version) != (FORMAT, FORMAT_VERSION):
        raise DataError(
            f"{path}: is {kind} version {version}; this regpt reads {FORMAT} version {FORMAT_VERSION}",
            PREPARE_AGAIN,
        )
    if digest != manifest.digest:
        raise DataError(f"{path}: was changed after it was written (its digest does not fit)", PREPARE_AGAIN)
    return manifest


def check_types(manifest: Manifest) -> None:
    """Raise TypeError or ValueError where a manifest holds something that no regpt has written."""
    for shard in manifest.shards:
        texts = (shard.name, shard.sha256, shard.tokens_sha256)
        counts = (shard.tokens, shard.documents)
        if not all(type(text) is str for text in texts) or not all(type(count) is int for count in counts):
            raise TypeError
        if Path(shard.name).name != shard.name or shard.split not in SPLITS or shard.form not in SHARD_FORMATS:
            raise ValueError  # a shard lies in the manifest's own folder
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
    """A split as windows of block_size + 1 tokens, numbered through all its shards, read from the files as asked.

    A window gives block_size inputs and, one token later, block_size targets; the next begins where its inputs end. No
    window crosses from one shard into the next, so up to block_size tokens at the end of a shard are not used.

    The files are read, not mapped: a mapped file that somebody truncates kills the process without a word, and mapped
    pages count as the process's memory. Safe to use from several threads.
    """

    def __init__(self, directory: Path, manifest: Manifest, split: Split, block_size: int) -> None:
        self.block_size = block_size
        self.open: OrderedDict[int, IO[bytes]] = OrderedDict()  # shard number -> file, the longest unused first
        self.reading = threading.Lock()
        self.shards = manifest.of_split(split)
        self.paths = [directory / shard.name for shard in self.shards]
        windows = [max(0, (shard.tokens - 1) // block_size) for shard in self.shards]
        self.first_window = np.concatenate([[0], np.cumsum(windows, dtype=np.int64)])
        self.header_bytes = [check_shard(path, shard) for path, shard in zip(self.paths, self.shards, strict=True)]

    def __len__(self) -> int:
        return int(self.first_window[-1])

    def rows(self, windows: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint16]:
        """The tokens of the windows, (windows, block_size + 1).

        Raises DataError, naming the file, where a shard was changed since it was checked.
        """
        of_shard, tokens_before = self.places(np.asarray(windows, dtype=np.int64))
        out = np.empty((len(of_shard), self.block_size + 1), dtype=DTYPE)
        with self.reading:
            for row, shard, before in zip(out, of_shard.tolist(), tokens_before.tolist(), strict=True):
                file = self.file(shard)
                file.seek(self.header_bytes[shard] + before * DTYPE.itemsize)
                if file.readinto(row) != row.nbytes:  # type: ignore[attr-defined]
                    raise DataError(f"{self.paths[shard]}: was cut short while it was in use", PREPARE_AGAIN)
        if out.size and int(out.max()) >= tokenizer.VOCABULARY:
            shard = int(of_shard[out.max(axis=1).argmax()])
            raise DataError(
                f"{self.paths[shard]}: holds the token {int(out.max())}, beyond GPT-2's {tokenizer.VOCABULARY:,}",
                PREPARE_AGAIN,
            )
        return out

    def places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(number of its shard, tokens before it there) of each window."""
        of_shard = np.searchsorted(self.first_window, numbers, side="right") - 1
        return of_shard, (numbers - self.first_window[of_shard]) * self.block_size

    def place(self, number: int) -> tuple[Shard, int]:
        """A window's shard, and the tokens before it there. Raises DataError where there is no such window."""
        if not 0 <= number < len(self):
            raise DataError(
                f"there is no window {number:,}: the split has {len(self):,} of {self.block_size:,} tokens",
                "name a lower number, counted from 0" if len(self) else "it is too short for one",
            )
        of_shard, before = self.places(np.array([number]))
        return self.shards[int(of_shard[0])], int(before[0])

    def documents_before(self, number: int) -> int:
        """How many documents begin in the window's shard before it."""
        of_shard, before = self.places(np.array([number]))
        shard, left, found = int(of_shard[0]), int(before[0]), 0
        with self.paths[shard].open("rb") as file:
            file.seek(self.header_bytes[shard])
            while left > 0:
                some = np.frombuffer(file.read(DTYPE.itemsize * min(left, 1 << 22)), dtype=DTYPE)
                found += int(np.count_nonzero(some == tokenizer.END_OF_TEXT))
                left -= max(1, len(some))
        return found

    def file(self, shard: int) -> IO[bytes]:
        if shard not in self.open:
            if len(self.open) >= OPEN_FILES:
                self.open.popitem(last=False)[1].close()
            self.open[shard] = self.paths[shard].open("rb", buffering=0)
        self.open.move_to_end(shard)
        return self.open[shard]

    def close(self) -> None:
        """Let go of the files; a later read opens them again."""
        with self.reading:
            while self.open:
                self.open.popitem()[1].close()

    def __del__(self) -> None:
        self.close()


def check_shard(path: Path, shard: Shard) -> int:
    """Hold a file's size and header against the manifest; cheap, done at every start. Returns the header's bytes."""
    tokens, header_bytes = read_header(path, shard.form)
    if tokens != shard.tokens:
        raise DataError(f"{path}: holds {tokens:,} tokens, the manifest promises {shard.tokens:,}", PREPARE_AGAIN)
    return header_bytes


def check_manifest_fits(manifest: Manifest, batch_windows: int, block_size: int) -> None:
    """Raise DataError if a split is too small for one batch; see `check_fits`."""
    tokens = {split: manifest.tokens(split) for split in SPLITS}
    windows = {
        split: sum(max(0, shard.tokens - 1) // block_size for shard in manifest.of_split(split)) for split in SPLITS
    }
    check_fits(tokens, windows, batch_windows, block_size)


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
