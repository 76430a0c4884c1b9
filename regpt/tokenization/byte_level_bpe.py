"""The tokenizer.json of a byte-level BPE tokenizer, as the package `tokenizers` stores it; written without it."""

from collections.abc import Mapping, Sequence
from typing import Any

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def byte_level_bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    special_tokens: Mapping[str, int],
    pattern: str = "",
) -> dict[str, Any]:
    """Return the contents of the file.

    Args:
        vocabulary: ids of the tokens, whose bytes are written as letters
        merges: pairs of tokens that become one, the first to be merged first
        special_tokens: ids by text
        pattern: regular expression that splits a text into pieces, of which a whole token needs no merges; empty:
            GPT-2's, and merges alone
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": not pattern}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": text, **FLAGS, "special": True} for text, number in special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]} if pattern else byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": bool(pattern),
            "vocab": dict(vocabulary),
            "merges": list(merges),
        },
    }
