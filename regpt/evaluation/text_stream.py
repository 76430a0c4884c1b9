"""Text from tokens as they are drawn: whole characters only, up to the first stop word."""

from collections.abc import Callable, Iterable, Sequence
from typing import Self

HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of the first bytes of a character


class TextStream:
    """Turns tokens into pieces of text that are final when they are returned.

    Two things are held back until more tokens decide them: half a character at the end, and the beginning of a stop
    word.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop_words: Iterable[str] = ()) -> None:
        """`decode` is a tokenizer's. The text ends before the first stop word."""
        self.decode, self.stop_words = decode, [word for word in stop_words if word]
        self.tokens: list[int] = []
        # Tokens are decoded behind some earlier ones, because tokenizers may drop a space at the start of a text.
        self.context, self.decoded = 0, 0
        self.held = ""  # may be the beginning of a stop word
        self.ended = False  # at a stop word

    @classmethod
    def after(
        cls, decode: Callable[[Sequence[int]], str], tokens: Sequence[int], stop_words: Iterable[str] = ()
    ) -> Self:
        """Return the stream of a text that follows `tokens`, which is not looked at for stop words."""
        stream = cls(decode, stop_words)
        stream.tokens, stream.decoded = list(tokens), len(tokens)
        return stream

    def add(self, *tokens: int) -> str:
        """Return the text that further tokens make certain; it may be empty."""
        self.tokens += tokens
        text = self.new_text()
        if text.endswith(HALF_CHARACTER):
            return ""
        return self.release(text)

    def finish(self) -> str:
        """Return what is held back, after the last token."""
        text = self.release(self.new_text())
        text, self.held = text + self.held, ""
        return text

    def new_text(self) -> str:
        """Return the text of the tokens that are not decoded yet."""
        before = self.decode(self.tokens[self.context : self.decoded])
        return self.decode(self.tokens[self.context :])[len(before) :]

    def release(self, text: str) -> str:
        """Take decoded text, and return what of it cannot belong to a stop word."""
        self.context, self.decoded = self.decoded, len(self.tokens)
        if self.ended:
            return ""
        text, self.held = self.held + text, ""
        found = [at for word in self.stop_words if (at := text.find(word)) >= 0]
        if found:
            self.ended = True
            return text[: min(found)]
        keep = max((overlap(text, word) for word in self.stop_words), default=0)
        text, self.held = text[: len(text) - keep], text[len(text) - keep :]
        return text


def overlap(text: str, word: str) -> int:
    """Return the number of characters at the end of a text with which a word begins."""
    most = min(len(text), len(word) - 1)
    return next((size for size in range(most, 0, -1) if word.startswith(text[-size:])), 0)
