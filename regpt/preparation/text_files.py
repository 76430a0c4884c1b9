"""Files of text, JSON lines and parquet as parts of a corpus, each cut into chunks.

The chunks depend on the file alone. A chunk of parquet names row groups and a chunk of plain text names its path, so
that the worker reads the file; lines of JSON are sent unparsed, and the worker parses them.
"""

import codecs
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any, Literal

import zstandard

from regpt.base.errors import DataError
from regpt.preparation import chunks
from regpt.preparation.chunks import NO_JSON, NO_TEXT, TextChunk
from regpt.preparation.parquet import parquet_chunks, text_bytes_of_file

FileKind = Literal["text", "jsonl", "parquet"]

PROSE_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html")
# fmt: off
CODE_SUFFIXES = (
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".js", ".ts", ".rb", ".sh", ".sql",
)
# fmt: on
COMPRESSED_SUFFIXES = (".gz", ".zst")
TABLE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
READABLE_FILES = f"{', '.join(TABLE_SUFFIXES)}, or text such as .txt, .md, .py"

COMPRESSION_RATIO = 3.5  # bytes of text per byte of .gz or .zst, roughly


@dataclass(frozen=True)
class TextFile:
    """A chunk that is a whole file. The file is one document."""

    size: int
    path: Path

    def read(self, refused: Counter[str]) -> Iterator[object]:
        with reading_errors(self.path):
            yield self.path.read_bytes().removeprefix(codecs.BOM_UTF8)


@dataclass(frozen=True)
class JsonLines:
    """A chunk of lines. A line is one document, its text in a field."""

    size: int
    lines: list[bytes]
    text_column: str

    def read(self, refused: Counter[str]) -> Iterator[object]:
        for line in self.lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                refused[NO_JSON] += 1
                continue
            yield row.get(self.text_column) if isinstance(row, dict) else None


@dataclass(frozen=True)
class FilePart:
    """One file on this machine."""

    path: Path
    text_column: str

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @property
    def likely_text_bytes(self) -> float:
        if file_kind(self.path) == "parquet":
            return text_bytes_of_file(self.path, self.text_column)
        return self.size * (COMPRESSION_RATIO if self.path.suffix.lower() in COMPRESSED_SUFFIXES else 1.0)

    def fingerprint(self) -> list[Any]:
        return [self.name, self.size, self.path.stat().st_mtime_ns]

    def chunks(self) -> Iterator[TextChunk]:
        kind = file_kind(self.path)
        if kind == "parquet":
            yield from parquet_chunks(self.path, self.text_column)
        elif kind == "jsonl":
            yield from line_chunks(self.path, self.text_column)
        else:
            yield TextFile(self.size, self.path)

    def check_readable(self, documents: int, refused: Counter[str]) -> None:
        rows = refused[NO_JSON] + refused[NO_TEXT]
        if documents or refused["empty"] or not rows:
            return
        is_jsonl = file_kind(self.path) == "jsonl"
        expected = "lines is JSON with a field" if is_jsonl else "rows has text in the column"
        raise DataError(
            f"{self.path}: none of its {rows:,} {expected} '{self.text_column}'",
            f"set data.text_column to the {'field' if is_jsonl else 'column'} that holds the text",
        )

    def cleanup(self) -> None:
        pass


def file_kind(path: PurePath) -> FileKind | None:
    """Return how a file is read, by its name; None if regpt cannot read it."""
    name = path.name.lower()
    if name.endswith(TABLE_SUFFIXES):
        return "parquet" if name.endswith(".parquet") else "jsonl"
    return "text" if path.suffix.lower() in PROSE_SUFFIXES + CODE_SUFFIXES else None


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading or decompressing a file into a DataError that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: cannot be read ({error})", "repair or remove the file") from None


def line_chunks(path: Path, text_column: str) -> Iterator[TextChunk]:
    """Cut lines, compressed or not, into chunks. Their sizes are in bytes of the file, as the progress bar counts."""
    if path.suffix.lower() in COMPRESSED_SUFFIXES and path.stat().st_size == 0:
        raise DataError(f"{path}: cannot be read (it is empty)", "download it again or remove it")
    with reading_errors(path), path.open("rb") as file, decompressed(file, path.name) as lines:
        chunk: list[bytes] = []
        chunk_bytes = chunk_start = 0
        for line in lines:
            chunk.append(line)
            chunk_bytes += len(line)
            if chunk_bytes >= chunks.CHUNK_BYTES:
                position = file.tell()
                yield JsonLines(position - chunk_start, chunk, text_column)
                chunk, chunk_bytes, chunk_start = [], 0, position
        if chunk:
            yield JsonLines(file.tell() - chunk_start, chunk, text_column)


def decompressed(file: IO[bytes], name: str) -> IO[bytes]:
    if name.lower().endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    if name.lower().endswith(".zst"):
        return io.BufferedReader(ZstandardReader(file))
    return file


class ZstandardReader(io.RawIOBase):
    """Decompress a Zstandard file. Unlike the library's reader, raise EOFError if the file is truncated."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.pending:
            piece = self.frame.unused_data or self.file.read(1 << 17)
            if not piece:
                if not self.frame.eof:
                    raise EOFError("the file is truncated")
                return 0
            if self.frame.eof:  # another frame follows
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            self.pending = self.frame.decompress(piece)
        taken = self.pending[: len(buffer)]
        buffer[: len(taken)] = taken
        self.pending = self.pending[len(taken) :]
        return len(taken)
