"""File systems that lack what a local disk can do: network shares, cloud buckets, full disks."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Play a file system without flock, as some NFS, Lustre and FUSE mounts are."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def without_folder_flush(monkeypatch: pytest.MonkeyPatch, number: int = errno.EINVAL) -> None:
    """Play a file system that cannot flush folders, as CIFS and some FUSE mounts are."""
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)


def without_folder_rename(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSYS) -> None:
    """Play a bucket that cannot rename folders, as gcsfuse mounts are."""
    rename = os.rename

    def only_files(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            raise OSError(number, os.strerror(number))
        rename(source, target)

    monkeypatch.setattr(os, "rename", only_files)
