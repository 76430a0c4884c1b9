"""The file formats of token shards: plain .npy files, llm.c's .bin files, and nanoGPT's files without a header.

All hold little-endian tokens, uint16 or, for more than 65,536 different ones, uint32. The number of tokens is read from
the header and compared with the size of the file. A file without a header is read only on request, because then nothing
tells that it holds tokens.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

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
LLMC_UINT32 = (20240801, 7)  # magic and version of shards with uint32 tokens, which llm.c makes of Llama 3's

SUFFIXES: dict[str, ShardFormat] = {".npy": "npy", ".bin": "llm.c"}
SAMPLE_BYTES = 1 << 16  # at the start of a file without a header
GET_AGAIN = "download or prepare the file again"


def shard_format(path: Path) -> ShardFormat | None:
    """Return the format of a file by its suffix; None if it is not a shard."""
    return SUFFIXES.get(path.suffix)


def read_header(path: Path, form: ShardFormat, dtype: np.dtype[Any] = DTYPE) -> tuple[int, int]:
    """Return (tokens, header bytes) of a shard of tokens of this type.

    Raise DataError, naming the file, if header and size disagree, or if the tokens are of another type.
    """
    size = file_size(path)
    refuse_lfs_pointer(path)
    tokens, header_bytes = {"npy": npy_header, "llm.c": llmc_header, "raw": no_header}[form](path, size, dtype)
    promised = header_bytes + tokens * dtype.itemsize
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


def npy_header(path: Path, size: int, dtype: np.dtype[Any]) -> tuple[int, int]:
    try:
        with opened(path) as file, warnings.catch_warnings(action="ignore"):
            if not size or file.read(len(NPY_START)) != NPY_START:
                fix = without_header(path) if looks_like_tokens(path) else GET_AGAIN
                raise DataError(f"{path}: does not start with a header of NumPy", fix)
            file.seek(0)
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, found = read(file)
            header_bytes = file.tell()
    except DataError:
        raise
    except Exception as error:  # NumPy parses the header as Python, and a damaged one can raise any error
        raise DataError(f"{path}: truncated or not a token shard ({error})", GET_AGAIN) from None
    if found != dtype or len(shape) != 1:
        raise DataError(
            f"{path}: holds {found} in {len(shape)} dimensions; a shard is one-dimensional, {dtype.name}",
            f"save the tokens as numpy.{dtype.name}, or prepare the text with regpt",
        )
    return shape[0], header_bytes


def llmc_header(path: Path, size: int, dtype: np.dtype[Any]) -> tuple[int, int]:
    with opened(path) as file:
        header = np.frombuffer(file.read(LLMC_HEADER_BYTES), dtype=np.uint8)
    if header.nbytes < LLMC_HEADER_BYTES:
        fix = without_header(path) if looks_like_tokens(path) else GET_AGAIN
        raise DataError(f"{path}: truncated or not a token shard ({size:,} bytes)", fix)
    magic, version, tokens = header.view(LLMC_HEADER)[:3].tolist()
    expected = llmc_kind(dtype)
    if magic not in (LLMC_MAGIC, LLMC_UINT32[0]) and looks_like_tokens(path):
        raise DataError(f"{path}: does not start with llm.c's header", without_header(path))
    if version == LLMC_UINT32[1] and expected != LLMC_UINT32:
        problem = f"{path}: version {version} of llm.c's shards, which holds Llama's tokens"
        raise DataError(problem, "name a folder with GPT-2's tokens, or the tokenizer: --tokenizer FILE")
    if (magic, version) != expected or tokens < 0:
        raise DataError(
            f"{path}: header with magic {magic}, version {version}, {tokens:,} tokens; llm.c's {dtype.name} shards have"
            f" magic {expected[0]}, version {expected[1]}",
            GET_AGAIN,
        )
    return tokens, LLMC_HEADER_BYTES


def llmc_kind(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the magic number and the version of llm.c's shards with tokens of this type."""
    return (LLMC_MAGIC, LLMC_VERSION) if dtype == DTYPE else LLMC_UINT32


def llmc_header_bytes(tokens: int, dtype: np.dtype[Any]) -> bytes:
    """Return the header of a shard of llm.c."""
    header = np.zeros(LLMC_HEADER_BYTES // LLMC_HEADER.itemsize, dtype=LLMC_HEADER)
    header[:3] = *llmc_kind(dtype), tokens
    return header.tobytes()


def no_header(path: Path, size: int, dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return (tokens, 0). Raise DataError if the file cannot hold uint16 tokens."""
    if dtype != DTYPE:
        raise DataError(
            f"{path}: files of nanoGPT hold {DTYPE.name} tokens, the tokenizer needs {dtype.name}",
            "use shards in llm.c's format or .npy files",
        )
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


def npy_header_bytes(tokens: int, dtype: np.dtype[Any] = DTYPE) -> bytes:
    """Return the header of our own shards, as numpy.save writes it; its length does not depend on `tokens`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": (tokens,)})
    return header.getvalue()
