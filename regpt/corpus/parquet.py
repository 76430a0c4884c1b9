"""Parquet files as chunks: row groups that a worker reads by itself."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regpt.base.errors import DataError, reading_advice
from regpt.base.format import shown
from regpt.corpus import chunks
from regpt.corpus.chunks import Documents, TextChunk

if TYPE_CHECKING:
    import pyarrow.parquet

MAX_ROW_GROUP_BYTES = 64_000_000  # the main process reads a larger row group, a few rows at a time
ROWS_PER_READ = 256


@dataclass(frozen=True)
class RowGroups:
    """Consecutive row groups. A row is one document, its text in a column."""

    size: int
    path: Path
    groups: range
    text_column: str

    def read(self, refused: Counter[str]) -> Iterator[object]:
        with parquet_errors(self.path), open_parquet(self.path) as table:
            groups = list(self.groups)
            # A few rows at a time: the size in the metadata is the encoded one, and a dictionary can expand to more.
            for batch in table.iter_batches(ROWS_PER_READ, groups, [self.text_column], use_threads=False):
                yield from column_values(batch.column(0))


def parquet_chunks(path: Path, text_column: str) -> Iterator[TextChunk]:
    """Cut a parquet file into chunks: small row groups together, a very large one by rows, to bound the memory.

    Raise DataError if the file is damaged or has no such column.
    """
    with parquet_errors(path), open_parquet(path) as table:
        names = table.schema_arrow.names
        if text_column not in names:
            of_text = text_columns(path)
            raise DataError(
                f"{shown(path)}: no column '{text_column}'; its columns are {', '.join(names)}"
                + (f"; text is in {', '.join(of_text)}" if len(of_text) > 1 else ""),
                f"set data.text_column={of_text[0]}"
                if len(of_text) == 1
                else "set data.text_column to the column that holds the text",
            )
        metadata = table.metadata
        text_bytes = [column_bytes(metadata.row_group(g), text_column) for g in range(metadata.num_row_groups)]
        disk_ratio = path.stat().st_size / max(1, sum(text_bytes))  # bytes of the file per byte of text
        first = 0
        for group, size in enumerate(text_bytes):
            if size > MAX_ROW_GROUP_BYTES:
                if first < group:
                    size_before = round(sum(text_bytes[first:group]) * disk_ratio)
                    yield RowGroups(size_before, path, range(first, group), text_column)
                yield from row_chunks(table, group, text_column, disk_ratio)
                first = group + 1
            elif sum(text_bytes[first : group + 1]) >= chunks.CHUNK_BYTES or group == len(text_bytes) - 1:
                end = group + 1
                yield RowGroups(round(sum(text_bytes[first:end]) * disk_ratio), path, range(first, end), text_column)
                first = end


def row_chunks(
    table: "pyarrow.parquet.ParquetFile", group: int, text_column: str, disk_ratio: float
) -> Iterator[TextChunk]:
    """Cut one row group into chunks of rows, read in this process."""
    documents: list[object] = []
    text_bytes = 0
    for batch in table.iter_batches(ROWS_PER_READ, row_groups=[group], columns=[text_column]):
        documents += column_values(batch.column(0))
        text_bytes += batch.nbytes
        if text_bytes >= chunks.CHUNK_BYTES:
            yield Documents(round(text_bytes * disk_ratio), documents)
            documents, text_bytes = [], 0
    if documents:
        yield Documents(round(text_bytes * disk_ratio), documents)


def column_values(column: Any) -> list[object]:
    """Return the values of a column, as bytes if some of its text is not UTF-8."""
    import pyarrow

    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pyarrow.large_binary()).to_pylist()
    return values


def text_columns(path: Path) -> list[str]:
    """Return the columns of strings."""
    import pyarrow

    with parquet_errors(path), open_parquet(path) as table:
        strings = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())
        return [field.name for field in table.schema_arrow if field.type in strings]


def text_bytes_of_file(path: Path, text_column: str) -> int:
    """Return the uncompressed size of a column in a whole file, in bytes, from its metadata."""
    with parquet_errors(path), open_parquet(path) as table:
        groups = (table.metadata.row_group(number) for number in range(table.metadata.num_row_groups))
        return sum(column_bytes(group, text_column) for group in groups)


def column_bytes(group: Any, name: str) -> int:
    """Return the uncompressed size of a column in a row group, in bytes; a nested column counts with all its leaves."""
    columns = (group.column(number) for number in range(group.num_columns))
    sizes = (c.total_uncompressed_size for c in columns if f"{c.path_in_schema}.".startswith(f"{name}."))
    return int(sum(sizes))


def open_parquet(path: Path) -> "pyarrow.parquet.ParquetFile":
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, metadata=parquet_metadata(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=2)
def parquet_metadata(path: Path, changed_at: int) -> Any:
    """Read the metadata once per file and process: a file of thousands of row groups has megabytes of it."""
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(path)


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn errors of the parquet reader into a DataError that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        again = "download it again or remove it"
        if isinstance(error, OSError) and error.errno is not None:
            problem = f"{shown(path)}: cannot be read ({error.strerror or error})"
            raise DataError(problem, reading_advice(error, again)) from None
        raise DataError(f"{shown(path)}: damaged or not a parquet file ({error})", again) from None
