"""Load a Hugging Face directory of GPT-2's or Llama's architecture as a regpt model.

A feature that regpt's model does not support is an error that names it; nothing is ignored.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from regpt.base.errors import UserError
from regpt.base.files import refuse_lfs_pointer
from regpt.data.tokenizer import Tokenizer
from regpt.interop.huggingface import from_hugging_face, to_hugging_face
from regpt.interop.pretrained_tokenizer import load_tokenizer
from regpt.model.gpt import GPT
from regpt.recipe.architecture import ModelRecipe

MAX_BLOCK_SIZE = 8192  # tokens; no task needs a longer context
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def is_pretrained(directory: Path) -> bool:
    return (directory / "config.json").is_file()


def load_pretrained(directory: Path) -> tuple[GPT, Tokenizer]:
    """Return the model, in float32 and evaluation mode, and its tokenizer.

    Raises UserError for files that are missing, damaged or of an unsupported model.
    """
    config = read_config(directory)
    recipe = recipe_from_config(config, directory)
    theirs = read_weights(directory)
    if config["model_type"] == "gpt2" and not any(name.startswith("transformer.") for name in theirs):
        theirs = {f"transformer.{name}": tensor for name, tensor in theirs.items()}  # OpenAI's own files
    if config["model_type"] == "llama":
        theirs = expand_key_value_heads(theirs, recipe, config.get("num_key_value_heads") or recipe.n_head)
    check_all_tensors_used(theirs, recipe, directory)
    model = GPT(recipe)
    try:
        model.load_state_dict(from_hugging_face(recipe, theirs))
    except (KeyError, RuntimeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[-1].strip()
        raise UserError(f"{directory}: its weights do not fit its config.json ({what})", "fetch it again") from None
    return model.eval(), load_tokenizer(directory, recipe, config)


def read_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{directory / 'config.json'}: does not say what model it is", "fetch it again") from None
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{directory}: is a '{kind}' model", "regpt reads models of GPT-2's and of Llama's shape")
    return dict(config)


def recipe_from_config(config: Mapping[str, Any], directory: Path) -> ModelRecipe:
    """Return the model recipe that a config.json describes. Raises UserError for an unsupported feature."""
    try:
        refused, recipe = (gpt2_recipe if config["model_type"] == "gpt2" else llama_recipe)(config)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{directory / 'config.json'}: cannot be used ({what})", "fetch it again") from None
    if config.get("quantization_config"):
        refused.append("quantized weights")
    if refused:
        raise UserError(
            f"{directory}: asks for {', '.join(refused)}, which regpt's model does not do",
            "evaluate it with lm-eval's own Hugging Face model",
        )
    if problems := [p.text for p in recipe.problems() if p.setting != "model.vocab_size"]:
        raise UserError(f"{directory / 'config.json'}: cannot be used ({'; '.join(problems)})", "fetch it again")
    return recipe


def gpt2_recipe(config: Mapping[str, Any]) -> tuple[list[str], ModelRecipe]:
    """Return the names of unsupported features that the config asks for, and the recipe."""
    activation = config.get("activation_function", "gelu_new")
    asks = {
        f"activation_function = '{activation}'": activation not in TANH_GELU,
        "scale_attn_weights = false": not config.get("scale_attn_weights", True),
        "scale_attn_by_inverse_layer_idx": bool(config.get("scale_attn_by_inverse_layer_idx", False)),
        "add_cross_attention": bool(config.get("add_cross_attention", False)),
        "an untied head": not config.get("tie_word_embeddings", True),
    }
    return [name for name, holds in asks.items() if holds], ModelRecipe(
        n_layer=int(config["n_layer"]),
        n_head=int(config["n_head"]),
        n_embd=int(config["n_embd"]),
        block_size=int(config.get("n_positions") or config["n_ctx"]),
        vocab_size=int(config["vocab_size"]),
        positions="learned",
        activation="gelu",
        mlp_hidden=int(config.get("n_inner") or 4 * config["n_embd"]),
        normalization="layernorm",
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        bias=True,
        tied_head=True,
    )


def llama_recipe(config: Mapping[str, Any]) -> tuple[list[str], ModelRecipe]:
    """Return the names of unsupported features that the config asks for, and the recipe."""
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    activation = config.get("hidden_act", "silu")
    asks = {
        f"hidden_act = '{activation}'": activation != "silu",
        f"rope_type = '{kind}'": kind != "default",
        "attention_bias": bool(config.get("attention_bias", False)),
        "mlp_bias": bool(config.get("mlp_bias", False)),
        "heads that do not divide the width": not config.get("head_dim") and width % heads != 0,
        "key-value heads that do not divide the heads": heads % (config.get("num_key_value_heads") or heads) != 0,
    }
    return [name for name, holds in asks.items() if holds], ModelRecipe(
        n_layer=int(config["num_hidden_layers"]),
        n_head=heads,
        n_embd=width,
        head_dim=0 if config.get("head_dim") in (None, width / heads) else int(config["head_dim"]),
        block_size=min(int(config["max_position_embeddings"]), MAX_BLOCK_SIZE),
        vocab_size=int(config["vocab_size"]),
        positions="rope",
        rope_theta=float(rotary.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        activation="swiglu",
        mlp_hidden=int(config["intermediate_size"]),
        normalization="rmsnorm",
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        bias=False,
        tied_head=bool(config.get("tie_word_embeddings", False)),
    )


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read all tensors of model.safetensors, or of the files that its index names, in float32."""
    paths = [directory / "model.safetensors"]
    index = directory / "model.safetensors.index.json"
    try:
        if not paths[0].is_file() and index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            paths = [directory / Path(name).name for name in names]
        weights: dict[str, Tensor] = {}
        for path in paths:
            refuse_lfs_pointer(path)
            with safe_open(path, framework="pt") as file:
                weights |= {name: file.get_tensor(name).to(torch.float32) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        missing = next((path.name for path in paths if not path.is_file()), paths[0].name)
        raise UserError(
            f"{directory}: has no {missing}", "fetch the safetensors files; pickles (.bin) are not read"
        ) from None
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise UserError(f"{directory}: its weights cannot be read ({error})", "fetch it again") from None
    return weights


# Tensors that are not weights: causal masks, and the angles of rotary positions.
BUFFER_SUFFIXES = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def check_all_tensors_used(theirs: Mapping[str, Tensor], recipe: ModelRecipe, directory: Path) -> None:
    """Raise UserError for a tensor that regpt's model does not use: without it, it would be another model."""
    with torch.device("meta"):
        ours = to_hugging_face(GPT(recipe), on_cpu=False)
    left = [name for name in theirs if name not in ours and not name.endswith(BUFFER_SUFFIXES)]
    embedding = "model.embed_tokens.weight" if "model.embed_tokens.weight" in theirs else "transformer.wte.weight"
    tied = [name for name in left if name.endswith("lm_head.weight") and recipe.tied_head]
    if tied and embedding in theirs and torch.equal(theirs[tied[0]], theirs[embedding]):
        left.remove(tied[0])  # written twice
    if left:
        more = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
        raise UserError(
            f"{directory}: holds {left[0]}{more}, for which a model as its config.json describes it has no place",
            "evaluate it with lm-eval's own Hugging Face model",
        )


def expand_key_value_heads(theirs: dict[str, Tensor], recipe: ModelRecipe, groups: int) -> dict[str, Tensor]:
    """Repeat keys and values that several heads share (grouped-query attention), so that every head has its own.

    (groups * D, C) -> (heads * D, C); the results are the same.
    """
    if groups == recipe.n_head:
        return theirs
    D = recipe.head_width
    shared = ("self_attn.k_proj.weight", "self_attn.v_proj.weight")
    return {
        name: tensor.view(groups, D, -1).repeat_interleave(recipe.n_head // groups, dim=0).flatten(0, 1)
        if name.endswith(shared)
        else tensor
        for name, tensor in theirs.items()
    }
