"""A packed question holds every sequence once, each position sees its own past, and every choice token is a target."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regpt.data.tokenizer import END_OF_TEXT, encode
from regpt.tasks.packing import (
    Packed,
    Question,
    group_rows,
    pack,
    tokenize_separately,
    tokenize_together,
    truncate_left,
)


def question(contexts: list[list[int]], endings: list[list[int]]) -> Question:
    return Question(tuple(map(np.array, contexts)), tuple(map(np.array, endings)))


def sequences_asked(packed: Packed, count: int) -> list[list[tuple[list[int], int]]]:
    """By ending: for each target, the tokens that its place sees, and the target. Read off the row alone."""
    found: list[list[tuple[list[int], int]]] = [[] for _ in range(count)]
    for place, target, owner in zip(packed.target_positions, packed.targets, packed.choice_index, strict=True):
        seen = [
            (int(packed.positions[p]), int(packed.tokens[p]))
            for p in range(place + 1)
            if packed.segments[p] in (0, packed.segments[place])
        ]
        assert [position for position, _ in seen] == list(range(len(seen)))
        found[owner].append(([token for _, token in seen], int(target)))
    return found


def test_packed_question_by_hand() -> None:
    """Context 1 2 3; endings 4 5 6, 4, 7 8. Their last tokens are only predicted."""
    row = pack(question([[1, 2, 3]] * 3, [[4, 5, 6], [4], [7, 8]]))
    assert row.tokens.tolist() == [1, 2, 3, 4, 5, 7]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 3]
    assert row.segments.tolist() == [0, 0, 0, 1, 1, 3]
    assert row.target_positions.tolist() == [2, 3, 4, 2, 2, 5]
    assert row.targets.tolist() == [4, 5, 6, 4, 7, 8]
    assert row.choice_index.tolist() == [0, 0, 0, 1, 2, 2]


tokens = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=5), st.booleans())
def test_packed_targets_see_exactly_the_tokens_before_them(
    pairs: list[tuple[list[int], list[int]]], same_context: bool
) -> None:
    contexts = [pairs[0][0] if same_context else context for context, _ in pairs]
    endings = [ending for _, ending in pairs]
    found = sequences_asked(pack(question(contexts, endings)), len(pairs))
    for context, ending, asked in zip(contexts, endings, found, strict=True):
        assert asked == [(context + ending[:n], ending[n]) for n in range(len(ending))]


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=12), st.integers(1, 60))
def test_grouped_rows_hold_every_question_once_within_the_limit(
    pairs: list[tuple[list[int], list[int]]], most: int
) -> None:
    questions = [pack(question([context] * 2, [ending, ending[::-1]])) for context, ending in pairs]
    groups = group_rows(questions, most)
    assert sorted(number for rows in groups for number in rows.numbers) == list(range(len(pairs)))
    for rows in groups:
        assert rows.tokens.size <= most or len(rows.numbers) == 1
        for row, number in enumerate(rows.numbers):
            whole, length = questions[number], len(questions[number])
            assert rows.tokens[row, :length].tolist() == whole.tokens.tolist()
            assert (rows.segments[row, length:] == -1).all()
            mine = rows.questions == number
            assert rows.targets[mine].tolist() == whole.targets.tolist()
            assert (
                rows.target_positions[mine] - row * rows.tokens.shape[1]
            ).tolist() == whole.target_positions.tolist()
    lengths = [rows.tokens.shape[1] for rows in groups]
    assert lengths == sorted(lengths, reverse=True)


def test_truncation_shortens_all_contexts_alike() -> None:
    long = question([[1, 2, 3, 4, 5, 6]] * 2, [[7, 8, 9], [7]])
    cut = truncate_left(long, block_size=5)
    assert [context.tolist() for context in cut.contexts] == [[4, 5, 6]] * 2
    assert [ending.tolist() for ending in cut.choices] == [[7, 8, 9], [7]]
    assert cut.truncated
    assert not truncate_left(long, block_size=8).truncated
    tiny = truncate_left(long, block_size=2)
    assert [len(context) for context in tiny.contexts] == [1, 1]
    assert [ending.tolist() for ending in tiny.choices] == [[7, 8], [7]]


def test_trailing_spaces_belong_to_the_choice_when_tokenized_together() -> None:
    together = tokenize_together(["Two  "], ["cats"])
    assert together.contexts[0].tolist() == encode("Two").tolist()
    assert together.choices[0].tolist() == encode("Two  cats").tolist()[1:]
    apart = tokenize_separately(["Two"], [" cats"])
    assert apart.choices[0].tolist() == encode(" cats").tolist()


@pytest.mark.parametrize("make", [tokenize_separately, tokenize_together])
def test_empty_context_is_the_end_of_text_token(make: object) -> None:
    assert make([""], [" cats"]).contexts[0].tolist() == [END_OF_TEXT]  # type: ignore[operator]
