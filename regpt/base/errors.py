"""Errors for the user: the problem, the remedy, and an exit code."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DONE = 0
USAGE = 2
DATA = 3
CHECKPOINT = 4
NUMERICS = 5
LOCKED = 6
RANKS = 7
HUNG_UP = 129  # 128 + SIGHUP
INTERRUPTED = 130  # 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM


class UserError(Exception):
    """An error that a user can fix. Printed as one line without a traceback; the process exits with `code`."""

    code = USAGE

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem} — {self.fix}"


@dataclass(frozen=True)
class Problem:
    """Why a setting cannot be used. `text` names the setting, its value and, if possible, the remedy."""

    setting: str  # 'section.key', or the unknown name that was given
    text: str
    depends_on: tuple[str, ...] = ()  # other settings that cause the problem together with this one

    def __str__(self) -> str:
        return self.text


class RecipeError(UserError):
    """One or more settings cannot be used. Prints one line for each of `problems`."""

    def __init__(self, origin: str, problems: Sequence[Problem]) -> None:
        texts = "; ".join(problem.text for problem in problems)
        super().__init__(f"{origin}: {texts}", "change the recipe, or override it as section.key=value")
        self.origin = origin
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n       ".join(f"{self.origin}: {problem.text}" for problem in self.problems)


class DataError(UserError):
    code = DATA


class CheckpointError(UserError):
    code = CHECKPOINT


class NumericsError(UserError):
    code = NUMERICS


class LockedError(UserError):
    code = LOCKED


class RanksError(UserError):
    """Another rank does not answer or has exited."""

    code = RANKS


# The remedy for an error of the operating system, by its errno

NO_SPACE = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
DISK_FAILURES = frozenset({errno.EIO, getattr(errno, "ESTALE", errno.EIO), getattr(errno, "ENXIO", errno.EIO)})
NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM})


def reading_advice(error: OSError, otherwise: str) -> str:
    """Return the remedy for an error while reading a file; `otherwise` if the file's content is the cause."""
    if error.errno in NO_PERMISSION:
        return "change its permissions, or move it elsewhere"
    if error.errno == errno.ENOENT:
        return "it has been removed in the meantime: put it back, or run the same command again without it"
    if error.errno in DISK_FAILURES:
        return "the disk or the network file system fails: check it, then run the same command again"
    return otherwise


def is_quota_error(error: OSError) -> bool:
    """Return whether the user's quota is used up. The number of free bytes on the disk says nothing then."""
    return errno.errorcode.get(error.errno or 0) == "EDQUOT"


def writing_advice(error: OSError) -> str:
    """Return the remedy for an error while writing a file."""
    if is_quota_error(error):
        return "delete files that count in your quota, or raise it"
    if error.errno in NO_SPACE:
        return "free some space (bytes, or inodes: `df -i`)"
    if error.errno in DISK_FAILURES:
        return "check the disk or the network file system"
    if error.errno == errno.EMFILE:
        return "allow more open files, as with `ulimit -n 1024`"
    if error.errno == errno.EROFS:
        return "use a folder on another file system; this one is read-only"
    return "check the path and its permissions"


@contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Convert errors while writing a file of a dataset into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error})",
            f"{writing_advice(error)}, then run the same command again: it continues; or set another data.path",
        ) from None
