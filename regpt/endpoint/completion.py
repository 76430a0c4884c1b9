"""The completions of a request as they grow: text, tokens with their probabilities, and why they ended."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from regpt.data.tokenizer import Tokenizer
from regpt.endpoint.completion_request import CompletionRequest
from regpt.endpoint.engine import JobEvent, PromptScored, TokenDrawn
from regpt.evaluation.generation import Drawn
from regpt.evaluation.text_stream import TextStream

HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class FinishReason(StrEnum):
    """Why a completion ended, as OpenAI names it."""

    STOP = "stop"  # at the end of a document or a stop word
    LENGTH = "length"


@dataclass
class TokenLog:
    """The tokens of a text with their log-probabilities, in the form of OpenAI's completions."""

    tokenizer: Tokenizer
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)
    length: int = 0

    def add(self, drawn: Drawn) -> None:
        text = token_text(self.tokenizer, drawn.token)
        self.tokens.append(text)
        self.token_logprobs.append(drawn.log_probability)
        others = {token_text(self.tokenizer, token): value for token, value in drawn.alternatives}
        known = drawn.log_probability is not None
        self.top_logprobs.append({**others, text: drawn.log_probability} if known else None)  # type: ignore[dict-item]
        self.text_offset.append(self.length)
        self.length += len(text)

    def take(self) -> dict[str, Any]:
        """Return what was added since the last call."""
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        found = {name: getattr(self, name) for name in names}
        for name in names:
            setattr(self, name, [])
        return found


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of one token; for a part of a character and a special token, a name that no other token has."""
    text = tokenizer.decode([token])
    return f"token:{token}" if not text or HALF_CHARACTER in text else text


class Completion:
    """One completion: a row of a request."""

    def __init__(self, index: int, prompt: list[int], request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self.index, self.request, self.ends = index, request, tokenizer.eos
        self.stream = TextStream.after(tokenizer.decode, prompt, request.stop_words)
        self.log = TokenLog(tokenizer) if request.alternatives is not None else None
        self.text = tokenizer.decode(prompt) if request.echo else ""  # not taken yet
        self.count = 0  # new tokens
        self.finish_reason: FinishReason | None = None

    def add(self, drawn: Drawn) -> None:
        """Add a drawn token."""
        self.count += 1
        if drawn.token in self.ends:
            return self.finish(FinishReason.STOP)
        if self.log is not None:
            self.log.add(drawn)
        self.text += self.stream.add(drawn.token)
        if self.stream.ended:
            return self.finish(FinishReason.STOP)
        return self.finish(FinishReason.LENGTH) if self.count >= self.request.new_tokens else None

    def finish(self, reason: FinishReason) -> None:
        if self.finish_reason is None:
            self.text += self.stream.finish()
            self.finish_reason = FinishReason.STOP if self.stream.ended else reason

    def take(self) -> dict[str, Any]:
        """Return a choice with the text and the tokens since the last call."""
        text, self.text = self.text, ""
        return {
            "index": self.index,
            "text": text,
            "logprobs": self.log.take() if self.log is not None else None,
            "finish_reason": self.finish_reason,
        }


class Completions:
    """All completions of a request, fed with what the engine emits."""

    def __init__(self, request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self.request = request
        rows = [prompt for prompt in request.prompts for _ in range(request.n)]
        self.rows = [Completion(index, prompt, request, tokenizer) for index, prompt in enumerate(rows)]

    def add(self, event: JobEvent) -> Iterator[Completion]:
        """Take an event; yield the completions that it changed."""
        if isinstance(event, TokenDrawn):
            row = self.rows[event.row]
            if row.finish_reason is None:
                row.add(event.drawn)
                yield row
        elif isinstance(event, PromptScored):
            for row in self.rows[event.prompt * self.request.n : (event.prompt + 1) * self.request.n]:
                for drawn in event.tokens:
                    if row.log is not None:
                        row.log.add(drawn)
        else:
            for row in self.rows:
                if row.finish_reason is None:
                    row.finish(FinishReason.LENGTH)
                    yield row

    @property
    def usage(self) -> dict[str, int]:
        prompt, new = self.request.prompt_tokens, sum(row.count for row in self.rows)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
