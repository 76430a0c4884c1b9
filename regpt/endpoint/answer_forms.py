"""Answers in OpenAI's two forms: completions of texts, and messages of a chat. Both are whole or streamed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from regpt.data.tokenizer import Tokenizer
from regpt.endpoint.completion import Completion, Piece
from regpt.evaluation.text_stream import HALF_CHARACTER
from regpt.generation.drawing import Drawn
from regpt.tokenization.chat_tokens import ASSISTANT


class AnswerForm(ABC):
    """How an answer to a request is written."""

    prefix: str  # of an answer's id
    name: str  # of a whole answer's type
    part_name: str  # of the parts of a stream

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.texts = TokenTexts(tokenizer)

    @abstractmethod
    def choice(self, row: Completion) -> dict[str, Any]:
        """Return a whole completion."""

    @abstractmethod
    def first_parts(self, row: Completion) -> Iterator[dict[str, Any]]:
        """Yield what a stream begins with."""

    @abstractmethod
    def parts(self, row: Completion) -> Iterator[dict[str, Any]]:
        """Yield what is new of a completion."""


class TextForm(AnswerForm):
    """The form of /v1/completions."""

    prefix, name, part_name = "cmpl-", "text_completion", "text_completion"

    def choice(self, row: Completion) -> dict[str, Any]:
        return self.part(row, row.take())

    def first_parts(self, row: Completion) -> Iterator[dict[str, Any]]:
        yield from ()

    def parts(self, row: Completion) -> Iterator[dict[str, Any]]:
        piece = row.take()
        if piece.text or piece.tokens or piece.finish_reason:
            yield self.part(row, piece)

    def part(self, row: Completion, piece: Piece) -> dict[str, Any]:
        return {
            "index": row.index,
            "text": piece.text,
            "logprobs": self.log(piece) if row.has_log else None,
            "finish_reason": piece.finish_reason,
        }

    def log(self, piece: Piece) -> dict[str, Any]:
        """Return tokens with their log-probabilities. The token that ended the text is one of them, as OpenAI has it:
        lm-eval leaves out the last one, which it takes for the new token."""
        tokens = [*piece.tokens, *([piece.end] if piece.end else [])]
        return {
            "tokens": [self.texts.name(one.drawn.token) for one in tokens],
            "token_logprobs": [one.drawn.log_probability for one in tokens],
            "top_logprobs": [self.alternatives(one.drawn) for one in tokens],
            "text_offset": [one.begin for one in tokens],
        }

    def alternatives(self, drawn: Drawn) -> dict[str, float] | None:
        """Return the most likely tokens and the drawn one; None for a first token, which nothing precedes."""
        if drawn.log_probability is None:
            return None
        ids = {**dict(drawn.alternatives), drawn.token: drawn.log_probability}
        names: dict[str, float] = {}
        for token, value in ids.items():
            name = self.texts.name(token)
            names[name if name not in names else self.texts.number(token)] = value
        return names


class ChatForm(AnswerForm):
    """The form of /v1/chat/completions."""

    prefix, name, part_name = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, row: Completion) -> dict[str, Any]:
        piece = row.take()
        return {
            "index": row.index,
            "message": {"role": ASSISTANT, "content": piece.text, "refusal": None},
            "logprobs": self.log(row, piece),
            "finish_reason": piece.finish_reason,
        }

    def first_parts(self, row: Completion) -> Iterator[dict[str, Any]]:
        yield self.part(row, {"role": ASSISTANT, "content": ""})

    def parts(self, row: Completion) -> Iterator[dict[str, Any]]:
        piece = row.take()
        if piece.text or piece.tokens:
            yield {**self.part(row, {"content": piece.text}), "logprobs": self.log(row, piece)}
        if piece.finish_reason:
            yield {**self.part(row, {}), "finish_reason": piece.finish_reason}

    def part(self, row: Completion, delta: dict[str, str]) -> dict[str, Any]:
        return {"index": row.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def log(self, row: Completion, piece: Piece) -> dict[str, Any] | None:
        if not row.has_log:
            return None
        content = [
            {
                **self.token(one.drawn.token, one.drawn.log_probability),
                "top_logprobs": [self.token(*other) for other in one.drawn.alternatives],
            }
            for one in piece.tokens
        ]
        return {"content": content, "refusal": None}

    def token(self, token: int, log_probability: float | None) -> dict[str, Any]:
        text = self.texts.text(token)
        return {
            "token": self.texts.name(token),
            "logprob": log_probability,
            "bytes": None if text is None else list(text.encode("utf-8", "replace")),
        }


class TokenTexts:
    """The texts of single tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.special = {token: text for text, token in tokenizer.special_tokens.items()}

    def text(self, token: int) -> str | None:
        """Return the text of one token; None for a part of a character and for a special token."""
        text = self.tokenizer.decode([token])
        return None if not text or HALF_CHARACTER in text else text

    def name(self, token: int) -> str:
        """Return the text of one token, and a name for one that has none."""
        return self.text(token) or self.special.get(token) or self.number(token)

    def number(self, token: int) -> str:
        return f"token:{token}"
