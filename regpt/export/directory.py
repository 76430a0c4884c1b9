"""Export a model as a Hugging Face directory: weights, configuration and the tokenizer's files."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from regpt.base.errors import DataError, UserError
from regpt.base.files import new_directory, write_json, write_text
from regpt.checkpoint.tensor_files import write_tensors
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.export.plain_model import PlainModel
from regpt.export.precision import Precision
from regpt.export.read_back import check_read_back
from regpt.export.tokenizer_files import write_tokenizer_files
from regpt.interop.form import ModelType, form_of
from regpt.interop.huggingface import OWN_PREFIX, hugging_face_config, to_hugging_face
from regpt.interop.pretrained import load_pretrained, read_weights
from regpt.model.gpt import GPT

MODELING_FILES = ("modeling_regpt.py", "plain_model.py")
# Endings of files, which a directory should not have.
FILE_ENDINGS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx", ".json", ".md", ".zip", ".tar", ".gz")
# Tensors with a row for each token of the vocabulary.
VOCABULARY_TENSORS = re.compile(
    r"(wte|embed_tokens|lm_head|token_embedding|model\.head)\.weight$|\.value_embeddings\.\d+$"
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a user chooses about the exported weights."""

    precision: Precision = Precision.FLOAT32
    keep_padding: bool = False  # keep the rows of the vocabulary that no token uses


def export(
    model: GPT,
    target: Path,
    *,
    vocabulary: Tokenizer = GPT2_TOKENIZER,
    source: Path | None = None,
    options: ExportOptions | None = None,
    readme: str = "",
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Write a directory that `AutoModelForCausalLM.from_pretrained` opens, with the model's tokenizer.

    Args:
        vocabulary: the model's tokenizer
        source: the folder with its files, or the Hugging Face directory that the model is from; None: GPT-2's tokenizer
        readme: text of README.md; empty: none is written
        note: is told where GPT-2's vocabulary is not available, so that the model is written without it

    Raises UserError if `target` exists or is named like a file, and if the model, read back from the disk, does not
    give the same logits. Nothing is left behind then.
    """
    options = options or ExportOptions()
    check_target(target)
    kept = rows_to_keep(model, vocabulary, source, options)
    recipe = replace(model.recipe, vocab_size=kept)
    config = hugging_face_config(recipe) | special_tokens(vocabulary, source) | dtype_entries(options.precision)
    with new_directory(target) as directory:
        weights = exported_weights(model, kept, options.precision)
        write_tensors(directory / "model.safetensors", weights, {}, {"format": "pt"})
        del weights
        write_json(directory / "config.json", config)
        write_json(directory / "generation_config.json", generation_config(vocabulary, source))
        try:
            write_tokenizer_files(directory, vocabulary, source, recipe.block_size)
        except DataError as error:
            note(f"no tokenizer was written: {error}")
        if readme:
            write_text(directory / "README.md", readme)
        if form_of(recipe).type is ModelType.OWN:
            write_modeling_files(directory)
        check_read_back(model, read_directory(directory), kept, options.precision, vocabulary.eos)


def write_modeling_files(directory: Path) -> None:
    """Write the classes of a model of its own, for transformers to run with trust_remote_code=True."""
    for module in MODELING_FILES:
        text = Path(__file__).with_name(module).read_text(encoding="utf-8")
        write_text(directory / module, text.replace("from regpt.export.", "from ."))


def read_directory(directory: Path) -> torch.nn.Module:
    """Return the model in an exported directory; one of its own as the modeling file computes it, not as regpt does."""
    config = json_file(directory / "config.json")
    if config["model_type"] != ModelType.OWN:
        return load_pretrained(directory)[0]
    model = PlainModel(SimpleNamespace(**config["regpt"]))
    weights = read_weights(directory)
    model.load_state_dict({name.removeprefix(OWN_PREFIX): tensor for name, tensor in weights.items()})
    return model.eval()


def check_target(target: Path) -> None:
    """Raise UserError for a directory that exists, or whose name is that of a file."""
    if target.exists():
        raise UserError(f"{target}: exists already", "choose a new directory")
    if target.suffix.lower() in FILE_ENDINGS:
        remedy = "for a GGUF file: --gguf FILE" if target.suffix.lower() == ".gguf" else "choose another name"
        raise UserError(f"{target}: is named like a file, but a directory is written", remedy)


def rows_to_keep(model: GPT, vocabulary: Tokenizer, source: Path | None, options: ExportOptions) -> int:
    """Return the rows of the vocabulary that tokens use; all rows of a model of a Hugging Face directory."""
    if options.keep_padding or (source is not None and (source / "config.json").is_file()):
        return model.recipe.vocab_size
    return min(
        model.recipe.vocab_size, max(vocabulary.vocabulary, *(token + 1 for token in (vocabulary.bos, *vocabulary.eos)))
    )


def exported_weights(model: GPT, rows: int, precision: Precision, on_cpu: bool = True) -> dict[str, Tensor]:
    """Return the weights under the names of OpenAI's GPT-2 or of Llama, without the rows of padding."""
    return {
        name.removeprefix("transformer."): tensor[:rows].to(precision.dtype).contiguous()
        if VOCABULARY_TENSORS.search(name)
        else tensor.to(precision.dtype)
        for name, tensor in to_hugging_face(model, on_cpu).items()
    }


def dtype_entries(precision: Precision) -> dict[str, str]:
    """Return the type of the weights under both keys: transformers before 4.56 reads the second one only."""
    return {"dtype": str(precision), "torch_dtype": str(precision)}


def special_tokens(vocabulary: Tokenizer, source: Path | None) -> dict[str, Any]:
    """Return the special tokens of config.json.

    A padding token is named only where the source names it: an embedding that knows it does not train that row.
    """
    ends = sorted(vocabulary.eos)
    tokens: dict[str, Any] = {"bos_token_id": vocabulary.bos, "eos_token_id": ends if len(ends) > 1 else ends[0]}
    theirs = json_file(source / "config.json") if source else {}
    return tokens | {key: theirs[key] for key in (*tokens, "pad_token_id") if key in theirs}


def generation_config(vocabulary: Tokenizer, source: Path | None) -> dict[str, Any]:
    """Return generation_config.json: the source's, or one in which the end of a text also pads a batch."""
    theirs = json_file(source / "generation_config.json") if source else {}
    return theirs or {"pad_token_id": min(vocabulary.eos), **special_tokens(vocabulary, source)}


def json_file(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is no such file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
