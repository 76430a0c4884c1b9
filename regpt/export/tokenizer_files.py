"""The files of a tokenizer in a Hugging Face directory: GPT-2's, or copies of those that a model came with."""

import json
import shutil
from pathlib import Path
from typing import Any

from regpt.base.files import write_bytes, write_json, write_text
from regpt.data import tokenizer
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.tokenization.byte_level_bpe import byte_level_bpe
from regpt.tokenization.chat_tokens import CHAT_FILE, TEMPLATE_FILE, TURN_ENDS, ChatTokenizer
from regpt.tokenization.tokenizer_file import CONFIG_FILE, TOKENIZER_FILES

GENERAL_CLASS = "PreTrainedTokenizerFast"
SPECIAL = {**dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False), "special": True}


def write_tokenizer_files(directory: Path, vocabulary: Tokenizer, source: Path | None, block_size: int) -> None:
    """Write the files of a model's tokenizer: copies of those in `source`, or GPT-2's; then what a chat needs.

    Raises DataError if GPT-2's vocabulary is not available.
    """
    chat = vocabulary if isinstance(vocabulary, ChatTokenizer) else None
    if source is None or (chat is not None and chat.base is GPT2_TOKENIZER):
        write_gpt2_tokenizer(directory, block_size)
    else:
        copy_tokenizer(source, directory)
        complete_config(directory / CONFIG_FILE, block_size)
    if chat is not None:
        add_chat_tokens(directory, chat)


def add_chat_tokens(directory: Path, vocabulary: ChatTokenizer) -> None:
    """Add the two tokens around messages and the chat template to a tokenizer's files."""
    path, config_path = directory / "tokenizer.json", directory / CONFIG_FILE
    library = with_added_tokens(json.loads(path.read_text(encoding="utf-8")), vocabulary)
    write_text(path, json.dumps(library, ensure_ascii=False))
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    every = {str(token["id"]): {"content": token["content"], **SPECIAL} for token in library["added_tokens"]}
    write_json(config_path, {**config, "eos_token": TURN_ENDS, "added_tokens_decoder": every})
    for name in (CHAT_FILE, TEMPLATE_FILE):
        write_bytes(directory / name, vocabulary.files()[name])


def with_added_tokens(library: dict[str, Any], chat: ChatTokenizer | None) -> dict[str, Any]:
    """Return the values of a tokenizer.json with the tokens around messages, if there is a chat.

    The package `tokenizers` gives an added token the next free number, whatever its id, unless the vocabulary has it.
    cl100k has gaps between its ids, so there they must be in both.
    """
    known = {token["content"] for token in library["added_tokens"]}
    ids = chat.chat_ids if chat is not None else {}
    new = [{"id": number, "content": name, **SPECIAL} for name, number in ids.items() if name not in known]
    vocabulary = library["model"].get("vocab")
    if isinstance(vocabulary, dict):
        places = enumerate(new, len({*vocabulary, *known}))
        unlike = {token["content"]: token["id"] for place, token in places if token["id"] != place}
        vocabulary = {**vocabulary, **unlike}
    model = {**library["model"], "vocab": vocabulary}
    return {**library, "model": model, "added_tokens": [*library["added_tokens"], *new]}


def complete_config(path: Path, block_size: int) -> None:
    """Add what the general class of transformers leaves open: padding, the context, and the inputs of the model.

    Without the inputs, transformers 4 makes token types too, which a model's `generate` refuses.
    """
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.get("tokenizer_class") != GENERAL_CLASS:
        return
    ours = {"model_max_length": block_size, "model_input_names": ["input_ids", "attention_mask"]}
    if "eos_token" in config:
        ours["pad_token"] = config["eos_token"]
    write_json(path, {**ours, **config})


def copy_tokenizer(source: Path, directory: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def write_gpt2_tokenizer(directory: Path, block_size: int) -> None:
    """Write GPT-2's tokenizer in both forms: vocab.json with merges.txt, and tokenizer.json, which other programs read.

    Raises DataError if the vocabulary is not available.
    """
    files = tokenizer.vocabulary_files()
    write_bytes(directory / "vocab.json", files["encoder.json"])
    write_bytes(directory / "merges.txt", files["vocab.bpe"])
    end = tokenizer.END_OF_TEXT_NAME
    about = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": block_size,
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,  # batches of texts need one; a mask tells padding from the end of a text
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,  # transformers 4 would remove spaces before punctuation
    }
    write_json(directory / CONFIG_FILE, about)
    write_text(directory / "tokenizer.json", json.dumps(gpt2_tokenizer_json(files), ensure_ascii=False))


def gpt2_tokenizer_json(files: dict[str, bytes]) -> dict[str, Any]:
    """Return GPT-2's tokenizer as the package `tokenizers` stores it, which needs not be installed."""
    lines = files["vocab.bpe"].decode("utf-8").split("\n")
    merges = [line.split(" ") for line in lines[1:] if line]  # the first line is a version
    end = {tokenizer.END_OF_TEXT_NAME: tokenizer.END_OF_TEXT}
    return byte_level_bpe(json.loads(files["encoder.json"]), merges, end)
