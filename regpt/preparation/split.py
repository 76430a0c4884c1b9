"""Divide encoded text into validation and training by whole documents.

The rule is a function of GPT-2's tokens of each document, also where another tokenizer encodes it: a document is held
out if its hash is below a threshold. So equal documents are on the same side, and neither workers nor kills change the
result. The threshold is the lowest one that gives enough validation tokens. Each held-out document contributes only its
beginning, so that no long one dominates.

Validation is written in the order of the hashes. Each stretch of it, such as the first batches that training
evaluates, is then a fair sample of the text. Training keeps the order of the text.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.format import byte_size
from regpt.corpus.progress import PreparationProgress
from regpt.data import tokenizer
from regpt.data.shard_writer import HEADER_BYTES, ShardWriter, WrittenShards
from regpt.data.shards import Shard
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.data.validation_split import FEW_DOCUMENTS, Fallback, SplitRule, ValidationSplit, describe_fallback
from regpt.recipe.sections import DataRecipe

HASH = "blake2b-64 of the little-endian uint16 tokens, without the end token"
HASH_OF_TEXT = "blake2b-64 of GPT-2's little-endian uint16 tokens of the text"
TOKENS_PER_READ = 1 << 22
READ_AND_WRITTEN = 2  # each token is read once to choose, and once to write it
MANY_DOCUMENTS = 128  # the fewest validation documents of a text with many; a part of them is still a fair sample
LARGEST_SHARE = 100  # a document with more than a hundredth of all tokens is not held out, unless ...
TIMES_THE_MEAN = 4  # ... it has at most this many times the tokens of the mean document, ...
LARGEST_SHARE_OF_FEW = 10  # ... and at most a tenth of all
UNUSED_SHARE = 4  # at most a quarter of all tokens may be held out without being used


class Document(NamedTuple):
    """A document in the encoded text. Sorts by its hash, and equal documents by their position."""

    hash: int
    start: int  # of its end token
    tokens: int  # with its end token


@dataclass(frozen=True)
class EncodedText:
    """The encoded text: shards of tokens, read as one sequence."""

    folder: Path
    shards: tuple[Shard, ...]
    tokenizer: Tokenizer = GPT2_TOKENIZER

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.tokenizer.ids.dtype

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    def read(self, start: int, end: int) -> Iterator[NDArray[np.integer]]:
        """Yield the tokens from `start` to `end` in pieces. Raise DataError if a shard is too short."""
        first = 0
        for shard in self.shards:
            low, high = max(start, first), min(end, first + shard.tokens)
            if low < high:
                path = self.folder / shard.name
                with path.open("rb") as file:
                    file.seek(HEADER_BYTES + (low - first) * self.dtype.itemsize)
                    while low < high:
                        piece = np.fromfile(file, dtype=self.dtype, count=min(TOKENS_PER_READ, high - low))
                        if not len(piece):
                            raise DataError(f"{path}: truncated while in use", "run the same command again")
                        yield piece
                        low += len(piece)
            first += shard.tokens


@dataclass(frozen=True)
class HeldOut:
    """The documents that are held out."""

    split: ValidationSplit
    validation: list[Document] = field(default_factory=list)  # by hash, each once
    all: list[Document] = field(default_factory=list)  # by position, with the repeated ones


def choose(text: EncodedText, validation_tokens: int, progress: PreparationProgress) -> HeldOut:
    """Choose the documents to hold out, or record why that is impossible."""
    documents, total = text.documents, text.tokens
    fewest = max(min(FEW_DOCUMENTS, documents // 10), min(MANY_DOCUMENTS, documents // 40))
    if fewest == 0:
        return HeldOut(ValidationSplit(rule=SplitRule.FIRST_TOKENS, fallback=Fallback.FEW_DOCUMENTS))
    most_of_each = max(1, validation_tokens // fewest)
    longest = min(total // LARGEST_SHARE_OF_FEW, max(total // LARGEST_SHARE, TIMES_THE_MEAN * total // documents))
    candidates = lowest_hashes(text, validation_tokens, most_of_each, longest, progress)
    chosen, enough = enough_documents(candidates, validation_tokens, most_of_each)
    held_out_tokens = sum(document.tokens for document in chosen)
    if not enough or held_out_tokens - validation_tokens > total // UNUSED_SHARE:
        return HeldOut(ValidationSplit(rule=SplitRule.FIRST_TOKENS, fallback=Fallback.LONG_DOCUMENTS))
    validation = distinct(chosen)
    stretches = validation_stretches(validation, validation_tokens, most_of_each)
    split = ValidationSplit(
        rule=SplitRule.DOCUMENTS,
        hash=HASH if text.tokenizer is GPT2_TOKENIZER else HASH_OF_TEXT,
        threshold=f"{chosen[-1].hash + 1:016x}",
        longest_eligible=longest,
        tokens_per_document=most_of_each,
        documents=len(validation),
        largest_document=max(end - start for start, end in stretches),
        held_out_documents=len(chosen),
        held_out_tokens=held_out_tokens,
        text_tokens=total,
        validation_tokens=validation_tokens,
    )
    return HeldOut(split, validation, sorted(chosen, key=lambda document: document.start))


def distinct(by_hash: list[Document]) -> list[Document]:
    """Return the first of each group of equal documents."""
    return [document for n, document in enumerate(by_hash) if n == 0 or document.hash != by_hash[n - 1].hash]


def enough_documents(by_hash: list[Document], wanted: int, most_of_each: int) -> tuple[list[Document], bool]:
    """Return the first documents, with all their copies, that give `wanted` tokens, and whether they do."""
    found = 0
    for n, document in enumerate(by_hash):
        if n and document.hash == by_hash[n - 1].hash:
            continue
        if found >= wanted:
            return by_hash[:n], True
        found += min(document.tokens, most_of_each)
    return by_hash, found >= wanted


def lowest_hashes(
    text: EncodedText, wanted: int, most_of_each: int, longest: int, progress: PreparationProgress
) -> list[Document]:
    """Return the documents with the lowest hashes, enough of them for the split, in the order of the hashes.

    Memory is bounded by the number of validation documents: the highest hashes are dropped from time to time.
    """
    found: list[Document] = []
    limit, below = 1 << 12, 1 << 64
    for document in documents_of(text, progress):
        if document.tokens <= longest and document.hash < below:
            found.append(document)
            if len(found) >= limit:
                found.sort()
                found, enough = enough_documents(found, wanted, most_of_each)
                below = found[-1].hash + 1 if enough else below
                limit = max(limit, 2 * len(found))
    return sorted(found)


def documents_of(text: EncodedText, progress: PreparationProgress) -> Iterator[Document]:
    """Yield all documents of a text in order."""
    new_hash = TokenHash if text.tokenizer is GPT2_TOKENIZER else partial(TextHash, text.tokenizer)
    end_of_text, hasher = text.tokenizer.ids.end_of_text, new_hash()
    position = start = reported = 0
    for piece in text.read(0, text.tokens):
        if position >= reported:
            progress.raise_if_stopped()
            progress.splitting(position, READ_AND_WRITTEN * text.tokens)
            reported = position + TOKENS_PER_READ
        read = 0  # tokens
        for end in np.flatnonzero(piece == end_of_text).tolist():
            hasher.update(piece[read:end])
            if position + end > start:
                yield Document(hasher.value(), start, position + end - start)
            hasher = new_hash()
            start, read = position + end, end + 1
        hasher.update(piece[read:])
        position += len(piece)
    if position > start:
        yield Document(hasher.value(), start, position - start)


class TokenHash:
    """The hash of a document in GPT-2's tokens."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=8)

    def update(self, tokens: NDArray[np.integer]) -> None:
        self.hash.update(tokens.data)

    def value(self) -> int:
        return int.from_bytes(self.hash.digest(), "big")


class TextHash:
    """The same hash of a document in another tokenizer's tokens: its text is encoded with GPT-2's tokenizer.

    So datasets of one text hold out the same documents whatever their tokenizers, which makes them comparable.
    """

    def __init__(self, own: Tokenizer) -> None:
        self.own, self.pieces = own, list[NDArray[np.integer]]()

    def update(self, tokens: NDArray[np.integer]) -> None:
        self.pieces.append(tokens)

    def value(self) -> int:
        text = self.own.decode(np.concatenate(self.pieces))
        tokens, hashed = tokenizer.encode_or_none(text), TokenHash()
        hashed.update(np.frombuffer(text.encode(), dtype=np.uint8) if tokens is None else tokens)
        return hashed.value()


def validation_stretches(validation: list[Document], wanted: int, most_of_each: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each stretch of the validation split; together they have `wanted` tokens."""
    for document in validation:
        tokens = min(document.tokens, most_of_each, wanted)
        yield document.start, document.start + tokens
        wanted -= tokens


def training_stretches(held_out: list[Document], tokens: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each stretch between documents that are held out."""
    start = 0
    for document in held_out:
        if start < document.start:
            yield start, document.start
        start = document.start + document.tokens
    if start < tokens:
        yield start, tokens


def divide(
    folder: Path, encoded: tuple[Shard, ...], data: DataRecipe, own: Tokenizer, progress: PreparationProgress
) -> tuple[ValidationSplit, tuple[Shard, ...]]:
    """Write the shards of both splits to `folder`, from the shards of encoded text in it. A kill repeats all of it.

    Where whole documents cannot be held out, the first tokens are validation. Raise DataError if the recipe does not
    allow that, or if the disk is full.
    """
    text = EncodedText(folder, encoded, own)
    held_out = choose(text, data.validation_tokens, progress)
    if held_out.split.fallback and data.validation == "documents":
        raise DataError(
            f"data.validation = '{data.validation}': impossible, because {describe_fallback(held_out.split.fallback)}"
            f" ({text.documents:,} documents, {text.tokens:,} tokens;"
            f" data.validation_tokens = {data.validation_tokens})",
            "cut the text with data.document_separator, or set data.validation=first_tokens",
        )
    free, needed = shutil.disk_usage(folder).free, text.tokens * text.dtype.itemsize
    if needed > free:
        raise DataError(
            f"{folder.parent}: {byte_size(free)} free, about {byte_size(needed)} needed to divide the encoded text",
            "free some space; finished work is kept for the next attempt",
        )
    writer = ShardWriter(folder, data.validation_tokens, data.shard_tokens, WrittenShards(), vocabulary=own.ids)
    try:
        for piece in divided(text, held_out, progress):
            writer.add(piece)
        return held_out.split, tuple(writer.finish())
    finally:
        writer.close()


def divided(text: EncodedText, held_out: HeldOut, progress: PreparationProgress) -> Iterator[NDArray[np.integer]]:
    """Yield the tokens of the validation split, then those of training; all tokens in order where none is held out."""
    split = held_out.split
    stretches = validation_stretches(held_out.validation, split.validation_tokens, split.tokens_per_document)
    for start, end in stretches:
        yield from text.read(start, end)
    reported = 0
    for start, end in training_stretches(held_out.all, text.tokens):
        if start >= reported:
            progress.raise_if_stopped()
            progress.splitting(text.tokens + start, READ_AND_WRITTEN * text.tokens)
            reported = start + TOKENS_PER_READ
        yield from text.read(start, end)
