"""The tokenizer of a GGUF file: tokens, their types and merges, from a tokenizer.json of byte-level BPE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from regpt.base.errors import UserError


class TokenType(IntEnum):
    """llama.cpp's types of tokens."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


# How text is split before the merges, as llama.cpp names it (src/llama-vocab.cpp), by a part of the regular expression.
# "llama-bpe" splits as cl100k does, "gpt-4o" as o200k.
SPLITS = {r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}": "gpt-4o", r"\p{N}{1,3}": "llama-bpe"}
GPT2_SPLIT = "gpt-2"


@dataclass(frozen=True)
class GgufVocabulary:
    """All rows of the vocabulary; rows without a token are UNUSED."""

    split: str  # llama.cpp's name of the pre-tokenizer
    tokens: list[str]
    types: list[TokenType]
    merges: list[str]


def gguf_vocabulary(tokenizer_json: Mapping[str, Any], rows: int, name: str) -> GgufVocabulary:
    """Return the vocabulary of a tokenizer.json; `name` is for errors.

    Raises UserError for another kind of tokenizer than byte-level BPE, and for a way of splitting that llama.cpp does
    not have.
    """
    try:
        model, added = tokenizer_json["model"], tokenizer_json.get("added_tokens") or []
        if model["type"] != "BPE" or model.get("byte_fallback") or tokenizer_json.get("normalizer"):
            raise unusable(name, f"a {model['type']} tokenizer that is not byte-level BPE")
        ids: dict[str, int] = dict(model["vocab"])
        kinds = {one["id"]: TokenType.CONTROL if one["special"] else TokenType.USER_DEFINED for one in added}
        names = {number: token for token, number in ids.items()} | {one["id"]: one["content"] for one in added}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise unusable(name, "a tokenizer.json that is incomplete") from None
    if names and max(names) >= rows:
        raise UserError(f"{name}: has token {max(names):,}, the model has {rows:,} rows", "fetch both from one place")
    tokens = [names.get(number, f"[PAD{number}]") for number in range(rows)]
    types = [kinds.get(number, TokenType.NORMAL if number in names else TokenType.UNUSED) for number in range(rows)]
    return GgufVocabulary(split_of(tokenizer_json.get("pre_tokenizer") or {}, name), tokens, types, merges)


def split_of(pre_tokenizer: Mapping[str, Any], name: str) -> str:
    """Return llama.cpp's name of a pre-tokenizer. Raises UserError for one that it does not have."""
    steps: Sequence[Mapping[str, Any]] = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    if [step.get("type") for step in steps] == ["ByteLevel"] and steps[0].get("use_regex", True):
        if not steps[0].get("add_prefix_space"):
            return GPT2_SPLIT
    elif [step.get("type") for step in steps] == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        expression = (steps[0].get("pattern") or {}).get("Regex", "")
        for part, split in SPLITS.items():
            if part in expression:
                return split
    raise unusable(name, "a tokenizer that splits text in another way than GPT-2, cl100k and o200k")


def unusable(name: str, what: str) -> UserError:
    return UserError(f"{name}: {what} has no form in a GGUF file of regpt's", "export a directory, and convert it")
