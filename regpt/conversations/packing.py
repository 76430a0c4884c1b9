"""Conversations packed into rows of one length: whole ones side by side, and padding behind them.

Each row takes the longest waiting conversation that still fits, so that little is padding and none is cut (best fit:
Ding et al. 2024, arXiv 2404.10830; nanochat packs its conversations in the same way).
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regpt.tokenization.chat_template import EncodedConversation

WAITING = 1000  # conversations among which a row chooses


@dataclass(frozen=True)
class Row:
    """One row: the input of a model, whose targets are the tokens one place later."""

    tokens: NDArray[np.int64]  # (row_tokens)
    counted: NDArray[np.bool_]  # (row_tokens), whether a token counts in the loss when it is predicted
    conversations: int


def pack(conversations: Iterable[EncodedConversation], row_tokens: int, padding: int) -> Iterator[Row]:
    """Yield rows that hold each conversation once. The same conversations in the same order give the same rows.

    No conversation may be longer than a row; `padding` is the token behind the last one of a row.
    """
    source, arrived = iter(conversations), 0
    waiting: list[tuple[int, int, EncodedConversation]] = []  # sorted by length, then by arrival, latest first
    while True:
        while len(waiting) < WAITING and (one := next(source, None)) is not None:
            assert len(one) <= row_tokens, "a conversation is longer than a row"
            arrived += 1
            insort(waiting, (len(one), -arrived, one), key=lambda entry: entry[:2])
        if not waiting:
            return
        row, left = [], row_tokens
        while place := bisect_right(waiting, left, key=lambda entry: entry[0]):
            length, _, one = waiting.pop(place - 1)
            row.append(one)
            left -= length
        yield make_row(row, left, padding)


def make_row(conversations: list[EncodedConversation], left: int, padding: int) -> Row:
    """Join conversations, and fill the row with `left` tokens of padding, which do not count."""
    return Row(
        np.concatenate([*(one.tokens for one in conversations), np.full(left, padding, dtype=np.int64)]),
        np.concatenate([*(one.counted for one in conversations), np.zeros(left, dtype=np.bool_)]),
        len(conversations),
    )
