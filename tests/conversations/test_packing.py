"""Rows hold whole conversations, each once, and little padding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from regpt.conversations.packing import pack
from regpt.tokenization.chat_template import EncodedConversation

ROW, PADDING = 32, 0


def conversation(length: int, number: int) -> EncodedConversation:
    """Return a conversation whose tokens are its number, of which every second one counts."""
    return EncodedConversation(np.full(length, number), np.arange(length) % 2 == 1)


@given(st.lists(st.integers(2, ROW), max_size=60))
def test_rows_hold_every_conversation_once_and_whole(lengths: list[int]) -> None:
    rows = list(pack([conversation(n, number) for number, n in enumerate(lengths, start=1)], ROW, PADDING))
    for row in rows:
        assert row.tokens.shape == row.counted.shape == (ROW,)
        padding = row.tokens == PADDING
        assert not row.counted[padding].any() and (np.diff(padding.astype(int)) >= 0).all()
    found = [
        (int(number), int((row.tokens == number).sum())) for row in rows for number in np.unique(row.tokens) if number
    ]
    assert sorted(found) == list(enumerate(lengths, start=1))
    assert sum(int(row.counted.sum()) for row in rows) == sum(n // 2 for n in lengths)
    assert sum(row.conversations for row in rows) == len(lengths)


def test_row_takes_the_longest_conversation_that_fits() -> None:
    rows = list(pack([conversation(n, n) for n in (5, 20, 7, 25, 12)], ROW, PADDING))
    assert [np.unique(row.tokens[row.tokens != PADDING]).tolist() for row in rows] == [[7, 25], [12, 20], [5]]
