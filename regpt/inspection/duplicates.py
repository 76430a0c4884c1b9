"""Documents on both sides of a split: the same tokens, and near-duplicates by shingles.

The containment of a validation document in another document is the share of its different shingles that the other one
has (Broder 1997); repeated text does not count (see `ShingleIndex`). Validation is indexed, and training is streamed
past it once, so memory depends on the size of validation only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.format import byte_size
from regpt.base.progress import NoProgress, Progress
from regpt.data.shards import Manifest, Split
from regpt.inspection.documents import Tokens, pieces_of
from regpt.inspection.duplicate_record import NEAR, OVERLAP, SplitDuplicates
from regpt.inspection.shingle_index import BYTES_PER_TOKEN, ShingleIndex
from regpt.inspection.shingles import PIECE, HashedPiece, Numbers, hashed
from regpt.machine.limits import free_memory

BUFFER_BYTES = 150_000_000  # the most that one piece of training takes; 10 MB where little is found
TRIAL_PIECES = 8  # of training, for an estimate of the time


class Kind(IntEnum):
    """What a validation document has in common with training, from nothing to everything."""

    NOTHING = 0
    REPEATED = 1  # more than half of it is repeated text, and at least half of it is in training
    OVERLAP = 2  # its containment in one training document is at least OVERLAP
    NEAR = 3  # the same, at least NEAR
    EXACT = 4  # a training document has the same tokens, by length and a 64-bit hash


@dataclass(frozen=True)
class Match:
    """A validation document and the document that contains most of it, or has the same tokens."""

    kind: Kind
    validation: int  # numbers from 1, in the order of their split
    other: int
    other_start: int  # tokens of its split before the other document
    containment: float
    tokens: int  # of the validation document
    start: int


@dataclass(frozen=True)
class Findings:
    """All that a search has found."""

    record: SplitDuplicates
    most_frequent: int  # of the documents that have a shingle, where it is not repeated text
    across: list[Match]  # with training, most tokens in common first
    within: list[Match]  # with another validation document


class Matcher:
    """Compares a stream of documents with all validation documents, and keeps the best match of each of these."""

    def __init__(self, index: ShingleIndex, excludes_itself: bool = False) -> None:
        """`excludes_itself`: the stream is validation, and no document is its own duplicate."""
        self.index, self.excludes_itself = index, excludes_itself
        documents = len(index.tokens)
        self.containment = np.zeros(documents)
        self.is_exact = np.zeros(documents, dtype=np.bool_)
        self.other = np.full(documents, -1, dtype=np.int64)
        self.other_start = np.zeros(documents, dtype=np.int64)
        self.is_seen = np.zeros(len(index.shingles), dtype=np.bool_)  # anywhere in the stream
        self.carried = np.empty(0, dtype=np.int64)  # shingles of the document that the next piece continues
        self.by_hash = np.argsort(index.document_hash, kind="stable")
        self.sorted_hashes = index.document_hash[self.by_hash]
        if excludes_itself:
            self.find_equal_neighbors()

    def add(self, piece: HashedPiece) -> None:
        """Compare the documents that end in a piece, and keep the shingles of the one that continues."""
        positions, shingles = self.index.find(piece)
        self.is_seen[shingles] = True
        place = np.append(np.zeros(len(self.carried), dtype=np.int64), np.searchsorted(piece.ends, positions))
        keys = np.unique(place * len(self.index.shingles) + np.append(self.carried, shingles))
        place, shingles = np.divmod(keys, max(1, len(self.index.shingles)))
        continues = place == len(piece.ends)
        self.carried = shingles[continues]
        self.compare(piece, place[~continues], shingles[~continues])
        if not self.excludes_itself:
            self.compare_whole(piece)

    def compare(self, piece: HashedPiece, place: Numbers, shingles: Numbers) -> None:
        """Update the best matches. Each pair of a document of the piece, by its place, and a shingle is given once."""
        number = len(self.index.tokens)
        documents, of_pair = self.index.pairs_of(shingles)
        keys, common = np.unique(place[of_pair] * number + documents, return_counts=True)
        others, documents = np.divmod(keys, max(1, number))
        containment = common / self.index.distinctive[documents]
        is_better = containment > self.containment[documents]
        if self.excludes_itself:
            is_better &= piece.document[others] != documents
        others, documents, containment = others[is_better], documents[is_better], containment[is_better]
        order = np.lexsort((others, -containment, documents))
        others, documents, containment = others[order], documents[order], containment[order]
        best = np.flatnonzero(np.append(True, documents[1:] != documents[:-1])[: len(documents)])
        others, documents, containment = others[best], documents[best], containment[best]
        self.containment[documents] = containment
        self.keep(documents, piece.document[others], piece.start[others])

    def compare_whole(self, piece: HashedPiece) -> None:
        """Find validation documents with the same tokens as a document that ends in the piece."""
        ended = np.flatnonzero(piece.tokens[:-1])
        first = np.searchsorted(self.sorted_hashes, piece.document_hash[ended])
        first, places = first[first < len(self.by_hash)], ended[first < len(self.by_hash)]
        is_new = (self.sorted_hashes[first] == piece.document_hash[places]) & ~self.is_exact[self.by_hash[first]]
        groups, one_of_each = np.unique(first[is_new], return_index=True)
        for group, place in zip(groups.tolist(), places[is_new][one_of_each].tolist(), strict=True):
            end = np.searchsorted(self.sorted_hashes, self.sorted_hashes[group], side="right")
            same = self.by_hash[group:end]
            same = same[self.index.tokens[same] == piece.tokens[place]]
            self.is_exact[same] = True
            self.keep(same, piece.document[place], piece.start[place])

    def find_equal_neighbors(self) -> None:
        """Find the documents of the index that have the same tokens as another one, which is next to them by hash."""
        order, tokens = self.by_hash, self.index.tokens[self.by_hash]
        is_same = (self.sorted_hashes[1:] == self.sorted_hashes[:-1]) & (tokens[1:] == tokens[:-1])
        for document, other in ((order[:-1], order[1:]), (order[1:], order[:-1])):
            self.is_exact[document[is_same]] = True
            self.keep(document[is_same], other[is_same], self.index.start[other[is_same]])

    def keep(self, documents: Numbers, others: Numbers, starts: Numbers) -> None:
        self.other[documents], self.other_start[documents] = others, starts

    def kinds(self) -> NDArray[np.int64]:
        """Return the kind of each validation document, as numbers of `Kind`."""
        index = self.index
        shingles, seen = index.count(np.ones_like(self.is_seen)), index.count(self.is_seen)
        is_repeated = (2 * index.distinctive < shingles) & (2 * seen >= shingles)
        kinds = np.where(is_repeated, Kind.REPEATED, Kind.NOTHING)
        kinds[self.containment >= OVERLAP] = Kind.OVERLAP
        kinds[self.containment >= NEAR] = Kind.NEAR
        kinds[self.is_exact] = Kind.EXACT
        return kinds

    def matches(self) -> list[Match]:
        """Return the best match of each document that overlaps with another one, most common tokens first."""
        kinds, containment = self.kinds(), np.where(self.is_exact, 1.0, self.containment)
        found = np.flatnonzero(kinds >= Kind.OVERLAP)
        order = np.argsort(-(containment * self.index.tokens)[found], kind="stable")
        return [
            Match(
                kind=Kind(int(kinds[n])),
                validation=n + 1,
                other=int(self.other[n]) + 1,
                other_start=int(self.other_start[n]),
                containment=float(containment[n]),
                tokens=int(self.index.tokens[n]),
                start=int(self.index.start[n]),
            )
            for n in found[order].tolist()
        ]


class Search:
    """A search for duplicates in one dataset: its cost first, then its result."""

    def __init__(self, directory: Path, manifest: Manifest, progress: Progress | None = None) -> None:
        self.directory, self.manifest, self.progress = directory, manifest, progress or NoProgress()
        self.total = 2 * manifest.tokens("val") + manifest.tokens("train")
        self.done = 0  # tokens, of all passes

    @property
    def memory(self) -> int:
        """The most bytes that the search needs."""
        return BYTES_PER_TOKEN * self.manifest.tokens("val") + BUFFER_BYTES

    def build_index(self) -> ShingleIndex:
        """Index validation. Raise DataError if that needs more memory than is free."""
        if self.memory > free_memory():
            raise DataError(
                f"{self.directory}: comparing {self.manifest.tokens('val'):,} validation tokens with training needs"
                f" {byte_size(self.memory)} of memory; {byte_size(free_memory())} are free",
                "use a machine with more memory, or prepare the dataset with a smaller data.validation_tokens",
            )
        return ShingleIndex.build(hashed(self.counted("val"), self.manifest.vocabulary))

    def estimated_seconds(self, index: ShingleIndex) -> float:
        """Estimate the time of `run` from the first pieces of training."""
        started_at, tokens, matcher = perf_counter(), 0, Matcher(index)
        pieces = islice(pieces_of(self.directory, self.manifest, "train", PIECE), TRIAL_PIECES)
        for piece in hashed(pieces, self.manifest.vocabulary):
            matcher.add(piece)
            tokens += len(piece.hashes)
        seconds = perf_counter() - started_at
        return seconds / max(1, tokens) * (self.total - self.manifest.tokens("val"))

    def run(self, index: ShingleIndex) -> Findings:
        """Compare validation with itself and with training."""
        within, across = Matcher(index, excludes_itself=True), Matcher(index)
        for piece in hashed(self.counted("val"), self.manifest.vocabulary):
            within.add(piece)
        for piece in hashed(self.counted("train"), self.manifest.vocabulary):
            across.add(piece)
        record = record_of(self.manifest, index, across, within)
        return Findings(record, index.most_frequent, across.matches(), within.matches())

    def counted(self, split: Split) -> Iterator[Tokens]:
        for piece in pieces_of(self.directory, self.manifest, split, PIECE):
            self.progress.raise_if_stopped()
            yield piece
            self.done += len(piece)
            self.progress.update(self.done, self.total)


def record_of(manifest: Manifest, index: ShingleIndex, across: Matcher, within: Matcher) -> SplitDuplicates:
    """Count the documents of each kind, and their tokens."""
    kinds, tokens = across.kinds(), index.tokens
    names = {Kind.EXACT: "exact", Kind.NEAR: "near", Kind.OVERLAP: "overlapping", Kind.REPEATED: "repeated"}
    counts = {f"{name}_documents": int((kinds == kind).sum()) for kind, name in names.items()}
    sizes = {f"{name}_tokens": int(tokens[kinds == kind].sum()) for kind, name in names.items()}
    is_twice = within.kinds() >= Kind.NEAR
    return SplitDuplicates(
        **counts,
        **sizes,
        validation_documents=len(tokens),
        validation_tokens=manifest.tokens("val"),
        within_documents=int(is_twice.sum()),
        within_tokens=int(tokens[is_twice].sum()),
        shared_shingles=float(index.frequency @ across.is_seen / max(1, len(index.documents))),
    )
