"""Compressed files as streams: gzip, Zstandard, bzip2 and xz, checked up to their end."""

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any, Protocol

from regpt.base.errors import UserError

MAX_WINDOW_BYTES = 1 << 31  # the largest window of Zstandard; `zstd --long=31` writes it
BYTES_PER_READ = 1 << 17
LONGEST_START = 6  # bytes of the longest `Compression.starts`


class Decompressor(Protocol):
    """One compressed stream; a file may hold several, one after the other."""

    @property
    def eof(self) -> bool:
        """Whether the end of the stream has been read, and its checksum was right."""

    @property
    def unused_data(self) -> bytes:
        """The bytes behind the end of the stream."""

    def decompress(self, data: bytes, /) -> bytes:
        """Return the content of the next bytes."""


@dataclass(frozen=True)
class Compression:
    """A format of compression, known by the suffix of a file."""

    suffix: str
    starts: tuple[bytes, ...]  # a stream starts with one of these
    decompressor: Callable[[], Decompressor]


def zstandard_decompressor() -> Decompressor:
    """Return a decompressor. Raises UserError where the package is missing, as on machines that only train."""
    try:
        import zstandard
    except ImportError:
        raise UserError(
            "the text is compressed by Zstandard, and zstandard is missing", "pip install zstandard"
        ) from None
    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()


# A skippable frame of Zstandard starts with 0x184D2A50 to 0x184D2A5F.
ZSTANDARD_STARTS = (b"\x28\xb5\x2f\xfd", *(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60)))
COMPRESSIONS = {
    compression.suffix: compression
    for compression in (
        Compression(".gz", (b"\x1f\x8b",), lambda: zlib.decompressobj(wbits=31)),
        Compression(".zst", ZSTANDARD_STARTS, zstandard_decompressor),
        Compression(".bz2", (b"BZh",), bz2.BZ2Decompressor),
        Compression(".xz", (b"\xfd7zXZ\0",), lzma.LZMADecompressor),
    )
}


def decompression_errors() -> tuple[type[Exception], ...]:
    """Return the types of errors that damaged files raise."""
    zstandard = sys.modules.get("zstandard")  # not imported: it raised nothing
    return (EOFError, zlib.error, lzma.LZMAError, *([zstandard.ZstdError] if zstandard else []))


def compression_of(path: PurePath) -> Compression | None:
    """Return the compression that the name of a file tells; None without one."""
    return COMPRESSIONS.get(path.suffix.lower())


class DecompressedFile(io.RawIOBase):
    """Decompress a file of one or more streams.

    Raise EOFError if it is truncated or starts with other data. Zeros behind the last stream are padding. Anything else
    behind it is not read, as gunzip does, and sets `has_trailing_bytes`.
    """

    def __init__(self, file: IO[bytes], compression: Compression) -> None:
        self.file, self.compression = file, compression
        self.stream: Decompressor | None = None
        self.unread = self.content = b""
        self.at_end = self.has_trailing_bytes = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.content and not self.at_end:
            if self.stream is None:
                self.start_stream()
            else:
                self.read_stream(self.stream)
        count = min(len(self.content), len(buffer))
        buffer[:count] = self.content[:count]
        self.content = self.content[count:]
        return count

    def start_stream(self, is_first: bool = True) -> None:
        """Start the next stream, or find the end of the file."""
        while len(self.unread) < LONGEST_START and (piece := self.file.read(BYTES_PER_READ)):
            self.unread = (self.unread + piece) if is_first else (self.unread + piece).lstrip(b"\0")
        if self.unread.startswith(self.compression.starts):
            self.stream = self.compression.decompressor()
        elif is_first:
            raise EOFError(f"the file does not start as {self.compression.suffix} files do")
        else:
            self.at_end, self.has_trailing_bytes = True, bool(self.unread)

    def read_stream(self, stream: Decompressor) -> None:
        piece = self.unread or self.file.read(BYTES_PER_READ)
        if not piece:
            raise EOFError("the file is truncated")
        self.content = stream.decompress(piece)
        self.unread = b""
        if stream.eof:
            self.unread = stream.unused_data.lstrip(b"\0")
            self.start_stream(is_first=False)
