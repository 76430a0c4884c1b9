"""Files written completely or not at all; hashes; locks; files appended line by line."""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regpt.base.errors import LockedError

HASH_PIECE = 1 << 22  # bytes read at a time


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASH_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no spaces), in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a whole file in UTF-8; as `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same directory, flush it to the disk, and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def flush_file(path: Path) -> None:
    """Wait until what another library wrote to `path` is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def staging_dir(path: Path) -> Path:
    """Where a directory is filled before it takes its name."""
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill: it takes its name `path` when the block ends well, and vanishes when it does not.

    The caller holds a lock, or knows otherwise that nobody else writes `path`.
    """
    folder = staging_dir(path)
    made = [parent for parent in path.parents if not parent.exists()]
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
        for file in folder.iterdir():
            if file.is_file() and not file.is_symlink():
                flush_file(file)
        flush_directory(folder)
        folder.rename(path)
        flush_directory(path.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:  # innermost first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def locked(path: Path, what: Path | None = None) -> Iterator[None]:
    """Hold the lock file `path`, or say who does. The system frees it when the process ends, however it ends.

    `what` is being written under the lock: the lock's folder, unless it is said. Raises LockedError.

    The holder's process number and machine are written to a second file, because Windows does not let others read
    a locked one.
    """
    from filelock import FileLock, Timeout

    holder = holder_file(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text(encoding="utf-8").strip() if holder.exists() else "unknown"
        raise LockedError(
            f"{what or path.parent} is being written by another process ({who})",
            "wait until it ends, or stop it",
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def holder_file(lock: Path) -> Path:
    return lock.with_name(lock.name + ".holder")


def holder_of(lock: Path) -> tuple[int, str] | None:
    """(process number, machine) of who holds a lock, or held it when it was killed; None where it was given back.

    Looks without locking, so that nobody who wants the lock is ever refused because of it.
    """
    try:
        written = holder_file(lock).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    found = re.fullmatch(r"process (\d+)(?: on (.*))?\s*", written)
    return (int(found[1]), found[2] or "") if found else None


def append_line(path: Path, line: str) -> None:
    """Append one line in one write, so that readers of a live file see whole lines or the last one cut."""
    with path.open("ab") as file:
        file.write(line.encode() + b"\n")


def end_last_line(path: Path) -> None:
    """Close a line that a killed process left open, so that the next record starts on its own."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
