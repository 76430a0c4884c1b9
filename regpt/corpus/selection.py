"""Which files of a folder are read, and in which order.

A local folder and the same folder on the hub give the same files. Next to tables, text files are only documentation.
"""

import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

from regpt.base.errors import DataError, reading_advice
from regpt.base.format import shown
from regpt.corpus.file_kinds import CODE_SUFFIXES, file_kind, unread_suffix

HELD_OUT_WORDS = {"test", "val", "valid", "validation", "dev", "eval"}


@dataclass(frozen=True)
class Selection:
    """The files of a corpus, as paths below its folder."""

    chosen: tuple[PurePath, ...]  # in the order in which they are read
    documentation: tuple[PurePath, ...]  # text files next to tables
    unread: tuple[PurePath, ...]  # of kinds that regpt cannot read

    @property
    def held_out(self) -> tuple[PurePath, ...]:
        """The chosen files whose names say that they are for testing, if others are for training."""
        named = tuple(path for path in self.chosen if is_held_out(path))
        return named if len(named) < len(self.chosen) else ()


def select_files(paths: Iterable[PurePath]) -> Selection:
    """Choose the tables, or the text files where there are no tables. The order depends on the names alone."""
    ordered = sorted(paths, key=lambda path: path.parts)
    kinds = {path: file_kind(path) for path in ordered}
    tables = tuple(path for path in ordered if kinds[path] in ("jsonl", "parquet"))
    texts = tuple(path for path in ordered if kinds[path] == "text")
    unread = tuple(path for path in ordered if kinds[path] is None and not is_hidden(path))
    return Selection(tables or texts, texts if tables else (), unread)


def is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def is_held_out(path: PurePath) -> bool:
    """Return whether a word of a path below the folder is 'test', 'validation' or the like; code does not count."""
    words = re.split(r"[^a-z]+", "/".join(path.parts).lower())
    return path.suffix.lower() not in CODE_SUFFIXES and not HELD_OUT_WORDS.isdisjoint(words)


def left_out_record(selection: Selection) -> dict[str, Any]:
    """Return the values for the manifest: how many files of each suffix were not read."""
    left_out = (*selection.documentation, *selection.unread)
    counts = {suffix: len(paths) for suffix, paths in by_suffix(left_out)}
    return {"files_left_out": counts} if counts else {}


def by_suffix(paths: Sequence[PurePath]) -> list[tuple[str, list[PurePath]]]:
    ordered = sorted(paths, key=unread_suffix)
    return [(suffix, list(group)) for suffix, group in groupby(ordered, key=unread_suffix)]


# Local folders


@dataclass
class Listing:
    """All files below a folder except hidden ones, and the links to folders that were read already."""

    files: list[Path] = field(default_factory=list)
    repeated_links: list[Path] = field(default_factory=list)


def list_folder(folder: Path, deadline: float = math.inf) -> Listing:
    """List the files below a folder. Links to folders are followed after everything else; each folder is read once.

    Raise DataError if a folder cannot be listed or a link to a readable file is broken: no text may be left out
    silently. Raise TimeoutError after `deadline`, a time of `time.monotonic`.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{shown(error.filename)}: cannot be listed ({error.strerror})",
            reading_advice(error, "check the folder"),
        )

    listing = Listing()
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        top = pending.pop(0)
        if identity(top) in seen:
            listing.repeated_links.append(top)
            continue
        for where, folders, names in os.walk(top, onerror=refuse):
            seen.add(identity(Path(where)))
            visible = sorted(name for name in folders if not name.startswith("."))
            real = [name for name in visible if not is_link(Path(where, name))]
            folders[:] = [name for name in real if identity(Path(where, name)) not in seen]
            pending += [Path(where, name) for name in visible if is_link(Path(where, name))]
            listing.files += files_of(Path(where), names)
            if time.monotonic() > deadline:
                raise TimeoutError
    return listing


def files_of(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    for path in (folder / name for name in names if not name.startswith(".")):
        if file_kind(path) and not path.exists():
            raise DataError(f"{shown(path)}: broken link", "repair or remove it")
        if path.is_file():
            yield path


def is_link(folder: Path) -> bool:
    return folder.is_symlink() or (hasattr(folder, "is_junction") and folder.is_junction())


def identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
