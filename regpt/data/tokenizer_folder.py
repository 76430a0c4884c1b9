"""The folder `tokenizer` of a dataset and of a run whose tokenizer is not GPT-2's: it holds the tokenizer's files."""

from pathlib import Path

from regpt.base.files import write_bytes
from regpt.data.tokenizer import Tokenizer

FOLDER = "tokenizer"


def write_tokenizer(found: Tokenizer, directory: Path) -> None:
    """Write the files of a tokenizer into the folder `tokenizer` of a dataset or a run; nothing for GPT-2's."""
    files = found.files()
    if not files:
        return
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the folder `tokenizer` of a dataset into a run, if it has one."""
    if not (source / FOLDER).is_dir():
        return
    (target / FOLDER).mkdir(parents=True, exist_ok=True)
    for path in sorted((source / FOLDER).iterdir()):
        if path.is_file():
            write_bytes(target / FOLDER / path.name, path.read_bytes())
