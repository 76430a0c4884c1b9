"""The numbers of tokens of tokenizers, from which `model.vocab_size` follows."""

import json
from pathlib import Path
from typing import Any

GPT2 = "gpt2"
SIZES = {GPT2: 50_257, "cl100k": 100_277, "o200k": 200_019}  # token ids, special tokens included
MULTIPLE = 64  # matrix products of GPUs are fastest for sizes that it divides
FILE = "tokenizer.json"


def tokenizer_size(choice: str) -> int | None:
    """Return the number of ids of the tokenizer that `data.tokenizer` = `choice` names; None if it cannot be read."""
    if choice in SIZES:
        return SIZES[choice]
    path = Path(choice).expanduser()
    try:
        values = json.loads((path / FILE if path.is_dir() else path).read_text(encoding="utf-8"))
        return max(ids_of(values)) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def ids_of(values: dict[str, Any]) -> list[int]:
    """Return the ids in a tokenizer.json. Raises KeyError or TypeError if it is not one."""
    vocabulary = values["model"]["vocab"]
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    return [*map(int, ids), *(int(token["id"]) for token in values.get("added_tokens") or [])]


def padded_size(tokens: int) -> int:
    """Return the number of rows of a token embedding: the next multiple of 64."""
    return -(-tokens // MULTIPLE) * MULTIPLE
