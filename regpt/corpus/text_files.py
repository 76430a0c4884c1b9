"""Files of text, JSON lines and parquet as parts of a corpus, each cut into chunks.

The chunks depend on the file alone. A chunk of parquet names row groups and a chunk of a small text file names its
path, so that the worker reads the file; lines of JSON and stretches of long texts are sent to the worker.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from regpt.base.errors import DataError, reading_advice
from regpt.base.files import refuse_lfs_pointer
from regpt.base.format import shown
from regpt.corpus import chunks
from regpt.corpus.chunks import NO_JSON, NO_TEXT, Documents, TextChunk
from regpt.corpus.compression import DecompressedFile, compression_of, decompression_errors
from regpt.corpus.encodings import (
    NOT_UTF8,
    SAMPLE_BYTES,
    Utf8Stream,
    invalid,
    problem_of_nuls,
    undeclared_encoding,
)
from regpt.corpus.file_kinds import file_kind
from regpt.corpus.long_texts import LeftOut, SeparatedChunk, long_text_chunks, problem_of_text
from regpt.corpus.parquet import parquet_chunks, text_bytes_of_file, text_columns

COMPRESSION_RATIO = 3.5  # bytes of text per byte of a compressed file, roughly
TRAILING_BYTES = "bytes behind the end of the compressed data"
JSONL_WORDS = "lines is JSON with a field", "field"
PARQUET_WORDS = "rows has text in the column", "column"
REPAIR = "repair or remove the file"


@dataclass(frozen=True)
class TextFile:
    """A chunk that is a whole file. The file is one document."""

    size: int
    path: Path

    def read(self, refused: Counter[str]) -> Iterator[object]:
        with opened_text(self.path) as file:
            try:
                content = file.read()
            except UnicodeDecodeError as error:
                refused[invalid(error)] += 1
                return
            if problem := problem_of_nuls(content):
                refused[problem] += 1
            else:
                yield content
            if file.has_trailing_bytes:
                refused[TRAILING_BYTES] += 1


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
                row = json.loads(line.decode("utf-8", "surrogatepass"))
            except UnicodeDecodeError:
                refused[NOT_UTF8] += 1
                continue
            except (ValueError, RecursionError):
                refused[NO_JSON] += 1
                continue
            yield row.get(self.text_column) if isinstance(row, dict) else None


@dataclass(frozen=True)
class FilePart:
    """A file. Its text is cut into documents at `separator`, unless that is empty."""

    path: Path
    text_column: str
    separator: str = ""
    behind_words: bool = False  # where a document may be cut; see `long_texts`
    listed: tuple[int, int] | None = None  # its size and time of change when the corpus was opened

    @property
    def name(self) -> str:
        return shown(self.path)

    @property
    def size(self) -> int:
        return self.listed[0] if self.listed else self.stamp()[0]

    @property
    def likely_text_bytes(self) -> float:
        if file_kind(self.path) == "parquet":
            return text_bytes_of_file(self.path, self.text_column)
        return self.size * (COMPRESSION_RATIO if compression_of(self.path) else 1.0)

    def stamp(self) -> tuple[int, int]:
        """Return the size of the file and the time of its last change. Raise DataError if it is gone."""
        with reading_errors(self.path):
            status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def with_stamp(self) -> "FilePart":
        """Return this part with its stamp in `listed`. Raise DataError if the file is gone, or only a pointer to it."""
        refuse_lfs_pointer(self.path)
        return replace(self, listed=self.stamp())

    def fingerprint(self) -> list[Any]:
        values = [self.name, *(self.listed or self.stamp())]
        return [*values, "cut"] if self.is_long_text else values  # earlier versions did not cut it

    @property
    def is_long_text(self) -> bool:
        """Whether the file is text that is read in several chunks."""
        return file_kind(self.path) == "text" and self.likely_text_bytes > chunks.CHUNK_BYTES

    def chunks(self) -> Iterator[TextChunk]:
        kind = file_kind(self.path)
        if kind == "text" and self.is_long_text:
            yield from self.long_text_chunks()
            return
        for chunk in self.whole_document_chunks():
            yield SeparatedChunk(chunk, self.separator) if self.separator else chunk

    def whole_document_chunks(self) -> Iterator[TextChunk]:
        kind = file_kind(self.path)
        if kind == "parquet":
            yield from parquet_chunks(self.path, self.text_column)
        elif kind == "jsonl":
            yield from line_chunks(self.path, self.text_column)
        else:
            yield TextFile(self.size, self.path)

    def long_text_chunks(self) -> Iterator[TextChunk]:
        with opened_text(self.path) as file:
            problem = problem_of_text(file)
        if problem and not self.separator:
            yield LeftOut(self.size, problem)
            return
        with opened_text(self.path) as file:
            yield from long_text_chunks(file, self.name, self.separator, not problem, self.behind_words)
            if file.has_trailing_bytes:
                yield LeftOut(0, TRAILING_BYTES)

    def check_readable(self, documents: int, refused: Counter[str]) -> None:
        if self.listed and self.stamp() != self.listed:
            raise DataError(
                f"{self.name}: changed while it was read", "wait until it is complete, then run the same command again"
            )
        kind = file_kind(self.path)
        rows = refused[NO_JSON] + refused[NO_TEXT] + (refused[NOT_UTF8] if kind == "jsonl" else 0)
        if kind == "text" or documents or refused["empty"] or not rows:
            return
        unit, field = JSONL_WORDS if kind == "jsonl" else PARQUET_WORDS
        others = text_fields(self.path) if kind == "jsonl" else text_columns(self.path)
        raise DataError(
            f"{self.name}: none of its {rows:,} {unit} '{self.text_column}'"
            + (f"; text is in {', '.join(others)}" if others else ""),
            "set data.text_column" + (f"={others[0]}" if len(others) == 1 else f" to the {field} of the text"),
        )

    def cleanup(self) -> None:
        pass


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading or decompressing a file into a DataError that names it."""
    try:
        yield
    except decompression_errors() as error:
        raise DataError(f"{shown(path)}: cannot be read ({error})", REPAIR) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(path)}: not valid {error.encoding.upper()} ({error.reason})", REPAIR) from None
    except OSError as error:
        problem = f"{shown(path)}: cannot be read ({error.strerror or error})"
        raise DataError(problem, reading_advice(error, REPAIR)) from None


class TextStream(io.BufferedReader):
    """A file of text, decompressed, as UTF-8 without a byte order mark."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        compression = compression_of(path)
        self.file = file
        self.decompressed = DecompressedFile(file, compression) if compression else None
        super().__init__(Utf8Stream(self.decompressed or file), chunks.CHUNK_BYTES)  # type: ignore[arg-type]

    @property
    def position(self) -> int:
        """Bytes of the file that have been read from the disk."""
        return self.file.tell()

    @property
    def has_trailing_bytes(self) -> bool:
        """Whether other data follows the compressed data, known at its end."""
        return self.decompressed is not None and self.decompressed.has_trailing_bytes


@contextmanager
def opened_text(path: Path) -> Iterator[TextStream]:
    """Open a file of text. Errors of reading it become a DataError that names it."""
    with reading_errors(path), path.open("rb") as file:
        if compression_of(path) and path.stat().st_size == 0:
            raise DataError(f"{shown(path)}: cannot be read (it is empty)", "download it again or remove it")
        yield TextStream(file, path)


def line_chunks(path: Path, text_column: str) -> Iterator[TextChunk]:
    """Cut lines, compressed or not, into chunks. Their sizes are in bytes of the file, as the progress bar counts.

    Raise DataError if the lines are in UTF-16 or UTF-32 without a byte order mark.
    """
    with opened_text(path) as file:
        if encoding := undeclared_encoding_of(file):
            raise DataError(
                f"{shown(path)}: is {encoding} without a byte order mark",
                f"convert it: iconv -f {encoding} -t UTF-8 '{path.name}' > '{path.stem}-utf8{path.suffix}'",
            )
        chunk: list[bytes] = []
        chunk_bytes = chunk_start = 0
        for line in file:
            chunk.append(line)
            chunk_bytes += len(line)
            if chunk_bytes >= chunks.CHUNK_BYTES:
                yield JsonLines(file.position - chunk_start, chunk, text_column)
                chunk, chunk_bytes, chunk_start = [], 0, file.position
        if chunk:
            yield JsonLines(file.position - chunk_start, chunk, text_column)
        elif chunk_start == 0:
            yield Documents(0, [""])  # counted as empty
        if file.has_trailing_bytes:
            yield LeftOut(0, TRAILING_BYTES)


def undeclared_encoding_of(file: TextStream) -> str:
    head = file.peek(SAMPLE_BYTES)[:SAMPLE_BYTES]
    return undeclared_encoding(head) if b"\0" in head else ""


def text_fields(path: Path) -> list[str]:
    """Return the fields of the first line of JSON that hold text."""
    with opened_text(path) as file:
        try:
            row = json.loads(file.readline())
        except (ValueError, RecursionError):
            return []
    return [name for name, value in row.items() if isinstance(value, str)] if isinstance(row, dict) else []
