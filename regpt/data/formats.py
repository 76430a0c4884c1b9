"""The file formats of token shards: plain .npy files, llm.c's .bin files, and nanoGPT's files without a header.

All hold little-endian uint16 tokens. The number of tokens is read from the header and compared with the size of the
file. A file without a header is read only on request, because then nothing tells that it holds tokens.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError, reading_advice
from regpt.base.files import refuse_lfs_pointer
from regpt.data import tokenizer

ShardFormat = Literal["npy", "llm.c", "raw"]
DTYPE = np.dtype("<u2")
NPY_START = b"\x93NUMPY"

# llm.c's and modded-nanogpt's header: 256 int32, the first three of which describe the content.
LLMC_HEADER = np.dtype("<i4")
LLMC_HEADER_BYTES = 256 * 4
LLMC_MAGIC = 20240520
LLMC_VERSION = 1

LLMC_LLAMA_VERSION = 7  # with another magic number too

SUFFIXES: dict[str, ShardFormat] = {".npy": "npy", ".bin": "llm.c"}
SAMPLE_BYTES = 1 << 16  # at the start of a file without a header
GET_AGAIN = "download or prepare the file again"


def shard_format(path: Path) -> ShardFormat | None:
    """Return the format of a file by its suffix; None if it is not a shard."""
    return SUFFIXES.get(path.suffix)


def read_header(path: Path, form: ShardFormat) -> tuple[int, int]:
    """Return (tokens, header bytes) of a shard. Raise DataError, naming the file, if header and size disagree."""
    size = file_size(path)
    refuse_lfs_pointer(path)
    tokens, header_bytes = {"npy": npy_header, "llm.c": llmc_header, "raw": no_header}[form](path, size)
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
        raise DataError(f"{path}: cannot be read ({error.strerror})", reading_advice(error, GET_AGAIN)) from None
    with file:
        yield file


def npy_header(path: Path, size: int) -> tuple[int, int]:
    try:
        with opened(path) as file, warnings.catch_warnings(action="ignore"):
            if not size or file.read(len(NPY_START)) != NPY_START:
                fix = without_header(path) if looks_like_tokens(path) else GET_AGAIN
                raise DataError(f"{path}: does not start with a header of NumPy", fix)
            file.seek(0)
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
        fix = without_header(path) if looks_like_tokens(path) else GET_AGAIN
        raise DataError(f"{path}: truncated or not a token shard ({size:,} bytes)", fix)
    magic, version, tokens = header.view(LLMC_HEADER)[:3].tolist()
    if magic != LLMC_MAGIC and looks_like_tokens(path):
        raise DataError(f"{path}: does not start with llm.c's header", without_header(path))
    if version == LLMC_LLAMA_VERSION:
        problem = f"{path}: version {version} of llm.c's shards, which holds Llama's tokens"
        raise DataError(problem, "name a folder with GPT-2's tokens")
    if (magic, version) != (LLMC_MAGIC, LLMC_VERSION) or tokens < 0:
        raise DataError(
            f"{path}: header with magic {magic}, version {version}, {tokens:,} tokens; llm.c's GPT-2 shards have"
            f" magic {LLMC_MAGIC}, version {LLMC_VERSION}",
            GET_AGAIN,
        )
    return tokens, LLMC_HEADER_BYTES


def no_header(path: Path, size: int) -> tuple[int, int]:
    """Return (tokens, 0). Raise DataError if the file cannot hold uint16 tokens of GPT-2."""
    if size % DTYPE.itemsize:
        raise DataError(f"{path}: {size:,} bytes, not a whole number of uint16 tokens", GET_AGAIN)
    sample = sample_tokens(path)
    if sample.size > 8 and not sample[1::2].any():
        raise DataError(f"{path}: holds tokens of four or more bytes", "save them as numpy.uint16")
    return size // DTYPE.itemsize, 0


def without_header(path: Path) -> str:
    """Return the remedy for a file that may hold tokens without a header."""
    return (
        "if it holds plain uint16 tokens of GPT-2 without a header, as nanoGPT's files and nanosets do:"
        f" regpt data import {path.parent} --form nanogpt"
    )


def looks_like_tokens(path: Path) -> bool:
    """Return whether a file starts as tokens of GPT-2 without a header may."""
    sample = sample_tokens(path)
    return bool(sample.size) and int(sample.max()) < tokenizer.VOCABULARY


def sample_tokens(path: Path) -> NDArray[np.uint16]:
    with opened(path) as file:
        content = file.read(SAMPLE_BYTES)
    return np.frombuffer(content[: len(content) // DTYPE.itemsize * DTYPE.itemsize], dtype=DTYPE)


def npy_header_bytes(tokens: int) -> bytes:
    """Return the header of our own shards, as numpy.save writes it; its length does not depend on `tokens`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": DTYPE.str, "fortran_order": False, "shape": (tokens,)})
    return header.getvalue()
