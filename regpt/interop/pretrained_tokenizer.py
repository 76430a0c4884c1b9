"""The tokenizer of a Hugging Face directory: GPT-2's, or the one in its tokenizer.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regpt.base.errors import UserError
from regpt.base.files import refuse_lfs_pointer, sha256_of_file
from regpt.data import tokenizer
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.machine.packages import is_installed
from regpt.recipe.architecture import ModelRecipe

PROBE = "a"  # any text


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

    Raises UserError if the tokenizer is missing, damaged or does not fit the model.
    """
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
    refuse_lfs_pointer(own)
    if not is_installed("tokenizers"):
        raise UserError(
            f"{directory}: has a tokenizer of its own, which needs the package tokenizers", "pip install 'regpt[hf]'"
        )
    import tokenizers

    try:
        found = tokenizers.Tokenizer.from_file(str(own))
    except Exception as error:  # the library raises plain Exceptions
        raise UserError(f"{own}: is not a tokenizer ({error})", "fetch it again") from None
    return make_tokenizer(found, recipe, special_tokens(directory, config, found, recipe.vocab_size))


def special_tokens(
    directory: Path, config: Mapping[str, Any], found: Any, vocabulary: int
) -> tuple[int, frozenset[int]]:
    """Return (the token that begins a text, those that end one), as tokenizer_config.json or else config.json says.

    Where only one of both is named, it does both. Where none is named, both are token 0.
    """

    def ids(kind: str) -> list[int]:
        named = read_json(directory / "tokenizer_config.json").get(f"{kind}_token")
        text = named.get("content") if isinstance(named, dict) else named
        given = found.token_to_id(text) if isinstance(text, str) else config.get(f"{kind}_token_id")
        given = given if isinstance(given, list) else [given]
        return [one for one in given if isinstance(one, int) and 0 <= one < vocabulary]

    begins, ends = ids("bos"), ids("eos")
    return (begins or ends or [0])[0], frozenset(ends or begins or [0])


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one if the file is missing or holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def make_tokenizer(found: Any, recipe: ModelRecipe, special: tuple[int, frozenset[int]]) -> Tokenizer:
    """Wrap a tokenizer of the package `tokenizers`; `special` are the tokens that begin and end a text."""
    found.encode_special_tokens = True  # a literal '<|endoftext|>' in a text is text

    def encode(text: str) -> list[int]:
        ids = list(found.encode(text, add_special_tokens=False).ids)
        if unknown := [token for token in ids if token >= recipe.vocab_size]:
            raise UserError(
                f"the tokenizer encodes {found.id_to_token(unknown[0])!r} as token {unknown[0]:,}, the model has"
                f" {recipe.vocab_size:,}",
                "fetch model and tokenizer again, from one place",
            )
        return ids

    def decode(ids: Sequence[int]) -> str:
        return str(found.decode(list(ids), skip_special_tokens=True))

    alone, whole = encode(f" {PROBE}"), encode(f"{PROBE} {PROBE}")
    with_prefix = list(found.encode(PROBE, add_special_tokens=True).ids)
    bare = encode(PROBE)
    begin = next((at for at in range(len(with_prefix)) if with_prefix[at : at + len(bare)] == bare), 0) if bare else 0
    bos, eos = special
    return Tokenizer(
        encode=encode,
        decode=decode,
        vocabulary=min(found.get_vocab_size(), recipe.vocab_size),
        bos=bos,
        eos=eos,
        prefix=tuple(with_prefix[:begin]),
        encodes_alone=whole[len(bare) :] == alone,
    )
