"""Where documents come from: text and source files, JSON lines, parquet, and the embedded corpus.

A corpus is an ordered list of parts; a part gives documents in its own order. Both orders depend on nothing but names
and contents, so the same corpus always gives the same documents.
"""

import gzip
import hashlib
import io
import json
import platform
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Protocol

import zstandard

from regpt.base.errors import DataError

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
TABLE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
READABLE = f"{', '.join(TABLE_SUFFIXES)}, or text such as .txt, .md, .py"
ROWS_AT_A_TIME = 256


class Part(Protocol):
    """A stretch of a corpus that can be read by itself."""

    def documents(self, refused: Counter[str]) -> Iterator[str]:
        """The documents in order. What is no text is left out and counted in `refused` by reason.

        Raises DataError where the part as a whole cannot be read.
        """


@dataclass(frozen=True)
class Corpus:
    """Parts in the order in which they are read, and a name for them that stands in the manifest and the report."""

    description: str
    parts: tuple[Part, ...]


def open_corpus(source: str, text_column: str) -> Corpus:
    """The corpus that `data.source` names: 'stdlib', a file, or a folder (all readable files below it, by name).

    Raises DataError where there is nothing to read.
    """
    if source == "stdlib":
        return embedded_corpus()
    if source.startswith("hub:"):
        raise DataError(
            f"data.source = '{source}': this version of regpt does not download from the hub",
            "fetch the parquet files yourself and set data.source to their folder",
        )
    path = Path(source).expanduser()
    if path.is_dir():
        visible = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        files = sorted((p for p in visible if p.is_file() and kind_of(p)), key=lambda p: p.relative_to(path).parts)
        if not files:
            raise DataError(
                f"data.source = '{path}': this folder holds nothing that regpt reads",
                f"put files there: {READABLE}",
            )
    elif not path.exists():
        raise DataError(
            f"data.source = '{source}': no such file or folder",
            f"name {READABLE}, a folder of them, or 'stdlib'",
        )
    elif not kind_of(path):
        raise DataError(f"data.source = '{path}': regpt does not read '{path.suffix}' files", f"use {READABLE}")
    else:
        files = [path]
    return Corpus(str(source), tuple(FilePart(file, text_column) for file in files))


# The embedded corpus

# Left out: tests (some systems do not ship them), what is not the library's own, the tables of `encodings`, which are
# numbers rather than text, and _sysconfigdata, which says how and where this very Python was built.
STDLIB_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings"}
)


def embedded_corpus() -> Corpus:
    """The sources of the standard library of the Python that runs this program: real text on every machine.

    A document is one top-level function or class, or what stands between two. They are ordered by the SHA-256 of their
    text, so that any stretch of the corpus is a fair sample of the whole.
    """
    if not embedded_documents():
        raise DataError(
            "data.source = 'stdlib': this Python comes without the sources of its library",
            "name text of your own",
        )
    return Corpus(
        f"Python {platform.python_version()} standard library",
        tuple(EmbeddedPart(digit) for digit in "0123456789abcdef"),
    )


@dataclass(frozen=True)
class EmbeddedPart:
    """The documents of the embedded corpus whose SHA-256 begins with a digit."""

    digit: str

    def documents(self, refused: Counter[str]) -> Iterator[str]:
        return (text for digest, text in embedded_documents() if digest.startswith(self.digit))


@cache
def embedded_documents() -> list[tuple[str, str]]:
    """(SHA-256, text) of every different document of the embedded corpus, in order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = (
        p
        for p in root.rglob("*.py")
        if not STDLIB_LEFT_OUT.intersection(p.relative_to(root).parts) and not p.name.startswith("_sysconfigdata")
    )
    found = {}
    for module in modules:
        for piece in definitions(module.read_text(encoding="utf-8", errors="replace")):
            if piece.strip():
                found[hashlib.sha256(piece.encode()).hexdigest()] = piece
    return sorted(found.items())


def definitions(source: str) -> Iterator[str]:
    """A module cut before each top-level definition, decorators included. Joined, the pieces are the module again."""
    piece: list[str] = []
    decorated = False
    for line in source.splitlines(keepends=True):
        if line.startswith(("@", "def ", "class ", "async def ")):
            if not decorated:
                yield "".join(piece)
                piece = []
            decorated = line.startswith("@")
        piece.append(line)
    yield "".join(piece)


# Files


@dataclass(frozen=True)
class FilePart:
    """One file of a user's."""

    path: Path
    text_column: str

    def documents(self, refused: Counter[str]) -> Iterator[str]:
        readers = {"text": text_documents, "jsonl": json_documents, "parquet": parquet_documents}
        try:
            for text in readers[kind_of(self.path)](self.path, self.text_column, refused):
                if not isinstance(text, str):
                    refused["no text in the column"] += 1
                elif not text.strip():
                    refused["empty"] += 1
                else:
                    yield text
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise DataError(f"{self.path}: cannot be read ({error})", "mend or remove the file") from None


def kind_of(path: Path) -> str:
    """'text', 'jsonl' or 'parquet'; nothing for what cannot be read."""
    name = path.name.lower()
    if name.endswith(TABLE_SUFFIXES):
        return "parquet" if name.endswith(".parquet") else "jsonl"
    return "text" if path.suffix.lower() in PROSE | CODE else ""


def text_documents(file: Path, text_column: str, refused: Counter[str]) -> Iterator[object]:
    """A whole file is one document."""
    try:
        yield file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        refused["not UTF-8"] += 1


def json_documents(file: Path, text_column: str, refused: Counter[str]) -> Iterator[object]:
    """A line is one document, its text in a field."""
    rows = found = 0
    with open_unpacked(file) as lines:
        for line in lines:
            if not line.strip():
                continue
            rows += 1
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                refused["not JSON"] += 1
                continue
            found += isinstance(row, dict) and text_column in row
            yield row.get(text_column) if isinstance(row, dict) else None
    if rows and not found:
        raise DataError(
            f"{file}: none of its {rows} lines is JSON with a field '{text_column}'",
            "name the field that holds the text: data.text_column=…",
        )


def open_unpacked(file: Path) -> IO[bytes]:
    name = file.name.lower()
    if name.endswith(".gz"):
        return io.BufferedReader(gzip.open(file))
    if name.endswith(".zst"):
        return io.BufferedReader(WholeZstandard(file))
    return file.open("rb")


class WholeZstandard(io.RawIOBase):
    """A Zstandard file, unpacked; unlike the library's own reader it does not take a cut file for a whole one."""

    def __init__(self, path: Path) -> None:
        self.packed = path.open("rb")
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

    def close(self) -> None:
        self.packed.close()
        super().close()


def parquet_documents(file: Path, text_column: str, refused: Counter[str]) -> Iterator[object]:
    """A row is one document, its text in a column; read in small groups of rows, so that memory stays bounded."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file, memory_map=True) as table:
            if text_column not in table.schema_arrow.names:
                raise DataError(
                    f"{file}: has no column '{text_column}', only {', '.join(table.schema_arrow.names)}",
                    "name the one that holds the text: data.text_column=…",
                )
            for batch in table.iter_batches(ROWS_AT_A_TIME, columns=[text_column]):
                yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: is no whole parquet file ({error})", "fetch it again, or remove it") from None
