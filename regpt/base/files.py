"""Files written completely or not at all; hashes; locks; files appended line by line."""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError, LockedError

HASH_PIECE = 1 << 22  # bytes read at a time
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASH_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON (sorted keys, no spaces), in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def refuse_lfs_pointer(path: Path) -> None:
    """Raise DataError if a file holds only Git LFS's pointer to its content, as `git clone` leaves it without LFS."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:  # the reader of the file reports it
        return
    if is_pointer:
        raise DataError(
            f"{path}: a Git LFS pointer instead of the file", "run `git lfs install` and `git lfs pull` in that clone"
        )


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 atomically, as `write_bytes` does."""
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
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def flush_file(path: Path) -> None:
    """Flush a file that another library wrote to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Flush the names in a directory to the disk. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def staging_dir(path: Path) -> Path:
    """Return the temporary path of a directory that is not complete yet."""
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory; rename it to `path` if the block succeeds, delete it otherwise.

    The caller must be the only writer of `path`, for example by holding a lock.
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
    """Hold the lock file `path` during the block. The system releases it even if the process is killed.

    `what` names in the error what the lock protects; the default is its folder. Raises LockedError if it is held.

    The holder's process ID and machine are in a second file, because other processes on Windows cannot read a locked
    file.
    """
    from filelock import FileLock, Timeout

    holder = holder_file(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text(encoding="utf-8").partition("\n")[0] if holder.exists() else "unknown"
        raise LockedError(
            f"{what or path.parent} is being written by another process ({who})",
            "wait until it ends, or stop it",
        ) from None
    try:
        me = f"process {os.getpid()} on {platform.node()}\nstarted {process_start(os.getpid())}\n"
        holder.write_text(me, encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def holder_file(lock: Path) -> Path:
    return lock.with_name(lock.name + ".holder")


@dataclass(frozen=True)
class LockHolder:
    """The process that holds a lock, or held it when it was killed."""

    process: int  # its number
    machine: str  # empty: not recorded
    start: str = ""  # which process of that number, as `process_start` identifies it; empty: not recorded

    @property
    def is_alive(self) -> bool | None:
        """Whether the process exists; None for a process of another machine. No clock and no file date decides."""
        if self.machine not in ("", platform.node()):
            return None
        start = process_start(self.process)
        return bool(start) and self.start in ("", start)


def holder_of(lock: Path) -> LockHolder | None:
    """Return who holds a lock, or held it when it was killed; None where it was released.

    It does not test the lock, so that nobody who wants the lock is ever refused because of it.
    """
    try:
        written = holder_file(lock).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    found = re.fullmatch(r"process (\d+)(?: on ([^\n]*))?(?:\nstarted ([^\n]*))?\s*", written)
    return LockHolder(int(found[1]), found[2] or "", found[3] or "") if found else None


def process_start(number: int) -> str:
    """Identify a process among all that ever have its number; empty if it does not exist.

    On Linux by the boot and the clock ticks from there to its start (proc(5)), which no change of the clock moves.
    Elsewhere by the time of its start, which the system keeps as it was.
    """
    import psutil

    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        status = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = status.rpartition(")")[2].split()  # the name before may hold anything
        return "" if state in "ZXx" else f"{boot} {fields[18]}"
    except (OSError, IndexError, ValueError):
        pass
    try:
        process = psutil.Process(number)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except (psutil.Error, OSError, OverflowError):
        return ""


def append_line(path: Path, line: str) -> None:
    """Append one line in one write, so that a reader sees at most its last line incomplete."""
    with path.open("ab") as file:
        file.write(line.encode() + b"\n")


def end_last_line(path: Path) -> None:
    """End a line that a killed process left incomplete, so that the next record starts on a new line."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
