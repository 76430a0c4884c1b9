"""What a user can do about an error of the operating system, by its number."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regpt.base.errors import DataError

NO_SPACE = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
DISK_FAILURES = frozenset({errno.EIO, getattr(errno, "ESTALE", errno.EIO), getattr(errno, "ENXIO", errno.EIO)})
NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM})


def reading_advice(error: OSError, otherwise: str) -> str:
    """Return what to do about an error of reading a file; `otherwise` where its content must be to blame."""
    if error.errno in NO_PERMISSION:
        return "change its permissions, or move it elsewhere"
    if error.errno == errno.ENOENT:
        return "it has been removed in the meantime: put it back, or run the same command again without it"
    if error.errno in DISK_FAILURES:
        return "the disk or the network file system fails: check it, then run the same command again"
    return otherwise


@contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing a file of a dataset into a DataError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            fix = "free some space or raise your quota"
        elif error.errno in DISK_FAILURES:
            fix = "check the disk or the network file system"
        else:
            fix = "check its permissions and its disk"
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error})",
            f"{fix}, then run the same command again: it continues; or set another data.path",
        ) from None
