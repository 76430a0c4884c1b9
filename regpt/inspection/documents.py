"""The documents of a split, read once in bounded memory, and the list of the validation documents.

A document is a stretch between two end tokens. Whether an end token stands before a document (regpt, build-nanogpt,
llm.c) or after it (nanoGPT) makes no difference. Empty documents do not count.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size

from regpt.base.errors import DataError, UserError
from regpt.base.format import percent, shown
from regpt.data.formats import opened
from regpt.data.shards import PREPARE_AGAIN, Manifest, Split, check_shard
from regpt.data.token_statistics import read_stretches
from regpt.data.tokenizer import GPT2_VOCABULARY, Vocabulary
from regpt.tokenization.opening import tokenizer_in

Tokens = NDArray[np.integer]

LARGEST = 10  # documents in the short list
BEGINNING = 48  # tokens of a document that are kept to show its first words
TOKENS_PER_READ = 1 << 20
HEADING = f"  {'document':>10} {'tokens':>12} {'share':>8}  first words"
NARROWEST = 20  # characters of the first words, however narrow the terminal is


@dataclass(frozen=True)
class Document:
    """A document of one split."""

    number: int  # in the order of the split, from 1
    start: int  # tokens of the split before its first token
    tokens: int  # without the end token
    beginning: Tokens  # its first tokens


def pieces_of(directory: Path, manifest: Manifest, split: Split, size: int = TOKENS_PER_READ) -> Iterator[Tokens]:
    """Yield the tokens of a split in order, in pieces of at most `size`. Raise DataError if a shard has changed."""
    dtype = manifest.vocabulary.dtype
    for shard in manifest.of_split(split):
        path, left = directory / shard.name, shard.tokens
        header_bytes = check_shard(path, shard, dtype)
        with opened(path) as file:
            file.seek(header_bytes)
            while left:
                content = file.read(dtype.itemsize * min(size, left))
                if not content or len(content) % dtype.itemsize:
                    raise DataError(f"{path}: truncated while in use", PREPARE_AGAIN)
                yield np.frombuffer(content, dtype=dtype)
                left -= len(content) // dtype.itemsize


def beginning_at(directory: Path, manifest: Manifest, split: Split, start: int) -> Tokens:
    """Return the first tokens of the document that begins after `start` tokens of a split."""
    vocabulary = manifest.vocabulary
    found, before = np.empty(0, dtype=vocabulary.dtype), 0
    for shard in manifest.of_split(split):
        first = max(0, start + len(found) - before)
        if len(found) < BEGINNING and first < shard.tokens:
            [more] = read_stretches(directory, manifest, shard, [first], BEGINNING - len(found))
            found = np.concatenate([found, more])
        before += shard.tokens
    end = vocabulary.end_of_text
    return found[: int(np.argmax(np.append(found, end) == end))]


def documents_of(pieces: Iterator[Tokens], vocabulary: Vocabulary = GPT2_VOCABULARY) -> Iterator[Document]:
    """Yield the documents of a sequence of tokens. Only the beginning of the current one is kept."""
    number, before, start = 1, 0, 0
    beginning = np.empty(0, dtype=vocabulary.dtype)
    for piece in pieces:
        first = 0  # of the current document in this piece
        for end in np.flatnonzero(piece == vocabulary.end_of_text).tolist():
            if before + end > start:
                yield Document(number, start, before + end - start, extended(beginning, piece[first:end]))
                number += 1
                beginning = beginning[:0]
            first, start = end + 1, before + end + 1
        beginning = extended(beginning, piece[first:])
        before += len(piece)
    if before > start:
        yield Document(number, start, before - start, beginning)


def extended(beginning: Tokens, following: Tokens) -> Tokens:
    """Return the first tokens of a document, with those that follow in the next piece; a copy, so no piece is kept."""
    missing = BEGINNING - len(beginning)
    return np.concatenate([beginning, following[:missing]]) if missing > 0 else beginning


def validation_documents(directory: Path, manifest: Manifest) -> Iterator[Document]:
    """Yield the documents of the validation split."""
    return documents_of(pieces_of(directory, manifest, "val"), manifest.vocabulary)


def list_all(directory: Path, manifest: Manifest, width: int) -> Iterator[str]:
    """Yield a line for each validation document, in the order of the split, while they are read."""
    total, words = manifest.tokens("val"), first_words(directory, manifest)
    yield HEADING
    for document in validation_documents(directory, manifest):
        yield line(document, total, words, width)


def list_largest(directory: Path, manifest: Manifest, width: int) -> Iterator[str]:
    """Yield the number of the validation documents, a line for each of the largest, and the rest as one."""
    total, words = manifest.tokens("val"), first_words(directory, manifest)
    largest: list[tuple[int, int, Document]] = []
    number = tokens = 0
    for document in validation_documents(directory, manifest):
        number += 1
        tokens += document.tokens
        entry = (document.tokens, -document.number, document)
        if len(largest) < LARGEST:
            heapq.heappush(largest, entry)
        else:
            heapq.heappushpop(largest, entry)
    rest = number - len(largest)
    yield f"validation documents: {number:,}" + (f", the {LARGEST} largest:" if rest else "")
    yield HEADING
    for _, _, document in sorted(largest, reverse=True):
        yield line(document, total, words, width)
    if rest:
        tokens -= sum(document.tokens for _, _, document in largest)
        yield f"  {f'{rest:,} more':>10} {tokens:>12,} {percent(tokens / total):>8}  --documents lists all"


def line(document: Document, total: int, words: Callable[[Tokens], str], width: int) -> str:
    start = f"  {document.number:>10,} {document.tokens:>12,} {percent(document.tokens / max(1, total)):>8}  "
    return start + fitting(words(document.beginning), width - len(start))


def first_words(directory: Path, manifest: Manifest) -> Callable[[Tokens], str]:
    """Return the function from first tokens to text on one line; to token ids where the vocabulary is missing."""
    try:
        tokenizer = tokenizer_in(directory, manifest.tokenizer)
        tokenizer.decode([0])
    except UserError:
        return lambda tokens: f"tokens {' '.join(map(str, tokens.tolist()))}"
    return lambda tokens: shown(" ".join(tokenizer.decode(tokens).rstrip("\N{REPLACEMENT CHARACTER}").split()))


def fitting(text: str, width: int) -> str:
    """Cut a text to a width in a terminal, where some characters take two columns."""
    width = max(NARROWEST, width)
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"
