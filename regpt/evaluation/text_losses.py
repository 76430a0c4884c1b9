"""The validation loss of blocks of text, which compares across tokenizers.

A block is BLOCK_BYTES bytes of a document, counted from its beginning. Its loss is the sum over its tokens; the loss of
a token on the border of two blocks is divided by bytes. A block is known by the hash of its document up to its end, so
two models have it in common where both read the same document from its beginning.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from regpt.data.shards import TokenWindows
from regpt.data.tokenizer import Tokenizer
from regpt.evaluation.validation import known_bytes_of_tokens
from regpt.tracking.window_losses import BLOCK_BYTES, TEXT_LOSS


def text_losses(
    windows: TokenWindows, token_losses: NDArray[np.float32], tokenizer: Tokenizer
) -> NDArray[np.void] | None:
    """Return the loss of each block of text in the first windows, in their order, from the losses of their tokens.

    (windows, block_size) -> (blocks) of type TEXT_LOSS; None where the bytes of the tokens are unknown, and where
    tokens have no finite loss, as those of questions in conversations.
    """
    sizes = known_bytes_of_tokens(tokenizer)
    if sizes is None or tokenizer.end_of_text is None or not np.isfinite(token_losses).all():
        return None
    of_shard, _ = windows.places(np.arange(len(token_losses)))
    found: list[tuple[int, float]] = []
    for shard in np.unique(of_shard):
        numbers = np.flatnonzero(of_shard == shard)
        rows = windows.rows(numbers)
        tokens = np.concatenate([rows[0, :1], rows[:, 1:].ravel()])  # windows follow each other without a gap
        losses = np.concatenate([[0.0], token_losses[numbers].ravel().astype(np.float64)])
        begins = np.flatnonzero(tokens == tokenizer.end_of_text)
        ends = np.append(begins[1:], len(tokens))[: len(begins)]  # tokens before the first document are left out
        for begin, end in zip(begins, ends, strict=True):
            ids = tokens[begin + 1 : end]
            found += blocks_of(tokenizer.decode(ids).encode(), sizes[ids], losses[begin + 1 : end])
    return np.array(found, dtype=TEXT_LOSS)


def blocks_of(text: bytes, sizes: NDArray[np.int64], losses: NDArray[np.float64]) -> Iterator[tuple[int, float]]:
    """Yield the hash and the loss of each whole block of a document. Its end may be cut within a character."""
    ends = np.concatenate([[0], np.cumsum(sizes)])
    blocks = min(len(text), int(ends[-1])) // BLOCK_BYTES
    nats = np.interp(np.arange(blocks + 1) * BLOCK_BYTES, ends, np.concatenate([[0.0], np.cumsum(losses)]))
    hasher = hashlib.blake2b(digest_size=8)
    for block in range(blocks):
        hasher.update(text[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        yield int.from_bytes(hasher.digest(), "little"), float(nats[block + 1] - nats[block])
