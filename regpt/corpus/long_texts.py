"""Long texts, cut at a separator of documents or within a document, so that memory stays bounded.

A cut within a document does not change its tokens. GPT-2's pre-tokenizer lets a piece of white space depend on the
character after it, and no other piece on anything around it. So a piece always ends before white space that follows
another character, and the text may be cut there. cl100k and o200k join punctuation and the line ends behind it, so text
for them is cut behind letters and digits only.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from regpt.corpus import chunks
from regpt.corpus.chunks import TextChunk
from regpt.corpus.encodings import invalid, problem_of_nuls

CUT = re.compile(rb"[!-~\x80-\xbf](?=[ \n])")  # the end of a character that may be no white space
CUT_SEARCH_BYTES = 1 << 16  # before the end of a stretch, where a place to cut is looked for first


class TextSource(Protocol):
    """A stream of UTF-8."""

    def read(self, size: int, /) -> bytes: ...

    @property
    def position(self) -> int:
        """Bytes of the file that have been read."""


@dataclass(frozen=True)
class LeftOut:
    """A chunk without text: something of a file was left out for one reason."""

    size: int
    reason: str

    def read(self, refused: Counter[str]) -> Iterator[object]:
        refused[self.reason] += 1
        return iter(())


@dataclass(frozen=True)
class SeparatedChunk:
    """A chunk whose texts are cut at a separator."""

    chunk: TextChunk
    separator: str

    @property
    def size(self) -> int:
        return self.chunk.size

    def read(self, refused: Counter[str]) -> Iterator[object]:
        for text in self.chunk.read(refused):
            yield from split_text(text, self.separator)


@dataclass(frozen=True)
class TextStretch:
    """A chunk that is a stretch of a long text. Its first document may have begun in the chunk before."""

    size: int
    name: str  # of the file, for messages
    content: bytes
    separator: str
    continues: bool

    @property
    def rest(self) -> str:
        """The text that continues the document of the chunk before."""
        if not self.continues:
            return ""
        rest = split_at(self.content, self.separator)[0] if self.separator else self.content
        return rest.decode("utf-8")

    def read(self, refused: Counter[str]) -> Iterator[object]:
        pieces = split_at(self.content, self.separator) if self.separator else [self.content]
        for piece in pieces[1:] if self.continues else pieces:
            if problem := problem_of_nuls(piece):
                refused[problem] += 1
            elif piece.strip() or not self.separator:
                yield piece


def separator_pattern(separator: str) -> re.Pattern[bytes]:
    """Return the pattern of a separator. A line end directly behind it belongs to it."""
    return re.compile(re.escape(separator.encode()) + rb"(?:\r?\n)?")


def split_at(content: bytes, separator: str) -> list[bytes]:
    return separator_pattern(separator).split(content)


def last_separator(content: bytes, separator: str) -> int:
    """Return where the last separator starts; 0 without one behind the start."""
    places = [match.start() for match in separator_pattern(separator).finditer(content)] if separator else []
    return places[-1] if places else 0


def split_text(text: object, separator: str) -> Iterator[object]:
    """Cut a document at a separator and leave out blank pieces; yield anything that has none unchanged."""
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if not isinstance(content, bytes) or separator.encode() not in content:
        yield text
        return
    for piece in split_at(content, separator):
        if piece.strip():
            yield piece.decode("utf-8", "surrogatepass") if isinstance(text, str) else piece


def problem_of_text(file: TextSource) -> str:
    """Read a whole text and return why it cannot be a document; empty if it can."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    problem = ""
    try:
        while piece := file.read(chunks.CHUNK_BYTES):
            if problem := problem_of_nuls(piece):
                break
            decoder.decode(piece)
        else:
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return invalid(error)
    return problem


def long_text_chunks(
    file: TextSource, name: str, separator: str, is_valid: bool, behind_words: bool = False
) -> Iterator[TextChunk]:
    """Cut a text into stretches of about a chunk: behind a document where there is a separator, else within one.

    With `behind_words` a document is cut behind a letter or a digit. Without `is_valid` some of the text is not UTF-8,
    and no document is cut: the reader judges it as a whole.
    """
    content, start, continues = b"", 0, False
    while piece := file.read(chunks.CHUNK_BYTES):
        content += piece
        last = last_separator(content, separator)  # the next stretch starts with it
        cut = last or (within_document(content, separator, behind_words) if is_valid else 0)
        if cut:
            yield TextStretch(file.position - start, name, content[:cut], separator, continues)
            content, start, continues = content[cut:], file.position, not last
    if content:
        yield TextStretch(file.position - start, name, content, separator, continues)


def within_document(content: bytes, separator: str, behind_words: bool = False) -> int:
    """Return the last position at which a document may be cut; 0 without such a place.

    It is not in or directly behind a separator, whose line end may follow.
    """
    at_start = separator_pattern(separator).match(content) if separator else None
    start, end = at_start.end() if at_start else 0, max(0, len(content) - len(separator.encode()))
    for first in (max(start, end - CUT_SEARCH_BYTES), start):
        places = [match.end() for match in CUT.finditer(content[first:end])]
        for place in reversed(places):
            position = first + place
            before = content[max(0, position - 4) : position].decode("utf-8", "ignore")[-1:]
            if before.isalnum() if behind_words else not before.isspace():
                return position
    return 0
