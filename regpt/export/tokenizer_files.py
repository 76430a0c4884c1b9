"""The files of a tokenizer in a Hugging Face directory: GPT-2's, or copies of those that a model came with."""

import json
import shutil
from pathlib import Path
from typing import Any

from regpt.base.files import write_bytes, write_json, write_text
from regpt.data import tokenizer
from regpt.tokenization.tokenizer_file import TOKENIZER_FILES


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
    write_json(directory / "tokenizer_config.json", about)
    write_text(directory / "tokenizer.json", json.dumps(gpt2_tokenizer_json(files), ensure_ascii=False))


def gpt2_tokenizer_json(files: dict[str, bytes]) -> dict[str, Any]:
    """Return GPT-2's tokenizer as the package `tokenizers` stores it, which needs not be installed."""
    lines = files["vocab.bpe"].decode("utf-8").split("\n")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": tokenizer.END_OF_TEXT, "content": tokenizer.END_OF_TEXT_NAME, **flags, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": byte_level,
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
            "ignore_merges": False,
            "vocab": json.loads(files["encoder.json"]),
            "merges": [line.split(" ") for line in lines[1:] if line],  # the first line is a version
        },
    }
