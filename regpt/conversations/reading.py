"""Rows of conversations in JSON lines and parquet files, each with the place where it stands."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from regpt.base.errors import DataError
from regpt.base.format import shown
from regpt.conversations.messages import COLUMNS, BadRowError, RowProblem
from regpt.corpus.file_kinds import file_kind
from regpt.corpus.parquet import ROWS_PER_READ, open_parquet, parquet_errors
from regpt.corpus.text_files import opened_text


class Row(NamedTuple):
    """A row of a file, or what is wrong with it."""

    place: str  # such as 'chats.jsonl, line 12'
    value: Any  # BadRowError if the row cannot be read
    size: int  # bytes of the file, roughly


def read_rows(path: Path, column: str = "") -> Iterator[Row]:
    """Yield the rows of a file. `column` holds the messages; empty: the first of `COLUMNS` that the file has.

    Raises DataError if the file cannot be read or has no such column.
    """
    kind = file_kind(path)
    if kind == "jsonl":
        yield from read_lines(path)
    elif kind == "parquet":
        yield from read_parquet(path, column)
    else:
        raise DataError(
            f"{shown(path)}: holds no conversations, which are rows of .jsonl or .parquet files",
            'write one conversation per line: {"messages": [{"role": "user", "content": …}, …]},'
            " or set data.format=text",
        )


def read_lines(path: Path) -> Iterator[Row]:
    with opened_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value: Any = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError):
                value = BadRowError(RowProblem.NO_JSON)
            yield Row(f"{shown(path)}, line {number:,}", value, len(line))


def read_parquet(path: Path, column: str) -> Iterator[Row]:
    with parquet_errors(path), open_parquet(path) as table:
        names = table.schema_arrow.names
        found = [name for name in ((column,) if column else COLUMNS) if name in names]
        if not found:
            asked = f"'{column}'" if column else " or ".join(COLUMNS)
            raise DataError(
                f"{shown(path)}: no column {asked}; its columns are {', '.join(names)}",
                "set data.text_column to the column of the conversations, or data.format=text for text",
            )
        size = path.stat().st_size / max(1, table.metadata.num_rows)
        number = 0
        for batch in table.iter_batches(ROWS_PER_READ, columns=[found[0]], use_threads=False):
            for value in batch.column(0).to_pylist():
                number += 1
                yield Row(f"{shown(path)}, row {number:,}", value, round(size))
