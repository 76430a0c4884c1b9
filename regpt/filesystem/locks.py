"""Locks: one process at a time writes a run or a dataset, on any machine that shares the disk."""

import contextlib
import os
import platform
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import LockedError
from regpt.base.files import NOT_SUPPORTED

if TYPE_CHECKING:
    from filelock import BaseFileLock


@dataclass(frozen=True)
class HeldLock:
    """A lock that this process holds."""

    marker: Path | None  # the file that is the lock where the file system has no locks, which a crash leaves behind

    @property
    def note(self) -> str:
        """What the user should know; empty for a lock of the system, which frees it when the process ends."""
        if self.marker is None:
            return ""
        return (
            f"the file system has no file locks: {self.marker} is the lock; if this machine fails, delete that file"
            " before another machine continues"
        )


@contextlib.contextmanager
def locked(path: Path, what: Path | None = None) -> Iterator[HeldLock]:
    """Hold the lock file `path` during the block. The system releases it even if the process is killed.

    Where the file system has no locks, a second file is the lock. One that a killed process of this machine left is
    removed; for one of another machine the error names the command that does. `what` names in the error what the lock
    protects; the default is its folder. Raises LockedError if it is held.

    The holder's process ID and machine are in another file, because other processes on Windows cannot read a locked
    file.
    """
    holder, marker = holder_file(path), path.with_name(path.name + ".marker")
    lock, has_locks = acquired(path, marker)
    if lock is None:
        who = holder.read_text(encoding="utf-8").partition("\n")[0] if holder.exists() else "unknown"
        raise LockedError(
            f"{what or path.parent} is being written by another process ({who})",
            "wait until it ends, or stop it" + ("" if has_locks else f"; if it is gone: rm {shlex.quote(str(marker))}"),
        )
    try:
        me = f"process {os.getpid()} on {platform.node()}\nstarted {process_start(os.getpid())}\n"
        holder.write_text(me, encoding="utf-8")
        yield HeldLock(None if has_locks else marker)
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def acquired(path: Path, marker: Path) -> "tuple[BaseFileLock | None, bool]":
    """Return the lock, None if another process holds it, and whether the file system has locks."""
    from filelock import FileLock, SoftFileLock, Timeout

    for lock, has_locks in ((FileLock(path, fallback_to_soft=False), True), (SoftFileLock(marker), False)):
        try:
            lock.acquire(timeout=0)
            return lock, has_locks
        except Timeout:
            return None, has_locks
        except OSError as error:
            if not has_locks or error.errno not in NOT_SUPPORTED:
                raise
    raise AssertionError


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
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        status = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = status.rpartition(")")[2].split()  # the name before may hold anything
        return "" if state in "ZXx" else f"{boot} {fields[18]}"
    except (OSError, IndexError, ValueError):
        pass
    import psutil

    try:
        process = psutil.Process(number)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except (psutil.Error, OSError, OverflowError):
        return ""
