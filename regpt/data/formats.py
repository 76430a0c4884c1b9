"""The two file formats of token shards: plain .npy files, and llm.c's .bin files.

Both hold little-endian uint16 tokens after a header. The number of tokens is read from the header and compared with the
size of the file; it is never guessed from the size alone.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np

from regpt.base.errors import DataError

ShardFormat = Literal["npy", "llm.c"]
DTYPE = np.dtype("<u2")

# llm.c's and modded-nanogpt's header: 256 int32, the first three of which describe the content.
LLMC_HEADER = np.dtype("<i4")
LLMC_HEADER_BYTES = 256 * 4
LLMC_MAGIC = 20240520
LLMC_VERSION = 1

GET_AGAIN = "download or prepare the file again"


def shard_format(path: Path) -> ShardFormat | None:
    """Return the format of a file by its suffix; None if it is not a shard."""
    return {".npy": "npy", ".bin": "llm.c"}.get(path.suffix)  # type: ignore[return-value]


def read_header(path: Path, form: ShardFormat) -> tuple[int, int]:
    """Return (tokens, header bytes) of a shard. Raise DataError, naming the file, if header and size disagree."""
    size = file_size(path)
    tokens, header_bytes = (npy_header if form == "npy" else llmc_header)(path, size)
    promised = header_bytes + tokens * DTYPE.itemsize
    if size != promised:
        raise DataError(
            f"{path}: truncated or not a token shard ({size:,} bytes; {tokens:,} tokens need {promised:,})",
            GET_AGAIN,
        )
    return tokens, header_bytes


def file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        raise DataError(f"{path}: missing", GET_AGAIN) from None


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check its permissions") from None
    with file:
        yield file


def npy_header(path: Path, size: int) -> tuple[int, int]:
    try:
        with opened(path) as file, warnings.catch_warnings(action="ignore"):
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = read(file)
            header_bytes = file.tell()
    except DataError:
        raise
    except Exception as error:  # NumPy parses the header as Python, and a damaged one can raise any error
        raise DataError(f"{path}: truncated or not a token shard ({error})", GET_AGAIN) from None
    if dtype != DTYPE or len(shape) != 1:
        raise DataError(
            f"{path}: holds {dtype} in {len(shape)} dimensions; a shard is one-dimensional, {DTYPE.name}",
            "save the tokens as numpy.uint16, or prepare the text with regpt",
        )
    return shape[0], header_bytes


def llmc_header(path: Path, size: int) -> tuple[int, int]:
    with opened(path) as file:
        header = np.frombuffer(file.read(LLMC_HEADER_BYTES), dtype=np.uint8)
    if header.nbytes < LLMC_HEADER_BYTES:
        raise DataError(f"{path}: truncated or not a token shard ({size:,} bytes)", GET_AGAIN)
    magic, version, tokens = header.view(LLMC_HEADER)[:3].tolist()
    if (magic, version) != (LLMC_MAGIC, LLMC_VERSION) or tokens < 0:
        raise DataError(
            f"{path}: header with magic {magic}, version {version}, {tokens:,} tokens; llm.c's GPT-2 shards have"
            f" magic {LLMC_MAGIC}, version {LLMC_VERSION}",
            "name a folder of GPT-2 token shards (llm.c's version 7 holds Llama's tokens)",
        )
    return tokens, LLMC_HEADER_BYTES


def npy_header_bytes(tokens: int) -> bytes:
    """Return the header of our own shards, as numpy.save writes it; its length does not depend on `tokens`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": DTYPE.str, "fortran_order": False, "shape": (tokens,)})
    return header.getvalue()
