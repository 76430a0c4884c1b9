"""Where documents come from: text and source files, JSON lines, parquet, the hub, and the embedded corpus.

A corpus is an ordered list of parts, such as files; a part is cut into sections of a few megabytes, which a worker
process reads by itself. All three orders depend on nothing but names and contents, so the same corpus always gives the
same documents, however many workers read it.
"""

import hashlib
import os
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
from regpt.prepare.progress import PreparationProgress
from regpt.prepare.sections import NO_TEXT, READABLE, Chunk, FilePart, Texts, file_kind

LOOKED_AT = 50  # parts of a corpus, to estimate how much text it holds


class Part(Protocol):
    """A stretch of a corpus that can be read by itself."""

    @property
    def name(self) -> str:
        """Stands in messages."""

    @property
    def size(self) -> int:
        """Bytes, as they lie on the disk."""

    @property
    def likely_text_bytes(self) -> float:
        """How much text it may hold, for an estimate of the space that is needed."""

    def fingerprint(self) -> list[Any]:
        """What must not change between two attempts at preparing it."""

    def chunks(self) -> Iterator[Chunk]:
        """The part cut into pieces of work, always in the same way. Raises DataError where it cannot be read."""

    def check_readable(self, documents: int, refused: Counter[str]) -> None:
        """Called when all sections were read. Raises DataError where what came out says that it was the wrong file."""

    def cleanup(self) -> None:
        """Called when what came out is safe on the disk: the part is not needed any more."""


@dataclass(frozen=True)
class Corpus:
    """Parts in the order in which they are read, and a name for them that stands in the manifest and the report."""

    description: str
    parts: tuple[Part, ...]
    origin: dict[str, Any] = field(default_factory=dict)  # more that belongs in the manifest, such as a revision

    @property
    def size(self) -> int:
        """Bytes, as they lie on the disk."""
        return sum(part.size for part in self.parts)

    @property
    def likely_text_bytes(self) -> float:
        """As its first parts have it, and the others as those."""
        looked_at = self.parts[:LOOKED_AT]
        share = sum(part.likely_text_bytes for part in looked_at) / max(1, sum(part.size for part in looked_at))
        return sum(part.likely_text_bytes for part in looked_at) + share * sum(p.size for p in self.parts[LOOKED_AT:])

    def fingerprint(self) -> str:
        """Says whether two attempts have the same text before them."""
        return sha256_of_json([part.fingerprint() for part in self.parts])

    def bytes_to_fetch(self, first: int) -> int:
        """Of files that will lie on this disk at one time and are not there yet, for the parts from `first` on."""
        return 0

    def fetched(self, numbers: Iterable[int], progress: PreparationProgress) -> Iterator[Part]:
        """The parts of these numbers in turn, each readable from then on until it is released."""
        return (self.parts[number] for number in numbers)


def open_corpus(source: str, text_column: str) -> Corpus:
    """The corpus that `data.source` names: 'stdlib', a file, or a folder (all readable files below it, by name).

    What lies on the hub is opened by `hub.open_hub`. Raises DataError where there is nothing to read.
    """
    if source == "stdlib":
        return embedded_corpus()
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(readable_files(path), key=lambda p: p.relative_to(path).parts)
        if not files:
            raise DataError(
                f"data.source = '{path}': this folder holds nothing that regpt reads",
                f"put files there: {READABLE}",
            )
    elif not path.exists():
        raise DataError(
            f"data.source = '{source}': no such file or folder",
            f"name {READABLE}, a folder of them, 'stdlib', or 'hub:OWNER/NAME/FOLDER'",
        )
    elif not file_kind(path):
        raise DataError(f"data.source = '{path}': regpt does not read '{path.suffix}' files", f"use {READABLE}")
    else:
        files = [path]
    return Corpus(str(source), tuple(FilePart(file, text_column) for file in files))


def readable_files(folder: Path) -> Iterator[Path]:
    """All files below a folder that can be read by their names, but hidden ones; links to folders are not followed.

    Raises DataError where a folder cannot be looked into, or a link leads nowhere: text must not be missing in silence.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be looked into ({error.strerror})", "allow it, or move it away")

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(where, name) for name in names if not name.startswith(".")):
            if file_kind(path) and not path.exists():
                raise DataError(f"{path}: is a link that leads nowhere", "mend or remove it")
            if file_kind(path) and path.is_file():
                yield path


def documents(part: Part, refused: Counter[str]) -> Iterator[str]:
    """The documents of a part, in order; what is no text is left out and counted in `refused` by reason."""
    for section in part.chunks():
        yield from accepted(section.read(refused), refused)


def accepted(texts: Iterable[object], refused: Counter[str]) -> Iterator[str]:
    """What is text and holds more than white space; the rest is counted."""
    for text in texts:
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError:
                refused["not UTF-8"] += 1
                continue
        if not isinstance(text, str):
            refused[NO_TEXT] += 1
        elif not text or text.isspace():
            refused["empty"] += 1
        else:
            yield text


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
        yield Texts(self.size, list(self.texts()))

    def check_readable(self, documents: int, refused: Counter[str]) -> None:
        pass

    def cleanup(self) -> None:
        pass


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
