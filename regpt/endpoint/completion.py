"""The completions of a request as they grow: text, tokens with their probabilities, and why they ended."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from regpt.data.tokenizer import Tokenizer
from regpt.endpoint.completion_request import CompletionRequest
from regpt.endpoint.engine import JobEvent, PromptScored, TokenDrawn
from regpt.evaluation.text_stream import TextStream
from regpt.generation.drawing import Drawn


class FinishReason(StrEnum):
    """Why a completion ended, as OpenAI names it."""

    STOP = "stop"  # at the end of a document or a stop word
    LENGTH = "length"


@dataclass(frozen=True)
class PlacedToken:
    """A token, and where its text begins."""

    drawn: Drawn
    begin: int  # characters before it, of the prompt's too if the prompt is echoed


@dataclass(frozen=True)
class Piece:
    """A part of a completion. Joined, the pieces are the whole."""

    text: str
    tokens: list[PlacedToken]  # empty unless log-probabilities are asked for
    end: PlacedToken | None = None  # the token that ended the completion, which is no text
    finish_reason: FinishReason | None = None


class Completion:
    """One completion: a row of a request."""

    def __init__(self, index: int, prompt: list[int], request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self.index, self.request, self.tokenizer = index, request, tokenizer
        before = prompt if request.continues_text else []
        self.stream = TextStream.after(tokenizer.decode, before, request.stop_words)
        self.text = tokenizer.decode(prompt) if request.echo else ""  # not taken yet
        self.released = len(self.text)  # characters that are certain, taken or not
        self.waiting: list[PlacedToken] = []  # not taken yet
        self.end: PlacedToken | None = None
        self.count = 0  # new tokens
        self.finish_reason: FinishReason | None = None

    @property
    def has_log(self) -> bool:
        return self.request.alternatives is not None

    def add_prompt(self, tokens: list[Drawn]) -> None:
        """Add the log-probabilities of the prompt's tokens."""
        stream, begin = TextStream(self.tokenizer.decode), 0
        for drawn in tokens:
            self.waiting.append(PlacedToken(drawn, begin))
            begin += len(stream.add(drawn.token))

    def add(self, drawn: Drawn) -> None:
        """Add a drawn token."""
        self.count += 1
        placed = PlacedToken(drawn, self.released + len(self.stream.held))
        if drawn.token in self.request.ends:
            self.end = placed if self.has_log else None
            return self.finish(FinishReason.STOP)
        if self.has_log:
            self.waiting.append(placed)
        self.release(self.stream.add(drawn.token))
        if self.stream.ended:
            return self.finish(FinishReason.STOP)
        return self.finish(FinishReason.LENGTH) if self.count >= self.request.new_tokens else None

    def release(self, text: str) -> None:
        self.text += text
        self.released += len(text)

    def finish(self, reason: FinishReason) -> None:
        if self.finish_reason is None:
            self.release(self.stream.finish())
            self.finish_reason = FinishReason.STOP if self.stream.ended else reason

    def take(self) -> Piece:
        """Return the text and the tokens since the last call; the end and its reason with the last ones."""
        # A token is certain with its first character: before that, a stop word may still take it away.
        is_whole = self.finish_reason is not None and not self.stream.ended
        count = len(self.waiting) if is_whole else sum(one.begin < self.released for one in self.waiting)
        piece = Piece(self.text, self.waiting[:count], self.end, self.finish_reason)
        self.text, self.waiting, self.end = "", self.waiting[count:], None
        return piece


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
                row.add_prompt(event.tokens)
        else:
            for row in self.rows:
                if row.finish_reason is None:
                    row.finish(FinishReason.LENGTH)
                    yield row

    @property
    def usage(self) -> dict[str, int]:
        prompt, new = self.request.prompt_tokens, sum(row.count for row in self.rows)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
