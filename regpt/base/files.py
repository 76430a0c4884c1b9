"""Files written completely or not at all; hashes; files appended line by line."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError

# Errors of calls that a file system does not have.
NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
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
            flush_descriptor(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None  # the user does not know the temporary name
        raise
    finally:
        temporary.unlink(missing_ok=True)
    flush_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def flush_descriptor(descriptor: int) -> None:
    """Flush an open file to the disk, where its file system has such a call."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def flush_file(path: Path) -> None:
    """Flush a file that another library wrote to the disk."""
    with path.open("rb+") as file:
        flush_descriptor(file.fileno())


def flush_directory(path: Path) -> None:
    """Flush the names in a directory to the disk. Windows and some shared folders have no such call."""
    if os.name == "nt":
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        flush_descriptor(handle)
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


@contextlib.contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Create a folder in `parent`; delete it afterwards, with all parents that had to be created."""
    created = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for empty in created:  # innermost first
            with contextlib.suppress(OSError):  # another program may use it or have removed it
                empty.rmdir()
