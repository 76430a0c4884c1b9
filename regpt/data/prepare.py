"""From documents to a sealed data set: tokenized in order, cut into shards, hashed, and named only when whole."""

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import locked, new_directory
from regpt.base.recipe import Recipe
from regpt.data import tokenizer
from regpt.data.corpora import Corpus, open_corpus
from regpt.data.shards import Manifest, Shard, Split, check_fits, read_manifest, write_shard

DOCUMENTS_AT_A_TIME = 64


class Progress(Protocol):
    """Who is told how far the preparation is."""

    def begin(self, parts: int, description: str) -> None: ...
    def part_done(self, tokens: int) -> None: ...
    def prepared(self, where: str, manifest: Manifest) -> None: ...


class NoProgress:
    def begin(self, parts: int, description: str) -> None: ...
    def part_done(self, tokens: int) -> None: ...
    def prepared(self, where: str, manifest: Manifest) -> None: ...


def prepare(recipe: Recipe, progress: Progress | None = None) -> Manifest:
    """Make the data set at `data.path` from `data.source`.

    Raises DataError where it exists already, where the corpus cannot be read, or where it is too small for the recipe;
    nothing is left behind then.
    """
    progress = progress or NoProgress()
    target = recipe.data.directory
    if target.exists():
        raise DataError(
            f"data.path = '{target}' exists already", "use it as it is, delete it, or name another data.path"
        )
    with locked(lock_of(target)):
        manifest = prepare_alone(recipe, target, progress)
    progress.prepared(recipe.data.path, manifest)
    return manifest


def lock_of(target: Path) -> Path:
    """Where the lock of a data set in the making lies: not beside it, so that a failure leaves nothing there."""
    name = hashlib.sha256(str(target.resolve()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "regpt-preparing" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "lock"


def prepare_alone(recipe: Recipe, target: Path, progress: Progress) -> Manifest:
    corpus = open_corpus(recipe.data.source, recipe.data.text_column)
    tokenizer.encoding()  # missing vocabulary is said before any work is done
    with new_directory(target) as directory:
        return write_data_set(recipe, corpus, directory, progress)


def write_data_set(recipe: Recipe, corpus: Corpus, directory: Path, progress: Progress) -> Manifest:
    statistics: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    writer = ShardWriter(directory, recipe.data.validation_tokens, recipe.data.shard_tokens)
    progress.begin(len(corpus.parts), corpus.description)
    for part in corpus.parts:
        for text, ids in encoded(part.documents(refused)):
            if ids is None:
                refused["tiktoken cannot encode it"] += 1
                continue
            statistics["documents"] += 1
            statistics["text_bytes"] += len(text.encode("utf-8", "surrogatepass"))
            statistics["longest_document_tokens"] = max(statistics["longest_document_tokens"], len(ids))
            writer.add(ids)
        progress.part_done(writer.tokens)
    shards = writer.close()
    tokens = {split: sum(s.tokens for s in shards if s.split == split) for split in ("train", "val")}
    if not shards:
        raise DataError(
            f"data.source = '{recipe.data.source}' holds no text ({describe(refused) or 'nothing at all'})",
            "name other text",
        )
    windows = {
        split: sum((s.tokens - 1) // recipe.model.block_size for s in shards if s.split == split) for split in tokens
    }
    check_fits(tokens, windows, recipe.batch_windows, recipe.model.block_size)
    manifest = Manifest(
        tokenizer={"name": tokenizer.NAME, "vocabulary_sha256": tokenizer.FILES["vocab.bpe"]},
        source={"asked": recipe.data.source, "description": corpus.description, "parts": len(corpus.parts)},
        split_rule=f"the first {recipe.data.validation_tokens} tokens are validation, the rest training",
        shards=tuple(shards),
        statistics={**statistics, "tokens": sum(tokens.values()), "refused": dict(sorted(refused.items()))},
    )
    manifest.write(directory)
    return manifest


def describe(refused: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(refused.items()))


def encoded(texts: Iterable[str]) -> Iterator[tuple[str, NDArray[np.uint16] | None]]:
    """Each text with its ids, in order; tiktoken frees the interpreter while it works, so threads share the cores."""
    texts = iter(texts)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        while group := list(islice(texts, DOCUMENTS_AT_A_TIME)):
            yield from zip(group, pool.map(tokenizer.encode_document, group), strict=True)


class ShardWriter:
    """Takes tokens in order and writes shards, each filled to the brim: first the validation split, then training."""

    def __init__(self, directory: Path, validation_tokens: int, shard_tokens: int) -> None:
        self.directory = directory
        self.shard_tokens = shard_tokens
        self.validation_left = validation_tokens
        self.shards: list[Shard] = []
        self.pieces: list[NDArray[np.uint16]] = []
        self.held = 0
        self.tokens = 0

    @property
    def split(self) -> Split:
        return "val" if self.validation_left > 0 else "train"

    @property
    def room(self) -> int:
        """Tokens that the current shard still takes."""
        whole = min(self.shard_tokens, self.validation_left) if self.split == "val" else self.shard_tokens
        return whole - self.held

    def add(self, ids: NDArray[np.uint16]) -> None:
        self.tokens += len(ids)
        while len(ids):
            taken, ids = ids[: self.room], ids[self.room :]
            self.pieces.append(taken)
            self.held += len(taken)
            if self.room == 0:
                self.seal()

    def seal(self) -> None:
        split = self.split
        number = sum(shard.split == split for shard in self.shards)
        tokens = np.concatenate(self.pieces)
        starts = int(np.count_nonzero(tokens == tokenizer.END_OF_TEXT))  # the end token stands once a document
        self.shards.append(write_shard(self.directory, f"{split}_{number:06d}.npy", split, tokens, starts))
        if split == "val":
            self.validation_left -= len(tokens)
        self.pieces, self.held = [], 0

    def close(self) -> list[Shard]:
        if self.held:
            self.seal()
        return self.shards


def open_or_prepare(recipe: Recipe, progress: Progress | None = None) -> Manifest:
    """The data set at `data.path`; made first where it is missing and `data.source` is at hand.

    Raises DataError where it was made from other text than a source that is at hand.
    """
    path, source = recipe.data.directory, recipe.data.source
    if not path.exists():
        return prepare(recipe, progress)
    manifest = read_manifest(path)
    made_from = manifest.source["asked"]
    if made_from != source and not source.startswith("hub:"):
        raise DataError(
            f"data.path = '{recipe.data.path}' was made from '{made_from}', not from data.source = '{source}'",
            f"name another data.path, or write data.source={made_from} to use it as it is",
        )
    return manifest
