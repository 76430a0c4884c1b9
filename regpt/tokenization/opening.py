"""Open a tokenizer: the one that `data.tokenizer` names, or the one that a dataset or a run keeps with itself.

A dataset and a run whose tokenizer is not GPT-2's hold its files in their folder `tokenizer`.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError, UserError
from regpt.data import tokenizer
from regpt.data.shard_writer import FOLDER
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.tokenization.chat_tokens import ChatTokenizer, read_chat_file
from regpt.tokenization.openai import DIGESTS, OpenAiTokenizer
from regpt.tokenization.tokenizer_file import TOKENIZER_FILE, FileTokenizer


def open_tokenizer(choice: str) -> Tokenizer:
    """Return the tokenizer that `data.tokenizer` = `choice` names: gpt2, cl100k, o200k, or a file or folder.

    Raises UserError if there is no such tokenizer, DataError if its file is damaged.
    """
    if choice == tokenizer.NAME:
        return GPT2_TOKENIZER
    if choice in DIGESTS:
        return openai_tokenizer(choice, None)
    path = Path(choice).expanduser()
    if path.is_dir():
        return open_folder(path)
    if path.is_file():
        return file_tokenizer(path)
    raise UserError(
        f"data.tokenizer = '{choice}' is neither {tokenizer.NAME}, {', '.join(DIGESTS)} nor a file or folder",
        f"name a {TOKENIZER_FILE}, or make one: regpt tokenizer train TEXT --into {FOLDER}.json",
    )


def open_folder(folder: Path) -> Tokenizer:
    """Return the tokenizer whose files lie in a folder. Raises DataError if it has none."""
    chat = read_chat_file(folder)
    if chat is None:
        return open_base(folder)
    base, ids = chat
    return ChatTokenizer(GPT2_TOKENIZER if base == tokenizer.NAME else open_base(folder), ids)


def open_base(folder: Path) -> Tokenizer:
    """Return the tokenizer in a folder without the tokens around messages. Raises DataError if it has none."""
    for name in DIGESTS:
        if (folder / f"{name}.tiktoken").is_file():
            return openai_tokenizer(name, folder)
    if not (folder / TOKENIZER_FILE).is_file():
        raise DataError(f"{folder}: has no {TOKENIZER_FILE}", "name the folder of a tokenizer, or the file itself")
    return file_tokenizer(folder / TOKENIZER_FILE)


def file_tokenizer(path: Path) -> Tokenizer:
    status = path.stat()
    return opened_file(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def opened_file(path: Path, size: int, changed_at: int) -> Tokenizer:
    """Return the tokenizer of a file, which is read again only if it has changed."""
    return FileTokenizer(path)


@lru_cache(maxsize=4)
def openai_tokenizer(name: str, folder: Path | None) -> Tokenizer:
    return OpenAiTokenizer(name, folder)


def tokenizer_in(directory: Path, record: dict[str, Any] | None = None) -> Tokenizer:
    """Return the tokenizer of a dataset or a run: GPT-2's, or the one in its folder `tokenizer`.

    `record` is that of the dataset's manifest, by default GPT-2's where there is no such folder. Raises DataError if
    the files are missing or not those of the record.
    """
    folder = directory / FOLDER
    name = record["name"] if record else tokenizer.NAME
    if not folder.is_dir():
        if name == tokenizer.NAME:
            return GPT2_TOKENIZER
        if name in DIGESTS:
            return openai_tokenizer(name, None)
        raise DataError(f"{folder}: missing", "copy the folder of the tokenizer there")
    found = open_folder(folder)
    if record and found.record != record:
        raise DataError(f"{folder}: holds another tokenizer than the dataset was made with", "copy its files there")
    return found
