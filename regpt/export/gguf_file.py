"""Export a model as a GGUF file, which llama.cpp, Ollama and LM Studio open.

The form: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Names and orders are those of its converter.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regpt.base.errors import UserError
from regpt.base.files import flush_file
from regpt.base.packages import is_installed
from regpt.data import tokenizer
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.export.directory import ExportOptions, exported_weights, rows_to_keep
from regpt.export.gguf_vocabulary import GgufVocabulary, gguf_vocabulary
from regpt.export.precision import Precision
from regpt.export.read_back import check_read_back
from regpt.export.tokenizer_files import gpt2_tokenizer_json, with_added_tokens
from regpt.interop.form import ModelType, form_of
from regpt.interop.huggingface import from_hugging_face
from regpt.model.gpt import GPT
from regpt.model.rotary import llama3_frequencies
from regpt.recipe.architecture import ModelRecipe
from regpt.tokenization.chat_tokens import CHAT_TEMPLATE, ChatTokenizer

QUERIES = ("q_proj.weight", "q_proj.bias")
KEYS = ("k_proj.weight", "k_proj.bias")
WAVELENGTHS = "rope_freqs.weight"
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # Conv1D keeps (in, out)


def export_gguf(
    model: GPT,
    path: Path,
    *,
    name: str,
    vocabulary: Tokenizer = GPT2_TOKENIZER,
    source: Path | None = None,
    options: ExportOptions | None = None,
) -> None:
    """Write a GGUF file with the model and its tokenizer.

    Args:
        name: of the model, for programs that show it
        vocabulary, source: as of `directory.export`

    Raises UserError if the file exists, for a model or tokenizer that llama.cpp does not have, and if the model, read
    back from the disk, does not give the same logits. Nothing is left behind then.
    """
    if path.exists():
        raise UserError(f"{path}: exists already", "choose a new name")
    if not is_installed("gguf"):
        raise UserError("a GGUF file needs the package gguf", "pip install 'regpt[gguf]'")
    options = options or ExportOptions()
    check_form(model.recipe)
    rows = rows_to_keep(model, vocabulary, source, options)
    recipe = replace(model.recipe, vocab_size=rows)
    tokens = gguf_vocabulary(tokenizer_json(source, vocabulary), rows, str(source or "GPT-2's tokenizer"))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(temporary, model, recipe, options.precision, tokens, vocabulary, name)
        flush_file(temporary)
        check_read_back(model, read_gguf(temporary, recipe), rows, options.precision, vocabulary.eos)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_form(recipe: ModelRecipe) -> None:
    """Raise UserError for a model that llama.cpp does not have."""
    form = form_of(recipe)
    if form.type is ModelType.OWN:
        names = ", ".join(f"model.{name} = {getattr(recipe, name)!r}" for name in form.unlike)
        raise UserError(f"llama.cpp has no architecture with {names}", "export a directory, which transformers opens")


def architecture_of(recipe: ModelRecipe) -> Any:
    """Return the package's constant for the architecture."""
    import gguf

    return gguf.MODEL_ARCH[form_of(recipe).type.name]


def tokenizer_json(source: Path | None, vocabulary: Tokenizer = GPT2_TOKENIZER) -> dict[str, Any]:
    """Return the tokenizer.json of a folder, or GPT-2's; with the tokens around messages of a chat."""
    chat = vocabulary if isinstance(vocabulary, ChatTokenizer) else None
    if source is None or (chat is not None and chat.base is GPT2_TOKENIZER):
        return with_added_tokens(gpt2_tokenizer_json(tokenizer.vocabulary_files()), chat)
    try:
        return with_added_tokens(json.loads((source / "tokenizer.json").read_text(encoding="utf-8")), chat)
    except (OSError, ValueError):
        raise UserError(f"{source / 'tokenizer.json'}: cannot be read", "fetch it again") from None


def write(
    path: Path,
    model: GPT,
    recipe: ModelRecipe,
    precision: Precision,
    tokens: GgufVocabulary,
    vocabulary: Tokenizer,
    name: str,
) -> None:
    """Write all of the file. Vectors and the table of positions stay float32, as llama.cpp wants them."""
    import gguf

    architecture = architecture_of(recipe)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    weights = exported_weights(model, recipe.vocab_size, Precision.FLOAT32)
    add_shape(writer, recipe)
    add_tokenizer(writer, tokens, vocabulary)
    writer.add_type("model")
    writer.add_name(name)
    types = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
    writer.add_file_type(gguf.LlamaFileType[types[precision]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    names = gguf.get_tensor_name_map(architecture, recipe.n_layer)
    rounded = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[precision]
    for theirs, tensor in to_llama_cpp(weights, recipe).items():
        found = theirs if theirs == WAVELENGTHS else names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert found is not None, theirs
        is_rounded = tensor.ndim > 1 and not theirs.endswith("wpe.weight")
        storage = gguf.GGMLQuantizationType[rounded if is_rounded else "F32"]
        writer.add_tensor(found, gguf.quantize(tensor.numpy(), storage), raw_dtype=storage)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer: Any, recipe: ModelRecipe) -> None:
    writer.add_block_count(recipe.n_layer)
    writer.add_context_length(recipe.block_size)
    writer.add_embedding_length(recipe.n_embd)
    writer.add_feed_forward_length(recipe.mlp_hidden)
    writer.add_head_count(recipe.n_head)
    writer.add_vocab_size(recipe.vocab_size)
    if form_of(recipe).type is ModelType.GPT2:
        writer.add_layer_norm_eps(recipe.norm_eps)
        return
    writer.add_head_count_kv(recipe.kv_heads)
    writer.add_layer_norm_rms_eps(recipe.norm_eps)
    writer.add_rope_freq_base(recipe.rope_theta)
    writer.add_rope_dimension_count(recipe.head_width)
    writer.add_key_length(recipe.head_width)
    writer.add_value_length(recipe.head_width)


def add_tokenizer(writer: Any, tokens: GgufVocabulary, vocabulary: Tokenizer) -> None:
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name of byte-level BPE
    writer.add_tokenizer_pre(tokens.split)
    writer.add_token_list(tokens.tokens)
    writer.add_token_types([int(kind) for kind in tokens.types])
    writer.add_token_merges(tokens.merges)
    writer.add_bos_token_id(vocabulary.bos)
    if isinstance(vocabulary, ChatTokenizer):
        writer.add_chat_template(CHAT_TEMPLATE)
        writer.add_eos_token_id(vocabulary.turn_ends)
    else:
        writer.add_eos_token_id(min(vocabulary.eos))
    writer.add_pad_token_id(min(vocabulary.eos))
    writer.add_add_bos_token(vocabulary.prefix[:1] == (vocabulary.bos,))


def to_llama_cpp(weights: dict[str, Tensor], recipe: ModelRecipe) -> dict[str, Tensor]:
    """Return the weights in llama.cpp's order: matrices as (out, in), and Llama's heads rotated in pairs (2i, 2i + 1).

    With Llama 3's scaled wavelengths, also the factors of the wavelengths.
    """
    found = {}
    for name, tensor in weights.items():
        if name.endswith(TRANSPOSED):
            tensor = tensor.t()
        if rotates_in_pairs(name, recipe):
            tensor = tensor.unflatten(0, (-1, 2, recipe.head_width // 2)).transpose(1, 2).flatten(0, 2)
        found[name] = tensor.contiguous()
    if recipe.rope_scaling == "llama3":
        D = recipe.head_width
        frequencies = recipe.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)
        found[WAVELENGTHS] = frequencies / llama3_frequencies(frequencies, recipe)
    return found


def rotates_in_pairs(name: str, recipe: ModelRecipe) -> bool:
    """Return whether llama.cpp rotates these heads in pairs (2i, 2i + 1)."""
    return form_of(recipe).type is ModelType.LLAMA and name.endswith((*QUERIES, *KEYS))


def read_gguf(path: Path, recipe: ModelRecipe) -> GPT:
    """Return the model in a GGUF file that `export_gguf` wrote, in float32 and evaluation mode."""
    import gguf

    stored = {
        tensor.name: torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
        for tensor in gguf.GGUFReader(path).tensors
    }
    with torch.device("meta"):
        names = exported_weights(GPT(recipe), recipe.vocab_size, Precision.FLOAT32, on_cpu=False)
    prefix = "transformer." if form_of(recipe).type is ModelType.GPT2 else ""
    theirs = {}
    table = gguf.get_tensor_name_map(architecture_of(recipe), recipe.n_layer)
    for name, shape in names.items():
        tensor = stored[table.get_name(name, try_suffixes=(".weight", ".bias"))]
        if rotates_in_pairs(name, recipe):
            tensor = tensor.unflatten(0, (-1, recipe.head_width // 2, 2)).transpose(1, 2).flatten(0, 2)
        tensor = tensor.t() if name.endswith(TRANSPOSED) else tensor
        theirs[f"{prefix}{name}"] = tensor.reshape(shape.shape)
    model = GPT(recipe)
    model.load_state_dict(from_hugging_face(recipe, theirs))
    return model.eval()
