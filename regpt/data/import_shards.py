"""Existing shards: import those of other programs as they are, and verify any dataset."""

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import new_directory
from regpt.base.progress import NoProgress, Progress
from regpt.data.formats import ShardFormat, opened, read_header, shard_format
from regpt.data.loss_masks import mask_faults
from regpt.data.shard_writer import write_tokenizer
from regpt.data.shards import Manifest, Shard, Split, check_shard, read_manifest
from regpt.data.token_statistics import measure, write_statistics
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer, owner
from regpt.data.validation_split import SplitRule, ValidationSplit, describe_rule

BYTES_PER_READ = 1 << 22


class ByteCounter:
    """Counts the bytes of tokens that were read, and reports them to a `Progress`, which may stop the work."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.progress = total, progress
        self.done = 0

    def add(self, count: int) -> None:
        self.done += count
        self.progress.update(self.done, self.total)
        self.progress.raise_if_stopped()


@dataclass(frozen=True)
class FoundShard:
    """A shard of another program, after reading its header."""

    path: Path
    form: ShardFormat
    split: Split
    tokens: int
    header_bytes: int


def find_shards(
    directory: Path, without_header: bool = False, tokenizer: Tokenizer = GPT2_TOKENIZER
) -> list[FoundShard]:
    """Return the shards of a tokenizer's ids in a folder by name, validation first, as regpt writes them.

    With `without_header` they are plain uint16, as nanoGPT writes them. Raise DataError if the directory holds no
    shards, if a header and a size disagree, or if a name has no split.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder", "name the folder that holds the shards")
    if (directory / "manifest.json").exists():
        raise DataError(f"{directory}: already a dataset of regpt", "use it: data.path=…, or `regpt data show`")
    paths = sorted((path for path in directory.iterdir() if path.is_file()), key=natural_sort_key)
    forms = [(path, form) for path in paths if (form := shard_format(path))]
    if without_header:
        check_vocabulary_of_nanogpt(directory)
        forms = [(path, "raw") for path, _ in forms]
    twins = [stem for stem, count in Counter(path.stem for path, _ in forms).items() if count > 1]
    if twins:
        raise DataError(f"{directory}: has {twins[0]} in two formats", "move one of them out of the folder")
    if not forms:
        raise DataError(f"{directory}: no token shards", "name a folder of build-nanogpt's .npy or llm.c's .bin files")
    found = [
        FoundShard(path, form, split_of(path), *read_header(path, form, tokenizer.ids.dtype)) for path, form in forms
    ]
    return sorted(found, key=lambda one: one.split != "val")


def check_vocabulary_of_nanogpt(directory: Path) -> None:
    """Raise DataError if nanoGPT has made the tokens with a vocabulary of characters, which it writes next to them."""
    vocabulary = directory / "meta.pkl"
    if vocabulary.exists():
        raise DataError(
            f"{vocabulary}: the tokens are numbers of single characters, not GPT-2's",
            "use text that was prepared with GPT-2's tokenizer, or give the text itself to `regpt prepare`",
        )


def default_target(directory: Path) -> Path:
    """Return the folder in data/ that an import makes unless another is named."""
    target = Path("data", directory.resolve().name)
    return target.with_name(f"{target.name}-imported") if target.resolve() == directory.resolve() else target


def natural_sort_key(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names as numbers: train_2 before train_10."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", path.name)]


def split_of(path: Path) -> Split:
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    name = {"train": "train" in words, "val": bool(words & {"val", "valid", "validation"})}
    if name["train"] == name["val"]:
        raise DataError(
            f"{path}: the name does not tell the split, training or validation",
            "rename it, with the word 'train' or 'val' in the name, or move it out of the folder",
        )
    return "train" if name["train"] else "val"


def import_shards(
    directory: Path,
    found: list[FoundShard],
    into: Path | None,
    progress: Progress | None = None,
    tokenizer: Tokenizer = GPT2_TOKENIZER,
) -> Manifest:
    """Write a manifest and statistics for shards, in their own folder, or in a new folder `into` of links to them.

    The shards are read, not changed. Another tokenizer than GPT-2's keeps its files there. Raise DataError if a token
    is not the tokenizer's, or if the manifest cannot be written.
    """
    check_writable(directory, into)
    width = tokenizer.ids.dtype.itemsize
    counter = ByteCounter(sum(width * one.tokens for one in found), progress or NoProgress())
    by_files = ValidationSplit(rule=SplitRule.FILES)
    manifest = Manifest(
        tokenizer=tokenizer.record,
        source={"asked": str(directory), "description": f"shards of {directory.resolve().name}", "imported": True},
        split_rule=describe_rule(by_files, 0),
        validation=by_files,
        shards=tuple(shard_of(one, counter, tokenizer) for one in found),
        statistics={},
    )
    statistics = {
        "documents": sum(s.documents for s in manifest.shards),
        "tokens": sum(s.tokens for s in manifest.shards),
    }
    manifest.statistics.update(statistics)
    measured = measure(directory, manifest, None if tokenizer is GPT2_TOKENIZER else tokenizer.bytes_of_tokens())
    if into is None:
        write_tokenizer(tokenizer, directory)
        manifest.write(directory)
        write_statistics(directory, manifest, measured)
        return manifest
    with new_directory(into) as made:
        for one in found:
            link_to(one.path.resolve(), made / one.path.name)
        write_tokenizer(tokenizer, made)
        manifest.write(made)
        write_statistics(made, manifest, measured)
    return manifest


def link_to(shard: Path, link: Path) -> None:
    """Make a symbolic link, or a hard link where a file system or Windows allows no symbolic ones."""
    try:
        link.symlink_to(shard)
    except OSError as error:
        try:
            link.hardlink_to(shard)
        except OSError:
            raise DataError(
                f"{link.parent}: its file system has no links ({error.strerror})",
                "write the manifest next to the shards: --in-place; or name a folder on another disk: --into FOLDER",
            ) from None


def check_writable(directory: Path, into: Path | None) -> None:
    """Raise DataError if the manifest or the folder of links cannot be written, before hours of reading."""
    if into is None:
        tried, fix = directory, "make a folder of links to the shards elsewhere: --into FOLDER"
    elif os.path.lexists(into):
        raise DataError(f"{into}: exists already", "use it, delete it, or name another folder: --into FOLDER")
    else:
        tried, fix = next(p for p in into.absolute().parents if p.exists()), "name another folder: --into FOLDER"
    try:
        with tempfile.TemporaryFile(dir=tried):
            pass
    except OSError as error:
        raise DataError(f"{tried}: cannot be written ({error.strerror})", fix) from None


def shard_of(found: FoundShard, counter: ByteCounter, tokenizer: Tokenizer) -> Shard:
    """Read a shard once and return its record. Raise DataError if a token is outside the vocabulary."""
    ids = tokenizer.ids
    hash_of_file, hash_of_tokens = hashlib.sha256(), hashlib.sha256()
    documents = position = 0
    with opened(found.path) as file:
        hash_of_file.update(file.read(found.header_bytes))
        while piece := file.read(BYTES_PER_READ):
            hash_of_file.update(piece)
            hash_of_tokens.update(piece)
            tokens: NDArray[np.integer] = np.frombuffer(piece, dtype=ids.dtype)
            if int(tokens.max()) >= ids.size:
                where, name = int(np.argmax(tokens >= ids.size)), owner(tokenizer.name)
                raise DataError(
                    f"{found.path}: token {position + where:,} is {tokens[where]}; {name}'s highest is"
                    f" {ids.size - 1:,}",
                    f"use shards of {name}'s tokens; if these are, the file is damaged: download it again; if they are"
                    " of another tokenizer, name it: --tokenizer FILE",
                )
            documents += int(np.count_nonzero(tokens == ids.end_of_text))
            position += len(tokens)
            counter.add(len(piece))
    return Shard(
        found.path.name,
        found.split,
        found.form,
        found.tokens,
        documents,
        hash_of_file.hexdigest(),
        hash_of_tokens.hexdigest(),
    )


def verify(directory: Path, progress: Progress | None = None) -> Iterator[str]:
    """Read a whole dataset and yield a line for each shard that does not match the manifest.

    Raise DataError if the manifest is missing or damaged.
    """
    manifest = read_manifest(directory)
    shards, dtype = manifest.shards, manifest.vocabulary.dtype
    counter = ByteCounter(sum(dtype.itemsize * shard.tokens for shard in shards), progress or NoProgress())
    for shard in shards:
        path = directory / shard.name
        digest = hashlib.sha256()
        try:
            header_bytes = check_shard(path, shard, dtype)
            with opened(path) as file:
                digest.update(file.read(header_bytes))
                while piece := file.read(BYTES_PER_READ):
                    digest.update(piece)
                    counter.add(len(piece))
        except DataError as error:
            counter.add(dtype.itemsize * shard.tokens)
            yield error.problem
            continue
        if digest.hexdigest() != shard.sha256:
            yield f"{path}: SHA-256 is {digest.hexdigest()[:12]}…, but the manifest says {shard.sha256[:12]}…"
        yield from mask_faults(path, shard.mask_sha256)
