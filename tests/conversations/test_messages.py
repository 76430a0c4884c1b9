"""Rows of published datasets become messages, or a problem that names what is wrong."""

from typing import Any

import pytest

from regpt.conversations.messages import BadRowError, RowProblem, messages_of
from regpt.tokenization.chat_template import Message
from tests.helpers.conversations import chat

HELLO = [Message("user", "Hi"), Message("assistant", "Hello")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": chat("Hi", "Hello"), "id": 3},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"conversation": chat(" Hi\n", "\n\nHello ")},
        chat("Hi", "Hello"),
        {"messages": [{"role": "User", "content": "Hi"}, {"role": "model", "content": "Hello", "weight": 1}]},
    ],
)
def test_published_forms_give_the_same_messages(row: Any) -> None:
    assert messages_of(row) == HELLO


def test_named_column_wins_over_the_usual_ones() -> None:
    row = {"messages": chat("no", "no"), "chosen": chat("Hi", "Hello")}
    assert messages_of(row, "chosen") == HELLO


def test_system_message_and_open_question_are_kept() -> None:
    found = messages_of({"messages": chat("a", "b", "c", system="Be short.")})
    assert [message.role for message in found] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("row", "problem", "detail"),
    [
        ({"text": "no chat"}, RowProblem.NO_MESSAGES, ""),
        ({"messages": []}, RowProblem.NO_MESSAGES, ""),
        ({"messages": "Hi"}, RowProblem.NO_MESSAGES, ""),
        ("Hi", RowProblem.NO_MESSAGES, ""),
        (7, RowProblem.NO_MESSAGES, ""),
        ({"messages": ["Hi"]}, RowProblem.NO_MESSAGE, ""),
        ({"messages": [{"role": "user", "content": None}]}, RowProblem.NO_MESSAGE, ""),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, RowProblem.NO_MESSAGE, ""),
        ({"messages": [*chat("Hi", "Hello"), {"role": "tool", "content": "1"}]}, RowProblem.UNKNOWN_ROLE, "tool"),
        ({"messages": chat("Hi")}, RowProblem.NO_ANSWER, ""),
        ({"messages": [*chat("Hi"), *chat("Hi", "Hello")]}, RowProblem.NO_TURNS, "user, user, assistant"),
        ({"messages": chat("Hi", "Hello")[1:]}, RowProblem.NO_TURNS, "assistant"),
        ({"messages": [*chat("Hi", "Hello"), {"role": "system", "content": "x"}]}, RowProblem.LATE_SYSTEM, ""),
        ({"messages": chat("Hi", " \n")}, RowProblem.EMPTY_ANSWER, ""),
        ({"messages": chat("", "Hello")}, RowProblem.EMPTY_QUESTION, ""),
    ],
)
def test_bad_row_is_named_by_its_problem(row: Any, problem: RowProblem, detail: str) -> None:
    with pytest.raises(BadRowError) as error:
        messages_of(row)
    assert (error.value.problem, error.value.detail) == (problem, detail)
