"""An index of the shingles of the validation documents: which of them have a shingle, and how many each document has.

Its memory is bounded by the size of validation, and so is the work for one shingle: one that many documents have is
repeated text, such as a licence or a header, and leads to no document.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from regpt.inspection.shingles import HashedPiece, Hashes, Numbers

# A shingle is repeated text if more documents have it than a quarter of all, but at least FEWEST and at most MOST.
FEWEST, MOST, SHARE = 3, 32, 4
SMALLEST_TABLE, LARGEST_TABLE = 16, 28  # bits
TABLE_ENTRIES = 16  # for each shingle, at least: few others then share its entry
BYTES_PER_TOKEN = 75  # of validation: the most that the index and its construction take


@dataclass(frozen=True)
class ShingleIndex:
    """The shingles and documents of validation: S different shingles, D documents, P pairs of both."""

    start: Numbers  # (D) tokens of the split before each document
    tokens: Numbers  # (D) without the end token
    document_hash: Hashes  # (D)
    shingles: Hashes  # (S) in order
    first: Numbers  # (S + 1) of each shingle's documents in `documents`
    documents: NDArray[np.uint32]  # (P) by shingle

    @classmethod
    def build(cls, pieces: Iterator[HashedPiece]) -> Self:
        """Index the documents of a split."""
        start, tokens, document_hash, hashes, documents = [], [], [], [], []
        for piece in pieces:
            closed = np.flatnonzero(piece.tokens[:-1])
            start.append(piece.start[closed])
            tokens.append(piece.tokens[closed])
            document_hash.append(piece.document_hash[closed])
            positions = np.flatnonzero(piece.is_shingle)
            hashes.append(piece.hashes[positions])
            documents.append(piece.document[np.searchsorted(piece.ends, positions)].astype(np.uint32))
        pairs = sorted_pairs(np.concatenate(hashes), np.concatenate(documents))
        is_first = np.append(True, pairs[0][1:] != pairs[0][:-1])[: len(pairs[0])]
        first = np.flatnonzero(is_first)
        return cls(
            np.concatenate(start),
            np.concatenate(tokens),
            np.concatenate(document_hash),
            pairs[0][first],
            np.append(first, len(pairs[0])),
            pairs[1],
        )

    @cached_property
    def frequency(self) -> Numbers:
        """The number of documents that have each shingle.  -> (S)"""
        return np.diff(self.first)

    @property
    def most_frequent(self) -> int:
        """The largest number of documents that a shingle may have and not be repeated text."""
        return max(FEWEST, min(MOST, len(self.tokens) // SHARE))

    @cached_property
    def is_repeated(self) -> NDArray[np.bool_]:
        """Whether each shingle is repeated text.  -> (S)"""
        return self.frequency > self.most_frequent

    @cached_property
    def distinctive(self) -> Numbers:
        """The number of different shingles of each document that are not repeated text.  -> (D)"""
        return self.count(~self.is_repeated)

    def count(self, chosen: NDArray[np.bool_]) -> Numbers:
        """Return how many of the chosen shingles each document has.  (S) -> (D)"""
        return np.bincount(self.documents[np.repeat(chosen, self.frequency)], minlength=len(self.tokens))

    @cached_property
    def table(self) -> NDArray[np.bool_]:
        """Whether any shingle's hash begins with certain bits; most others are dismissed here without a search."""
        bits = max(SMALLEST_TABLE, min(LARGEST_TABLE, (TABLE_ENTRIES * len(self.shingles)).bit_length()))
        table = np.zeros(1 << bits, dtype=np.bool_)
        table[self.shingles >> np.uint64(64 - bits)] = True
        return table

    def find(self, piece: HashedPiece) -> tuple[Numbers, Numbers]:
        """Return the positions of a piece's shingles that validation has, in any order, and their numbers here."""
        if not len(self.shingles):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        shift = np.uint64(64 - (len(self.table).bit_length() - 1))
        entries = (piece.hashes >> shift).view(np.int64)
        positions = np.flatnonzero(self.table[entries] & piece.is_shingle)
        hashes = piece.hashes[positions]
        order = np.argsort(hashes)  # a search is faster where the next one is near
        positions, hashes = positions[order], hashes[order]
        numbers = np.minimum(np.searchsorted(self.shingles, hashes), len(self.shingles) - 1)
        is_found = self.shingles[numbers] == hashes
        return positions[is_found], numbers[is_found]

    def pairs_of(self, shingles: Numbers) -> tuple[Numbers, Numbers]:
        """Return the documents that have each shingle, and its place in `shingles`; none of repeated text."""
        counts = np.where(self.is_repeated[shingles], 0, self.frequency[shingles])
        place = np.repeat(np.arange(len(shingles)), counts)
        offset = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.documents[self.first[shingles][place] + offset].astype(np.int64), place


def sorted_pairs(hashes: Hashes, documents: NDArray[np.uint32]) -> tuple[Hashes, NDArray[np.uint32]]:
    """Sort pairs of a shingle and a document, whose documents ascend already, and keep each once."""
    order = np.argsort(hashes, kind="stable")
    hashes, documents = hashes[order], documents[order]
    del order
    is_new = np.ones(len(hashes), dtype=np.bool_)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (documents[1:] != documents[:-1])
    return hashes[is_new], documents[is_new]
