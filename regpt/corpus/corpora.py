"""Corpora: an ordered list of parts, such as files, each cut into chunks that a worker process reads by itself.

The order of parts, chunks and documents depends on names and contents alone, so a corpus always gives the same
documents in the same order, for any number of workers.
"""

import hashlib
import platform
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from regpt.base.errors import DataError
from regpt.base.files import sha256_of_json
from regpt.base.progress import Progress
from regpt.corpus.chunks import NO_TEXT, Chunk, Documents, EncodedChunk
from regpt.corpus.encodings import NOT_UTF8
from regpt.corpus.file_kinds import ADVICE, READABLE_FILES, file_kind, unread_suffix
from regpt.corpus.long_texts import TextStretch
from regpt.corpus.notes import notes_about, notes_about_links
from regpt.corpus.progress import PreparationProgress
from regpt.corpus.selection import left_out_record, list_folder, select_files
from regpt.corpus.text_files import FilePart

PARTS_FOR_ESTIMATE = 50  # the first parts of a corpus, from which the amount of text is estimated


class Part(Protocol):
    """A piece of a corpus that can be read by itself, such as a file."""

    @property
    def name(self) -> str:
        """Name for messages."""

    @property
    def size(self) -> int:
        """Bytes on the disk."""

    @property
    def likely_text_bytes(self) -> float:
        """Estimate of the bytes of text, from which the disk space is estimated."""

    def fingerprint(self) -> list[Any]:
        """Return values that change when the content changes; an unfinished preparation resumes only if they match."""

    def chunks(self) -> Iterator[Chunk]:
        """Cut the part into chunks, always in the same way. Raise DataError if it cannot be read."""

    def check_readable(self, documents: int, refused: Counter[str]) -> None:
        """Raise DataError if the counts of the finished part show that it was the wrong file or column."""

    def cleanup(self) -> None:
        """Delete what is not needed any more, now that the tokens of the part are safe on the disk."""


@dataclass(frozen=True)
class Corpus:
    """Parts in the order in which they are read, and a description for the manifest and the report."""

    description: str
    parts: tuple[Part, ...]
    origin: dict[str, Any] = field(default_factory=dict)  # more values for the manifest, such as a revision
    notes: tuple[str, ...] = ()  # what the user should know about the choice of files

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(part.size for part in self.parts)

    @property
    def likely_text_bytes(self) -> float:
        """Estimate of the bytes of text, extrapolated from the first parts."""
        first, rest = self.parts[:PARTS_FOR_ESTIMATE], self.parts[PARTS_FOR_ESTIMATE:]
        text_bytes = sum(part.likely_text_bytes for part in first)
        ratio = text_bytes / max(1, sum(part.size for part in first))
        return text_bytes + ratio * sum(part.size for part in rest)

    def fingerprint(self) -> str:
        """Return a hash of all parts: two attempts with the same one read the same text."""
        return sha256_of_json([part.fingerprint() for part in self.parts])

    def bytes_to_fetch(self, first: int) -> int:
        """Return the largest number of bytes that downloads will add to this disk at one time, from part `first` on."""
        return 0

    def fetched(self, numbers: Iterable[int], progress: PreparationProgress) -> Iterator[Part]:
        """Yield the parts of these numbers in turn, each readable until its `cleanup`."""
        return (self.parts[number] for number in numbers)


def open_corpus(source: str, text_column: str, separator: str = "") -> Corpus:
    """Open 'stdlib', a file, or a folder (all readable files below it, by name). For the hub see `hub.open_hub`.

    Text is cut into documents at `separator`, unless that is empty. Raise DataError if there is nothing to read.
    """
    if source == "stdlib":
        return embedded_corpus()
    path = Path(source).expanduser()
    if path.is_dir():
        return open_folder(path, text_column, separator)
    if not path.exists():
        raise DataError(
            f"data.source = '{source}': no such file or folder",
            f"name {READABLE_FILES}, a folder of them, 'stdlib', or 'hub:OWNER/NAME/FOLDER'",
        )
    if not file_kind(path):
        advice = ADVICE.get(unread_suffix(path), f"use {READABLE_FILES}")
        raise DataError(f"data.source = '{path}': regpt cannot read '{path.suffix}' files", advice)
    return Corpus(str(source), (FilePart(path, text_column, separator).with_stamp(),))


def open_folder(folder: Path, text_column: str, separator: str) -> Corpus:
    """Open the files below a folder that regpt reads."""
    listing = list_folder(folder)
    selection = select_files([path.relative_to(folder) for path in listing.files])
    if not selection.chosen:
        found = "; ".join(notes_about(selection))
        raise DataError(
            f"data.source = '{folder}': the folder has no files that regpt can read{f' ({found})' if found else ''}",
            f"put files there: {READABLE_FILES}",
        )
    parts = [FilePart(folder / path, text_column, separator) for path in selection.chosen]
    return Corpus(
        str(folder),
        tuple(part.with_stamp() for part in parts),
        left_out_record(selection),
        notes=(*notes_about(selection), *notes_about_links(listing)),
    )


def documents(part: Part, refused: Counter[str]) -> Iterator[str]:
    """Yield the documents of a part of text, in order; count those left out in `refused` by reason."""
    last: list[str] = []  # the document that the next chunk may continue, in stretches
    for chunk in part.chunks():
        assert not isinstance(chunk, EncodedChunk)
        if isinstance(chunk, TextStretch) and chunk.continues:
            last.append(chunk.rest)
        for text in accepted(chunk.read(refused), refused):
            if last:
                yield "".join(last)
            last = [text]
    if last:
        yield "".join(last)


def read_documents(corpus: Corpus, refused: Counter[str], progress: Progress) -> Iterator[str]:
    """Yield the documents of a corpus on this machine, in order. `progress` is told the bytes of the files."""
    done = 0
    for part in corpus.parts:
        for text in documents(part, refused):
            progress.raise_if_stopped()
            yield text
        part.check_readable(1, refused)
        done += part.size
        progress.update(done, corpus.size)


def accepted(texts: Iterable[object], refused: Counter[str]) -> Iterator[str]:
    """Yield the values that are text and not blank; count the others in `refused` by reason."""
    for text in texts:
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError:
                refused[NOT_UTF8] += 1
                continue
        if not isinstance(text, str):
            refused[NO_TEXT] += 1
        elif not text or text.isspace():
            refused["empty"] += 1
        else:
            yield text


# The embedded corpus

# Left out: tests, which some systems do not ship; packages that are not the library's own; the tables of `encodings`,
# which are numbers rather than text; and _sysconfigdata, which describes how and where this very Python was built.
STDLIB_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings"}
)


def embedded_corpus() -> Corpus:
    """Open the sources of the standard library of the running Python: real text on every machine.

    A document is a top-level function or class, or the text between two. They are ordered by the SHA-256 of their
    text, so that every stretch of the corpus is a fair sample of the whole.
    """
    if not embedded_documents():
        raise DataError(
            "data.source = 'stdlib': this Python comes without the sources of its library",
            "set data.source to text of your own",
        )
    return Corpus(
        f"Python {platform.python_version()} standard library",
        tuple(EmbeddedPart(digit) for digit in "0123456789abcdef"),
    )


@dataclass(frozen=True)
class EmbeddedPart:
    """The documents of the embedded corpus whose SHA-256 starts with a hexadecimal digit."""

    digit: str

    @property
    def name(self) -> str:
        return f"stdlib/{self.digit}"

    @property
    def size(self) -> int:
        return sum(len(text.encode()) for text in self.texts())

    @property
    def likely_text_bytes(self) -> float:
        return self.size

    def fingerprint(self) -> list[Any]:
        return [self.name, sha256_of_json(self.texts())]

    def texts(self) -> list[str]:
        return [text for digest, text in embedded_documents() if digest.startswith(self.digit)]

    def chunks(self) -> Iterator[Chunk]:
        yield Documents(self.size, list(self.texts()))

    def check_readable(self, documents: int, refused: Counter[str]) -> None:
        pass

    def cleanup(self) -> None:
        pass


@cache
def embedded_documents() -> list[tuple[str, str]]:
    """Return (SHA-256, text) of every distinct document of the embedded corpus, in order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = (
        p
        for p in root.rglob("*.py")
        if not STDLIB_EXCLUDED.intersection(p.relative_to(root).parts) and not p.name.startswith("_sysconfigdata")
    )
    found = {}
    for module in modules:
        for piece in definitions(module.read_text(encoding="utf-8", errors="replace")):
            if piece.strip():
                found[hashlib.sha256(piece.encode()).hexdigest()] = piece
    return sorted(found.items())


def definitions(source: str) -> Iterator[str]:
    """Cut a module before each top-level definition, with its decorators. The pieces joined are the module again."""
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
