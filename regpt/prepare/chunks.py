"""Files cut into sections, each a few megabytes that a worker process reads by itself.

What a section holds depends on the file alone. A parquet section names row groups and a text file its path, so that the
worker does the reading; lines of JSON are handed over as they stand, and the worker parses them.
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
from functools import lru_cache
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, Protocol

import zstandard

from regpt.base.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet

PROSE = {".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html"}
CODE = {
    ".py",
    ".pyi",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".cu",
    ".rs",
    ".go",
    ".java",
    ".js",
    ".ts",
    ".rb",
    ".sh",
    ".sql",
}
PACKED = (".gz", ".zst")
TABLE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
READABLE = f"{', '.join(TABLE_SUFFIXES)}, or text such as .txt, .md, .py"

SECTION_BYTES = 4_000_000  # of text, about; more where a row group or a document is larger
WHOLE_ROW_GROUP_BYTES = 64_000_000  # a larger row group is read in rows, by the main process
ROWS_AT_A_TIME = 256
PACKED_TEXT_RATIO = 3.5  # bytes of text in a byte of .gz or .zst, about

NO_TEXT = "no text in the column"
NO_JSON = "not JSON"


class Chunk(Protocol):
    """A stretch of a part: pickled, sent to a worker, read there."""

    @property
    def size(self) -> int:
        """Bytes of the part that it stands for, for the progress bar."""

    def read(self, refused: Counter[str]) -> Iterator[object]:
        """The documents, in order: text, or bytes that should be UTF-8; what is neither stands as something else.

        What is not even that is counted in `refused` by reason. Raises DataError where the section cannot be read.
        """


@dataclass(frozen=True)
class Texts:
    """Documents that are at hand."""

    size: int
    documents: list[object]

    def read(self, refused: Counter[str]) -> Iterator[object]:
        return iter(self.documents)


@dataclass(frozen=True)
class TextFile:
    """A whole file is one document."""

    size: int
    path: Path

    def read(self, refused: Counter[str]) -> Iterator[object]:
        with reading_errors(self.path):
            yield self.path.read_bytes().removeprefix(codecs.BOM_UTF8)


@dataclass(frozen=True)
class JsonLines:
    """A line is one document, its text in a field."""

    size: int
    lines: list[bytes]
    text_column: str

    def read(self, refused: Counter[str]) -> Iterator[object]:
        return (text for line in self.lines for text in self.text_of(line, refused))

    def text_of(self, line: bytes, refused: Counter[str]) -> list[object]:
        if not line.strip():
            return []
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            refused[NO_JSON] += 1
            return []
        return [row.get(self.text_column) if isinstance(row, dict) else None]


@dataclass(frozen=True)
class RowGroups:
    """A row is one document, its text in a column."""

    size: int
    path: Path
    groups: range
    text_column: str

    def read(self, refused: Counter[str]) -> Iterator[object]:
        with parquet_errors(self.path), open_parquet(self.path) as table:
            groups = list(self.groups)
            # a few rows at a time: what the file says of a row group's size is what it packs to, not what it holds
            for batch in table.iter_batches(ROWS_AT_A_TIME, groups, [self.text_column], use_threads=False):
                yield from values_of(batch.column(0))


@dataclass(frozen=True)
class FilePart:
    """One file of a user's."""

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
        """How much text it may hold, for an estimate of the space that is needed."""
        if file_kind(self.path) == "parquet":
            with parquet_errors(self.path), open_parquet(self.path) as table:
                groups = (table.metadata.row_group(number) for number in range(table.metadata.num_row_groups))
                return sum(bytes_of_column(group, self.text_column) for group in groups)
        return self.size * (PACKED_TEXT_RATIO if self.path.suffix.lower() in PACKED else 1.0)

    def fingerprint(self) -> list[Any]:
        """What must not change between two attempts at preparing it."""
        return [self.name, self.size, self.path.stat().st_mtime_ns]

    def chunks(self) -> Iterator[Chunk]:
        kind = file_kind(self.path)
        if kind == "parquet":
            yield from parquet_sections(self.path, self.text_column)
        elif kind == "jsonl":
            yield from line_sections(self.path, self.text_column)
        else:
            yield TextFile(self.size, self.path)

    def check_readable(self, documents: int, refused: Counter[str]) -> None:
        rows = refused[NO_JSON] + refused[NO_TEXT]
        if documents or refused["empty"] or not rows:
            return
        what = "lines is JSON with a field" if file_kind(self.path) == "jsonl" else "rows holds text in the column"
        raise DataError(
            f"{self.path}: none of its {rows:,} {what} '{self.text_column}'",
            "name the one that holds the text: data.text_column=…",
        )

    def cleanup(self) -> None:
        pass


def file_kind(path: PurePath) -> str:
    """'text', 'jsonl' or 'parquet'; nothing for what cannot be read."""
    name = path.name.lower()
    if name.endswith(TABLE_SUFFIXES):
        return "parquet" if name.endswith(".parquet") else "jsonl"
    return "text" if path.suffix.lower() in PROSE | CODE else ""


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """What goes wrong in reading a file, as an error that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: cannot be read ({error})", "mend or remove the file") from None


# JSON lines


def line_sections(path: Path, text_column: str) -> Iterator[Chunk]:
    """Lines, packed or not, some megabytes at a time. The bar counts packed bytes, so a section's size is its share."""
    if path.suffix.lower() in PACKED and path.stat().st_size == 0:
        raise DataError(f"{path}: cannot be read (it is empty)", "fetch it again, or remove it")
    with reading_errors(path), path.open("rb") as packed, unpacked(packed, path.name) as lines:
        held: list[bytes] = []
        held_bytes = told = 0
        for line in lines:
            held.append(line)
            held_bytes += len(line)
            if held_bytes >= SECTION_BYTES:
                reached = packed.tell()
                yield JsonLines(reached - told, held, text_column)
                held, held_bytes, told = [], 0, reached
        if held:
            yield JsonLines(packed.tell() - told, held, text_column)


def unpacked(packed: IO[bytes], name: str) -> IO[bytes]:
    if name.lower().endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=packed))
    if name.lower().endswith(".zst"):
        return io.BufferedReader(WholeZstandard(packed))
    return packed


class WholeZstandard(io.RawIOBase):
    """A Zstandard file, unpacked; unlike the library's own reader it does not take a cut file for a whole one."""

    def __init__(self, packed: IO[bytes]) -> None:
        self.packed = packed
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        while not self.ready:
            piece = self.frame.unused_data or self.packed.read(1 << 17)
            if not piece:
                if not self.frame.eof:
                    raise EOFError("the file ends in the middle")
                return 0
            if self.frame.eof:  # another frame follows
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            self.ready = self.frame.decompress(piece)
        taken = self.ready[: len(room)]
        room[: len(taken)] = taken
        self.ready = self.ready[len(taken) :]
        return len(taken)


# Parquet


def parquet_sections(path: Path, text_column: str) -> Iterator[Chunk]:
    """Row groups, small ones together; a very large one in rows, so that memory stays bounded."""
    with parquet_errors(path), open_parquet(path) as table:
        names = table.schema_arrow.names
        if text_column not in names:
            raise DataError(
                f"{path}: has no column '{text_column}', only {', '.join(names)}",
                "name the one that holds the text: data.text_column=…",
            )
        metadata = table.metadata
        text_bytes = [bytes_of_column(metadata.row_group(g), text_column) for g in range(metadata.num_row_groups)]
        share = path.stat().st_size / max(1, sum(text_bytes))  # bytes on the disk that stand for a byte of text
        first = 0
        for group, size in enumerate(text_bytes):
            if size > WHOLE_ROW_GROUP_BYTES:
                if first < group:
                    yield RowGroups(round(sum(text_bytes[first:group]) * share), path, range(first, group), text_column)
                yield from row_sections(table, group, text_column, share)
                first = group + 1
            elif sum(text_bytes[first : group + 1]) >= SECTION_BYTES or group == len(text_bytes) - 1:
                after = group + 1
                yield RowGroups(round(sum(text_bytes[first:after]) * share), path, range(first, after), text_column)
                first = after


def row_sections(table: "pyarrow.parquet.ParquetFile", group: int, text_column: str, share: float) -> Iterator[Chunk]:
    held: list[object] = []
    held_bytes = 0
    for batch in table.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=[text_column]):
        held += values_of(batch.column(0))
        held_bytes += batch.nbytes
        if held_bytes >= SECTION_BYTES:
            yield Texts(round(held_bytes * share), held)
            held, held_bytes = [], 0
    if held:
        yield Texts(round(held_bytes * share), held)


def values_of(column: Any) -> list[object]:
    """A column's values; as bytes where some of its text is none."""
    import pyarrow

    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pyarrow.large_binary()).to_pylist()
    return values


def bytes_of_column(group: Any, name: str) -> int:
    """Unpacked size of a column in a row group's metadata; of nested columns, all leaves together."""
    columns = (group.column(number) for number in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if f"{c.path_in_schema}.".startswith(f"{name}."))


def open_parquet(path: Path) -> "pyarrow.parquet.ParquetFile":
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, metadata=parquet_metadata(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=2)
def parquet_metadata(path: Path, changed_at: int) -> Any:
    """Parsed once a file and process: a file of thousands of row groups has megabytes of it."""
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(path)


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no whole parquet file ({error})", "fetch it again, or remove it") from None
