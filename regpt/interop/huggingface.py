"""Convert weights between regpt's names and Hugging Face's, and describe a model in a config.json.

A model with only classic parts is a GPT2LMHeadModel, one with only modern parts a LlamaForCausalLM; any other keeps
regpt's names (`form.py`). Biases of queries, keys and values are Llama's `attention_bias`, which adds one to the output
too: it is zero. They are Qwen2's as well, but for models of its class transformers 5 splits text as Qwen2 does.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from regpt.data import tokenizer
from regpt.interop.form import ModelType, form_of
from regpt.model.gpt import GPT
from regpt.model.moe import balances
from regpt.recipe.architecture import ModelRecipe

# ours -> theirs, within a block
GPT2_BLOCK = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.expand": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
LLAMA_BLOCK = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    ),  # our rows are theirs, stacked
    "attention.out": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.expand": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}


OWN_PREFIX = "model."  # of the names in a model of regpt's own class
OUTPUT_BIAS = "self_attn.o_proj.bias"  # of attention, which regpt's models do not have with RMSNorm


def to_hugging_face(model: GPT, on_cpu: bool = True) -> dict[str, Tensor]:
    """Return the weights under Hugging Face's names and in its shapes; on their own device unless `on_cpu`."""
    tensors = {**dict(model.named_parameters()), **balances(model)}
    ours = {name: tensor.detach().cpu() if on_cpu else tensor.detach() for name, tensor in tensors.items()}
    kind = form_of(model.recipe).type
    if kind is ModelType.OWN:
        return {f"{OWN_PREFIX}{name}": tensor for name, tensor in ours.items()}
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if kind is ModelType.LLAMA:
            parts = tensor.split(heights(name, model.recipe) or len(tensor))
            theirs.update(zip(llama_names(name), (part.contiguous() for part in parts), strict=True))
        else:
            # their Conv1D keeps a linear layer's weight as (in, out)
            theirs[gpt2_name(name)] = tensor.t().contiguous() if is_conv1d(name) else tensor
    if kind is ModelType.LLAMA and model.recipe.qkv_bias:
        device = next(iter(ours.values())).device
        for layer in range(model.recipe.n_layer):
            theirs[f"model.layers.{layer}.{OUTPUT_BIAS}"] = torch.zeros(model.recipe.n_embd, device=device)
    return theirs


def from_hugging_face(recipe: ModelRecipe, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a Hugging Face model's weights under regpt's names. Raises KeyError for a missing tensor."""
    with torch.device("meta"):
        names = list(GPT(recipe).state_dict())
    kind = form_of(recipe).type
    if kind is ModelType.OWN:
        return {name: theirs[f"{OWN_PREFIX}{name}"] for name in names}
    if kind is ModelType.LLAMA:
        return {name: torch.cat([theirs[part] for part in llama_names(name)]) for name in names}
    return {name: theirs[gpt2_name(name)].t() if is_conv1d(name) else theirs[gpt2_name(name)] for name in names}


def is_conv1d(name: str) -> bool:
    return name.endswith((".qkv.weight", ".out.weight", ".expand.weight", ".down.weight"))


def gpt2_name(name: str) -> str:
    outside = {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"}
    layer, place, kind = split_name(name)
    return f"transformer.h.{layer}.{GPT2_BLOCK[place]}.{kind}" if layer else f"transformer.{outside[place]}.{kind}"


def llama_names(name: str) -> list[str]:
    outside = {"token_embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
    layer, place, kind = split_name(name)
    return (
        [f"model.layers.{layer}.{part}.{kind}" for part in LLAMA_BLOCK[place]]
        if layer
        else [f"{outside[place]}.{kind}"]
    )


def heights(name: str, recipe: ModelRecipe) -> list[int]:
    """Return the rows of each of their tensors that ours stacks; an empty list where it is one tensor."""
    if ".qkv." in name:
        return [recipe.attention_width, recipe.kv_width, recipe.kv_width]
    return [recipe.mlp_hidden, recipe.mlp_hidden] if ".expand." in name else []


def split_name(name: str) -> tuple[str, str, str]:
    """Split 'blocks.3.mlp.down.weight' into ('3', 'mlp.down', 'weight'); the layer is "" outside the blocks."""
    place, _, kind = name.rpartition(".")
    if place.startswith("blocks."):
        _, layer, place = place.split(".", 2)
        return layer, place, kind
    return "", place, kind


def hugging_face_config(recipe: ModelRecipe) -> dict[str, Any]:
    """Return the config.json from which transformers builds the same model."""
    shared = {
        "vocab_size": recipe.vocab_size,
        "bos_token_id": tokenizer.END_OF_TEXT,
        "eos_token_id": tokenizer.END_OF_TEXT,
        "tie_word_embeddings": recipe.tied_head,
    }
    kind = form_of(recipe).type
    if kind is ModelType.OWN:
        return {
            "model_type": kind.value,
            "architectures": ["RegptForCausalLM"],
            "auto_map": {
                "AutoConfig": "modeling_regpt.RegptConfig",
                "AutoModelForCausalLM": "modeling_regpt.RegptForCausalLM",
            },
            "num_hidden_layers": recipe.n_layer,
            "num_attention_heads": recipe.n_head,
            "hidden_size": recipe.n_embd,
            "max_position_embeddings": recipe.block_size,
            "regpt": {**asdict(recipe), "gate_channels": recipe.gate_channels},
            **shared,
            "tie_word_embeddings": False,  # a tied head is no tensor of its own, so nothing is left to tie
        }
    if kind is ModelType.GPT2:
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_layer": recipe.n_layer,
            "n_head": recipe.n_head,
            "n_embd": recipe.n_embd,
            "n_inner": recipe.mlp_hidden,
            "n_positions": recipe.block_size,
            "n_ctx": recipe.block_size,  # as in OpenAI's; llama.cpp and mlx-lm read it
            "activation_function": "gelu_new",
            "layer_norm_epsilon": recipe.norm_eps,
            "resid_pdrop": recipe.dropout,
            "embd_pdrop": recipe.dropout,
            "attn_pdrop": recipe.dropout,
            **shared,
        }
    return {
        "model_type": kind.value,
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": recipe.n_layer,
        "num_attention_heads": recipe.n_head,
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": recipe.head_width,
        "hidden_size": recipe.n_embd,
        "intermediate_size": recipe.mlp_hidden,
        "max_position_embeddings": recipe.block_size,
        "rms_norm_eps": recipe.norm_eps,
        "hidden_act": "silu",
        **rope_config(recipe),
        "attention_bias": recipe.qkv_bias,
        "mlp_bias": False,
        **shared,
    }


def rope_config(recipe: ModelRecipe) -> dict[str, Any]:
    """Return the rotary wavelengths as transformers 5 names them, and as transformers 4 does."""
    if recipe.rope_scaling == "none":
        kind: dict[str, Any] = {"rope_type": "default"}
        older = {}
    else:
        kind = {
            "rope_type": "llama3",
            "factor": recipe.rope_factor,
            "low_freq_factor": recipe.rope_low_frequency_factor,
            "high_freq_factor": recipe.rope_high_frequency_factor,
            "original_max_position_embeddings": recipe.rope_original_block_size,
        }
        older = {"rope_scaling": kind}
    theta = {"rope_theta": recipe.rope_theta}
    return {**theta, "rope_parameters": {**kind, **theta}, **older}
