"""A tokenizer.json with a token for each byte, whose ids begin at any number."""

import json
from pathlib import Path
from typing import Any

from regpt.tokenization.byte_letters import letters_of_bytes

END_NAME = "<|endoftext|>"
WIDE = 70_000  # the first id of a tokenizer whose shards need uint32


def write_bytes_tokenizer(path: Path, first: int = 0, end_name: str = END_NAME) -> int:
    """Write the file and return the id of the token that ends a text, the last one."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {letter: first + byte for byte, letter in enumerate(letters_of_bytes())},
        "merges": [],
    }
    end = first + 256
    if end_name:
        model["vocab"] = {**model["vocab"], end_name: end}
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": end, "content": end_name, **flags, "special": True}] if end_name else [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": model,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    return end
