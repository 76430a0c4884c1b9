"""Hashes of the shingles and of the documents of a token sequence, one piece at a time.

A shingle is SHINGLE consecutive tokens of one document (Broder 1997, "On the resemblance and containment of
documents"). The hash of tokens t_0, t_1, ... is the sum of value(t_i) * MULTIPLIER^i modulo 2^64, with a fixed random
value of each token. It is polynomial, so all hashes of a piece are differences of one cumulative sum (Karp and Rabin
1987).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from regpt.data.tokenizer import GPT2_VOCABULARY, UINT16_IDS, Vocabulary

SHINGLE = 8  # tokens
PIECE = 1 << 16  # tokens at a time; their arrays fit into a processor's cache

Tokens = NDArray[np.integer]
Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]

MODULUS = 1 << 64
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so it has an inverse


@cache
def values_of_tokens(count: int) -> Hashes:
    """Return the random value of each token; the first ones are the same for any count."""
    return np.random.default_rng(8).integers(MODULUS, size=count, dtype=np.uint64)


def powers(base: int) -> Hashes:
    """Return base^0, base^1, ... modulo 2^64, enough for one piece."""
    factors = np.full(PIECE + SHINGLE, base, dtype=np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


POWERS, INVERSE_POWERS = powers(MULTIPLIER), powers(pow(MULTIPLIER, -1, MODULUS))


@dataclass(frozen=True)
class HashedPiece:
    """One piece of a token sequence. W windows start in it, D documents end in it, and one more may continue.

    Documents are numbered from 0; empty ones, between two end tokens, have no number.
    """

    hashes: Hashes  # (W) of the SHINGLE tokens from each position
    is_shingle: NDArray[np.bool_]  # (W) false where the window has an end token
    ends: Numbers  # (D) positions of the end tokens
    document: Numbers  # (D + 1) the number of each document; those of empty ones have no meaning
    start: Numbers  # (D + 1) tokens of the sequence before each document
    tokens: Numbers  # (D + 1) of each document up to here, without the end token; 0: empty
    document_hash: Hashes  # (D + 1) of these tokens


@dataclass(frozen=True)
class OpenDocument:
    """The document that the next piece continues."""

    number: int = 0
    start: int = 0
    tokens: int = 0
    hash: int = 0


def hashed(pieces: Iterator[Tokens], vocabulary: Vocabulary = GPT2_VOCABULARY) -> Iterator[HashedPiece]:
    """Yield the hashes of a token sequence, given in pieces of at most PIECE tokens. Each shingle is in one of them.

    The last piece is an end token of ours, so that every document ends.
    """
    tail, before, unfinished = np.empty(0, dtype=vocabulary.dtype), 0, OpenDocument()
    for piece in chain(pieces, [np.array([vocabulary.end_of_text], dtype=vocabulary.dtype)]):
        tokens = np.concatenate([tail, piece])
        found = hash_piece(tokens, len(tail), before - len(tail), unfinished, vocabulary)
        yield found
        last = (found.document, found.start, found.tokens, found.document_hash)
        unfinished = OpenDocument(*(int(values[-1]) for values in last))
        before += len(piece)
        tail = tokens[-(SHINGLE - 1) :]


def hash_piece(
    tokens: Tokens,
    carried: int,
    before: int,
    unfinished: OpenDocument,
    vocabulary: Vocabulary = GPT2_VOCABULARY,
) -> HashedPiece:
    """Hash a piece whose first `carried` tokens were part of the last one. `before` is the position of its first."""
    n = len(tokens)
    sums = np.zeros(n + 1, dtype=np.uint64)
    np.cumsum(values_of_tokens(max(UINT16_IDS, vocabulary.size))[tokens] * POWERS[:n], out=sums[1:])
    windows = max(0, n - SHINGLE + 1)
    hashes = (sums[SHINGLE:] - sums[:windows]) * INVERSE_POWERS[:windows] if windows else sums[:0]
    ends = np.flatnonzero(tokens == vocabulary.end_of_text)
    is_shingle = np.ones(windows, dtype=np.bool_)
    for distance in range(SHINGLE):
        inside = ends[(ends >= distance) & (ends - distance < windows)]
        is_shingle[inside - distance] = False
    ends = ends[ends >= carried]
    first, last = np.append(carried, ends + 1), np.append(ends, n)  # of each document in this piece
    lengths = last - first
    document_hash = (sums[last] - sums[first]) * INVERSE_POWERS[first]
    shift = np.uint64(pow(MULTIPLIER, unfinished.tokens, MODULUS))
    document_hash[:1] = document_hash[:1] * shift + np.uint64(unfinished.hash)
    start = before + first
    start[0], lengths[0] = unfinished.start, lengths[0] + unfinished.tokens
    numbers = unfinished.number + np.cumsum(np.append(0, lengths[:-1] > 0))
    return HashedPiece(hashes, is_shingle, ends, numbers, start, lengths, document_hash)
