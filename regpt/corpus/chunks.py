"""Chunks: stretches of text of a few megabytes, each read and encoded by one worker process."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 4_000_000  # of text, roughly; more where one document or row group is larger

NO_TEXT = "no text in the column"  # reasons for leaving out a document; the manifest stores them
NO_JSON = "not JSON"


class TextChunk(Protocol):
    """A stretch of text that is not encoded yet: pickled, sent to a worker, read there."""

    @property
    def size(self) -> int:
        """Bytes of the input file that the chunk represents, for the progress bar."""

    def read(self, refused: Counter[str]) -> Iterator[object]:
        """Yield the documents in order, as str, as bytes that should be UTF-8, or as any other type if not text.

        Rows that do not even parse are counted in `refused` by reason. Raise DataError if the chunk cannot be read.
        """


@dataclass(frozen=True)
class EncodedChunk:
    """The tokens of a chunk."""

    size: int  # bytes of the input file that the chunk represents
    tokens: NDArray[np.integer]  # of all documents: each the end token and then its ids
    documents: int
    text_bytes: int  # UTF-8, of the documents in `tokens`
    longest_document: int  # in tokens, with the end token
    refused: Counter[str]  # documents left out, by reason
    continued: int = 0  # tokens at the start that belong to the last document of the chunk before
    last_document: int = 0  # tokens of the last document that starts in the chunk, with the end token
    end_marks: int = 0  # how often the name of the end token, <|endoftext|>, stands in the text


Chunk = TextChunk | EncodedChunk


@dataclass(frozen=True)
class Documents:
    """A chunk whose documents are in memory."""

    size: int
    documents: list[object]

    def read(self, refused: Counter[str]) -> Iterator[object]:
        return iter(self.documents)
