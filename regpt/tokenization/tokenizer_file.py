"""A tokenizer in a file tokenizer.json, by the package `tokenizers`: trained here, or of a Hugging Face model."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError, UserError
from regpt.base.files import refuse_lfs_pointer, sha256_of_file
from regpt.base.packages import is_installed
from regpt.data.tokenizer import Tokenizer, without_surrogates

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
# What a tokenizer may consist of in a Hugging Face directory, and in the folder `tokenizer` of a dataset or a run.
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    CONFIG_FILE,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# Tokens that end a text, where tokenizer_config.json names none: GPT-2's and Llama's first.
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")
PROBE = "a"  # any text
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # a space, as SentencePiece writes it
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class FileTokenizer(Tokenizer):
    """A tokenizer of the package `tokenizers`. The ids of special tokens are those of files next to it."""

    name = TOKENIZER_FILE

    def __init__(self, path: Path, rows: int | None = None, config: Mapping[str, Any] | None = None) -> None:
        """Read the file. `rows` are those of a model, `config` the values of its config.json.

        Raises UserError if the package is not installed, DataError if the file cannot be read.
        """
        self.path, self.rows = path, rows
        self.library = read_file(path)
        self.library.encode_special_tokens = True  # a literal '<|endoftext|>' in a text is text
        self.digest = sha256_of_file(path)
        by_text = self.library.get_vocab(with_added_tokens=True)
        size = max(by_text.values(), default=-1) + 1
        self.vocabulary = size if rows is None else min(size, rows)
        added = self.library.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = {token.content: i for i, token in added.items() if token.special}
        begins, ends = named_tokens(path.parent, config or {}, self.library, self.vocabulary)
        if not ends and config is None:
            ends = [self.special_tokens[name] for name in END_NAMES if name in self.special_tokens][:1]
        self.end_of_text = next(iter(ends or begins), None)
        self.bos, self.eos = (begins or ends or [0])[0], frozenset(ends or begins or [0])
        self.prefix, self.encodes_alone = self.habits()

    def habits(self) -> tuple[tuple[int, ...], bool]:
        """Return what the tokenizer puts before each text, and whether a word has the same ids alone."""
        alone, whole, bare = (self.encode(text).tolist() for text in (f" {PROBE}", f"{PROBE} {PROBE}", PROBE))
        with_prefix = list(self.library.encode(PROBE, add_special_tokens=True).ids)
        places = (at for at in range(len(with_prefix)) if with_prefix[at : at + len(bare)] == bare)
        begin = next(places, 0) if bare else 0
        return tuple(with_prefix[:begin]), whole[len(bare) :] == alone

    def encode(self, text: str) -> NDArray[np.integer]:
        try:
            encoded = self.library.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):  # a lone surrogate
            encoded = self.library.encode(without_surrogates(text), add_special_tokens=False)
        ids = np.array(encoded.ids, dtype=np.int64)
        if self.rows is not None and len(ids) and int(ids.max()) >= self.rows:
            unknown = int(ids.max())
            raise UserError(
                f"the tokenizer encodes {self.library.id_to_token(unknown)!r} as token {unknown:,}, the model has"
                f" {self.rows:,}",
                "fetch model and tokenizer again, from one place",
            )
        return ids

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        return str(self.library.decode([int(i) for i in ids], skip_special_tokens=True))

    def bytes_of_tokens(self) -> NDArray[np.int64] | None:
        return self.sizes

    @cached_property
    def sizes(self) -> NDArray[np.int64] | None:
        """The bytes of text of each token, as the decoder joins them; None for a kind of decoder that is not known."""
        kinds = kinds_of(json.loads(self.library.to_str()).get("decoder"))
        if "ByteLevel" not in kinds and not kinds & {"Metaspace", "ByteFallback"}:
            return None
        sizes = np.zeros(self.vocabulary + 1, dtype=np.int64)
        for text, number in self.library.get_vocab(with_added_tokens=True).items():
            if number < self.vocabulary and text not in self.special_tokens:
                sizes[number] = len(text) if "ByteLevel" in kinds else text_bytes(text)
        return sizes

    def files(self) -> dict[str, bytes]:
        whole = self.path.name == TOKENIZER_FILE  # otherwise some of the files may belong to another tokenizer
        names = TOKENIZER_FILES if whole else (CONFIG_FILE, "chat_template.jinja")
        paths = [self.path.parent / name for name in names]
        found = {path.name: path.read_bytes() for path in paths if path.is_file()}
        return {CONFIG_FILE: self.config(), **found, TOKENIZER_FILE: self.path.read_bytes()}

    def config(self) -> bytes:
        """Return a tokenizer_config.json that names the tokens which begin and end a text."""
        names = {number: text for text, number in self.special_tokens.items()}
        tokens = {"bos_token": self.bos, "eos_token": min(self.eos)}
        about: dict[str, Any] = {key: names[number] for key, number in tokens.items() if number in names}
        about |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        return json.dumps(about, indent=2).encode()


def text_bytes(token: str) -> int:
    return 1 if BYTE.fullmatch(token) else len(token.replace(SPACE, " ").encode())


def kinds_of(part: Any) -> set[str]:
    """Return the types of a decoder and of those in it."""
    if not isinstance(part, dict):
        return set()
    return {str(part.get("type"))}.union(*map(kinds_of, part.get("decoders") or []))


def read_file(path: Path) -> Any:
    """Return the tokenizer of a file."""
    if not is_installed("tokenizers"):
        raise UserError(
            f"{path.parent}: has a tokenizer of its own, which needs the package tokenizers", "pip install 'regpt[hf]'"
        )
    import tokenizers

    refuse_lfs_pointer(path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exceptions
        raise DataError(f"{path}: is not a tokenizer ({error})", "fetch it again") from None


def named_tokens(folder: Path, config: Mapping[str, Any], library: Any, vocabulary: int) -> tuple[list[int], list[int]]:
    """Return the tokens that begin a text and those that end one, as tokenizer_config.json or else config.json says."""

    def ids(kind: str) -> list[int]:
        named = read_json(folder / CONFIG_FILE).get(f"{kind}_token")
        text = named.get("content") if isinstance(named, dict) else named
        given = library.token_to_id(text) if isinstance(text, str) else config.get(f"{kind}_token_id")
        given = given if isinstance(given, list) else [given]
        return [one for one in given if isinstance(one, int) and 0 <= one < vocabulary]

    return ids("bos"), ids("eos")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one if the file is missing or holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
