"""Conversations in the forms in which people publish them, as lists of messages."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from regpt.tokenization.chat_template import Message
from regpt.tokenization.chat_tokens import ASSISTANT, SYSTEM, USER

COLUMNS = ("messages", "conversations", "conversation")  # where a row holds its messages, by frequency on the hub

# The names of roles in OpenAI's form and in ShareGPT's.
ROLES = {
    "system": SYSTEM,
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
    "bot": ASSISTANT,
}
ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value")


class RowProblem(StrEnum):
    """Why a row is no conversation to train on. The values are counted in the manifest."""

    NO_JSON = "not JSON"
    NO_MESSAGES = "no list of messages"
    NO_MESSAGE = "a message without role and text"
    UNKNOWN_ROLE = "an unknown role"
    EMPTY_ANSWER = "an empty message of the assistant"
    EMPTY_QUESTION = "an empty message of the user"
    LATE_SYSTEM = "a system message that is not the first"
    NO_TURNS = "messages of user and assistant that do not alternate, beginning with the user"
    NO_ANSWER = "no message of the assistant"
    TOO_LONG = "no answer within model.block_size tokens"


class BadRowError(Exception):
    """A row is no conversation. `detail` is a value of the row, for the message."""

    def __init__(self, problem: RowProblem, detail: str = "") -> None:
        super().__init__(problem, detail)
        self.problem, self.detail = problem, detail


def messages_of(row: Any, column: str = "") -> list[Message]:
    """Return the messages of a row: an object with a list in one of `COLUMNS` or in `column`, or a list itself.

    A message is {"role", "content"} or ShareGPT's {"from", "value"}. Text is stripped of white space at both ends, as
    chat templates do. Raises BadRowError.
    """
    turns = row
    if isinstance(row, Mapping):
        turns = next((row[name] for name in ((column,) if column else COLUMNS) if name in row), None)
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes) or not turns:
        raise BadRowError(RowProblem.NO_MESSAGES)
    messages = [message_of(turn) for turn in turns]
    check_turns(messages)
    return messages


def message_of(turn: Any) -> Message:
    """Return one message. Raises BadRowError."""
    if not isinstance(turn, Mapping):
        raise BadRowError(RowProblem.NO_MESSAGE)
    role = next((turn[key] for key in ROLE_KEYS if key in turn), None)
    text = next((turn[key] for key in TEXT_KEYS if key in turn), None)
    if not isinstance(role, str) or not isinstance(text, str):
        raise BadRowError(RowProblem.NO_MESSAGE)
    if role.lower() not in ROLES:
        raise BadRowError(RowProblem.UNKNOWN_ROLE, role)
    return Message(ROLES[role.lower()], text.strip())


def check_turns(messages: Sequence[Message]) -> None:
    """Raise BadRowError unless user and assistant alternate, behind at most one system message."""
    turns = messages[1:] if messages[0].role == SYSTEM else messages
    roles = [message.role for message in turns]
    if SYSTEM in roles:
        raise BadRowError(RowProblem.LATE_SYSTEM)
    if ASSISTANT not in roles:
        raise BadRowError(RowProblem.NO_ANSWER)
    if roles != [(USER, ASSISTANT)[place % 2] for place in range(len(roles))]:
        raise BadRowError(RowProblem.NO_TURNS, ", ".join(roles[:4]))
    for message in turns:
        if not message.content:
            is_answer = message.role == ASSISTANT
            raise BadRowError(RowProblem.EMPTY_ANSWER if is_answer else RowProblem.EMPTY_QUESTION)
