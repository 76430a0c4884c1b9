"""Encodings of text files: UTF-8, or UTF-16 and UTF-32 with a byte order mark. Others are recognized, never guessed."""

import codecs
import io
from typing import IO, Any

NOT_UTF8 = "not UTF-8"  # reasons for leaving out a document; the manifest stores them
NUL_BYTES = "NUL bytes"
UNMARKED_ENCODINGS = ("UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE")
BYTES_PER_READ = 1 << 17
SAMPLE_BYTES = 1 << 16  # from which an encoding is recognized

# The marks of UTF-32 come first, because UTF-32's little-endian mark starts with UTF-16's.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)


def split_mark(head: bytes) -> tuple[str, bytes]:
    """Return the encoding that the first bytes of a text declare, and the bytes after the byte order mark."""
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding, head[len(mark) :]
    return "utf-8", head


def undeclared_encoding(content: bytes) -> str:
    """Return 'UTF-16LE' and the like for text in it without a byte order mark; empty if it is not.

    Recognized by the NUL bytes of ASCII characters, of which every text has spaces and line ends.
    """
    sample = content[:SAMPLE_BYTES]
    nuls, quarter = [sample[first::4].count(0) for first in range(4)], len(sample) / 4
    if min(nuls[2:]) > 0.9 * quarter > 2 * nuls[0]:
        return "UTF-32LE"
    if min(nuls[:2]) > 0.9 * quarter > 2 * nuls[3]:
        return "UTF-32BE"
    if sum(nuls) < 0.2 * len(sample) and is_utf8(sample):
        return ""
    pairs = list(zip(sample[::2], sample[1::2], strict=False))
    little = sum(first in b"\n " and second == 0 for first, second in pairs) or nuls[1] + nuls[3]
    big = sum(second in b"\n " and first == 0 for first, second in pairs) or nuls[0] + nuls[2]
    return "" if little == big else "UTF-16LE" if little > big else "UTF-16BE"


def is_utf8(content: bytes) -> bool:
    """Return whether bytes are UTF-8; the last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
        return False
    return True


def unmarked(encoding: str) -> str:
    """Return the reason for leaving out text in UTF-16 or UTF-32 that does not declare it."""
    return f"{encoding} without a byte order mark"


def problem_of_nuls(content: bytes) -> str:
    """Return the reason for leaving out text with NUL bytes; empty if it has none."""
    if b"\0" not in content:
        return ""
    encoding = undeclared_encoding(content)
    return unmarked(encoding) if encoding else NUL_BYTES


def invalid(error: UnicodeDecodeError) -> str:
    """Return the reason for leaving out a text that is not in its encoding."""
    return NOT_UTF8 if error.encoding == "utf-8" else f"invalid {error.encoding.upper()}"


class Utf8Stream(io.RawIOBase):
    """A stream of text as UTF-8 without its byte order mark.

    A mark of UTF-16 or UTF-32 at the start is honoured: the text is decoded, and UnicodeDecodeError raised where it is
    invalid. All other bytes pass unchanged.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        head = b""
        while len(head) < 4 and (piece := stream.read(4 - len(head))):
            head += piece
        self.encoding, rest = split_mark(head)
        self.decoder = None if self.encoding == "utf-8" else codecs.getincrementaldecoder(self.encoding)()
        self.content = rest if self.decoder is None else self.decoder.decode(rest).encode()
        self.at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.content and not self.at_end:
            piece = self.stream.read(BYTES_PER_READ)
            self.at_end = not piece
            self.content = piece if self.decoder is None else self.decoder.decode(piece, final=self.at_end).encode()
        count = min(len(self.content), len(buffer))
        buffer[:count] = self.content[:count]
        self.content = self.content[count:]
        return count
