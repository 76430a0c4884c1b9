"""The config.json of a Hugging Face directory, as a regpt model: GPT-2, Llama, Mistral, Qwen2.

A feature that regpt's model does not support is an error that names it; nothing is ignored. Without torch, so that a
recipe can be shown before a run.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from regpt.base.errors import UserError
from regpt.recipe.architecture import ModelRecipe

MAX_BLOCK_SIZE = 8192  # tokens; no task needs a longer context
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
MISTRAL_WINDOW = 4096  # where a config.json does not name it
USE_THEIRS = "choose a model without that, or evaluate it with lm-eval's own Hugging Face model"


def is_pretrained(directory: Path) -> bool:
    return (directory / "config.json").is_file()


def read_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{directory / 'config.json'}: does not say what model it is", "fetch it again") from None
    if kind not in READERS:
        raise UserError(f"{directory}: is a '{kind}' model", "regpt reads those of GPT-2, Llama, Mistral and Qwen2")
    return dict(config)


def recipe_from_config(config: Mapping[str, Any], directory: Path) -> ModelRecipe:
    """Return the model recipe that a config.json describes. Raises UserError for an unsupported feature."""
    try:
        refused, recipe = READERS[config["model_type"]](config)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{directory / 'config.json'}: cannot be used ({what})", "fetch it again") from None
    if config.get("quantization_config"):
        refused.append("quantized weights")
    if refused:
        raise UserError(
            f"{directory}: asks for {', '.join(refused)}, which regpt's model does not do",
            USE_THEIRS,
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
    """Return the names of unsupported features that the config asks for, and the recipe.

    Mistral without a sliding window is Llama; Qwen2 adds biases of queries, keys and values. Llama's `attention_bias`
    adds one of the output too, which must be zero.
    """
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    block_size = min(int(config["max_position_embeddings"]), MAX_BLOCK_SIZE)
    recipe = ModelRecipe(
        n_layer=int(config["num_hidden_layers"]),
        n_head=heads,
        n_kv_head=0 if kv_heads == heads else kv_heads,
        n_embd=width,
        head_dim=0 if config.get("head_dim") in (None, width / heads) else int(config["head_dim"]),
        block_size=block_size,
        vocab_size=int(config["vocab_size"]),
        positions="rope",
        activation="swiglu",
        mlp_hidden=int(config["intermediate_size"]),
        normalization="rmsnorm",
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        bias=False,
        qkv_bias=config["model_type"] == "qwen2" or bool(config.get("attention_bias", False)),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        **rope_settings(config),
    )
    return list(unsupported_by_llama(config, recipe)), recipe


def unsupported_by_llama(config: Mapping[str, Any], recipe: ModelRecipe) -> Iterator[str]:
    """Yield the features that a config asks for and that regpt's model does not have."""
    activation, rotary = config.get("hidden_act", "silu"), rotary_entries(config)
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if activation != "silu":
        yield f"hidden_act = '{activation}'"
    if kind not in ("default", "llama3"):
        yield f"rope_type = '{kind}'"
    turned = rotary.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if turned not in (None, 1.0):
        yield f"partial_rotary_factor = {turned}"
    if config.get("mlp_bias", False):
        yield "mlp_bias"
    if (window := sliding_window(config)) is not None and window < recipe.block_size:
        yield f"sliding_window = {window}"
    if not config.get("head_dim") and recipe.n_embd % recipe.n_head:
        yield "heads that do not divide the width"
    if recipe.n_head % recipe.kv_heads:
        yield "key-value heads that do not divide the heads"


def sliding_window(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens attention sees where that is limited; None where it sees all earlier ones."""
    layers = config.get("layer_types")
    limited = config["model_type"] == "mistral" or bool(config.get("use_sliding_window", False))
    if layers is not None:
        limited = "sliding_attention" in layers or (limited and config["model_type"] == "mistral")
    default = MISTRAL_WINDOW if config["model_type"] == "mistral" else None
    window = config.get("sliding_window", default) if limited else None
    return None if window is None else int(window)


def rotary_entries(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a config says about rotary embedding, as transformers 5 or transformers 4 writes it."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of model.rope_*."""
    rotary = rotary_entries(config)
    settings: dict[str, Any] = {"rope_theta": float(rotary.get("rope_theta") or config.get("rope_theta") or 10_000.0)}
    if rotary.get("rope_type", rotary.get("type")) == "llama3":
        settings |= {
            "rope_scaling": "llama3",
            "rope_factor": float(rotary["factor"]),
            "rope_low_frequency_factor": float(rotary["low_freq_factor"]),
            "rope_high_frequency_factor": float(rotary["high_freq_factor"]),
            "rope_original_block_size": int(rotary["original_max_position_embeddings"]),
        }
    return settings


def own_recipe(config: Mapping[str, Any]) -> tuple[list[str], ModelRecipe]:
    """Return the recipe of a model that regpt exported with a class of its own; nothing is unsupported."""
    return [], ModelRecipe(**{one.name: config["regpt"][one.name] for one in fields(ModelRecipe)})


READERS: dict[str, Callable[[Mapping[str, Any]], tuple[list[str], ModelRecipe]]] = {
    "gpt2": gpt2_recipe,
    "llama": llama_recipe,
    "mistral": llama_recipe,
    "qwen2": llama_recipe,
    "regpt": own_recipe,
}
