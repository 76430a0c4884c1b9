"""What a file system can do, tried before hours of work on a network share or in a cloud bucket."""

import shutil
from enum import Enum
from pathlib import Path

from regpt.base.errors import NO_SPACE, UserError, writing_advice
from regpt.base.files import append_line, write_bytes


class FileOperation(Enum):
    """What regpt needs of a file system that not every shared folder or cloud bucket can do."""

    REPLACE_FILE = "replace a file by another"
    APPEND = "append to a file"
    REWRITE = "write within a file"
    RENAME_FOLDER = "rename a folder"


def missing_operations(probe: Path) -> dict[FileOperation, OSError]:
    """Try every operation in the new folder `probe`, and remove it. Raise OSError if it cannot be made."""

    def replace(file: Path) -> None:
        write_bytes(file, b"other")

    def append(file: Path) -> None:
        append_line(file, "more")

    def rewrite(file: Path) -> None:
        with file.open("r+b") as opened:
            opened.seek(1)
            opened.write(b"x")

    def rename(file: Path) -> None:
        file.parent.rename(file.parent.with_name("renamed"))

    missing: dict[FileOperation, OSError] = {}
    shutil.rmtree(probe, ignore_errors=True)  # a killed process left it
    file = probe / "folder" / "file"
    file.parent.mkdir(parents=True)
    try:
        file.write_bytes(b"one\n")
        for operation, tried in zip(FileOperation, (replace, append, rewrite, rename), strict=True):
            try:
                tried(file)
            except OSError as error:
                if error.errno in NO_SPACE:
                    raise
                missing[operation] = error
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    return missing


def check_file_system(path: Path, setting: str) -> None:
    """Raise UserError if the file system of `path`, which may not exist yet, is full or lacks an operation.

    `setting` is where the user names another folder.
    """
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    try:
        missing = missing_operations(folder / f".{path.name}.probe")
    except OSError as error:
        problem = f"{folder}: cannot be written ({error.strerror})"
        raise UserError(problem, f"{writing_advice(error)}, or use another folder ({setting})") from None
    if missing:
        problems = ", ".join(f"{operation.value} ({error.strerror})" for operation, error in missing.items())
        raise UserError(
            f"{folder}: the file system cannot {problems}",
            f"use a folder on another disk ({setting}), and copy it later",
        )
