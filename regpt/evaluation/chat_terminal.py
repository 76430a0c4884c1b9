"""A conversation in the terminal, or questions from a pipe, one on each line."""

import contextlib
import sys
from collections.abc import Iterable, Iterator

from regpt.evaluation.chat import Chat, LongQuestionError

LEAVE, BEGIN_AGAIN = ("exit", "quit", "/exit", "/quit"), "/new"
PROMPT = "> "


def answer_lines(chat: Chat, lines: Iterable[str]) -> None:
    """Print the answer to each line that is not blank."""
    for line in lines:
        if line.strip():
            print_answer(chat, line)


def answer_terminal(chat: Chat) -> None:
    """Answer what a user types, until the user leaves. Ctrl-C stops an answer."""
    print(f"{chat.loaded.name}; Ctrl-C stops an answer, exit leaves", file=sys.stderr)
    for question in typed_lines():
        if question.strip() == BEGIN_AGAIN:
            chat.forget()
        elif question.strip():
            with contextlib.suppress(KeyboardInterrupt):
                print_answer(chat, question)


def typed_lines() -> Iterator[str]:
    """Yield the lines that a user types, until Ctrl-D, Ctrl-C twice in a row, or a word of `LEAVE`."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() then edits lines and remembers them
    interrupted = False
    while True:
        try:
            line = input(PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if interrupted:
                return
            print("Ctrl-C again, Ctrl-D or exit leaves", file=sys.stderr)
            interrupted = True
            continue
        interrupted = False
        if line.strip().lower() in LEAVE:
            return
        yield line


def print_answer(chat: Chat, question: str) -> None:
    """Print an answer as it is drawn. A note says which turns were forgotten, or that a question is too long."""
    told = False
    try:
        with contextlib.closing(chat.ask(question)) as answer:
            for piece in answer:
                if not told and chat.forgotten:
                    note = f"note: the context is full; the oldest {chat.forgotten} messages are forgotten"
                    print(note, file=sys.stderr)
                told = True
                print(piece, end="", flush=True)
    except LongQuestionError as error:
        print(
            f"note: the question has {error.tokens:,} tokens, the model's context has room for {error.most:,};"
            " ask a shorter one",
            file=sys.stderr,
        )
        return
    finally:
        print(flush=True)
