"""The tokenizer of a Hugging Face directory: GPT-2's, or the one in its tokenizer.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regpt.base.errors import UserError
from regpt.base.files import sha256_of_file
from regpt.data import tokenizer
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.recipe.architecture import ModelRecipe
from regpt.tokenization.chat_tokens import ChatTokenizer, read_chat_file
from regpt.tokenization.tokenizer_file import FileTokenizer


def has_gpt2_vocabulary(path: Path) -> bool:
    """Return whether a vocab.json or tokenizer.json holds GPT-2's tokens with GPT-2's ids."""
    package = tokenizer.package_folder()
    if not path.is_file() or package is None:
        return path.is_file() and sha256_of_file(path) == tokenizer.FILES["encoder.json"]
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        theirs = theirs["model"]["vocab"] if path.name == "tokenizer.json" else theirs
        return bool(theirs == json.loads((package / "encoder.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_tokenizer(directory: Path, recipe: ModelRecipe, config: Mapping[str, Any]) -> Tokenizer:
    """Return GPT-2's tokenizer, or the one in tokenizer.json, which the package `tokenizers` reads.

    With regpt's chat tokens where regpt exported them. Raises UserError if the tokenizer is missing, damaged or does
    not fit the model.
    """
    base, chat = load_base(directory, recipe, config), read_chat_file(directory)
    return base if chat is None else ChatTokenizer(base, chat[1])


def load_base(directory: Path, recipe: ModelRecipe, config: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of a directory without chat tokens of regpt's."""
    vocabulary, own = directory / "vocab.json", directory / "tokenizer.json"
    if (
        has_gpt2_vocabulary(vocabulary)
        or has_gpt2_vocabulary(own)
        or not (own.is_file() or (directory / "tokenizer.model").is_file() or vocabulary.is_file())
    ):
        if recipe.vocab_size < tokenizer.VOCABULARY:
            raise UserError(
                f"{directory}: has {recipe.vocab_size:,} tokens and no tokenizer.json", "fetch its tokenizer too"
            )
        return GPT2_TOKENIZER
    if not own.is_file():
        raise UserError(f"{directory}: its tokenizer is not in tokenizer.json", "fetch or make that file")
    return FileTokenizer(own, recipe.vocab_size, config)
