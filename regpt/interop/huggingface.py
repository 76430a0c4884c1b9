"""Convert weights between regpt's names and Hugging Face's, and describe a model in a config.json.

A model with only classic parts is a GPT2LMHeadModel, one with only modern parts a LlamaForCausalLM (`form.py`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from regpt.base.errors import UserError
from regpt.data import tokenizer
from regpt.interop.form import ModelType, form_of
from regpt.model.gpt import GPT
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


def class_of(model: ModelRecipe) -> ModelType:
    """Return the Hugging Face class of a model. Raises UserError where neither GPT-2's nor Llama's computes it."""
    form = form_of(model)
    if form.type is ModelType.OWN:
        names = ", ".join(f"model.{name} = {getattr(model, name)!r}" for name in form.unlike)
        raise UserError(
            f"no Hugging Face class of GPT-2's or Llama's shape has {names}",
            "use the model with regpt, or train one without that",
        )
    return form.type


def to_hugging_face(model: GPT, on_cpu: bool = True) -> dict[str, Tensor]:
    """Return the weights under Hugging Face's names and in its shapes; on their own device unless `on_cpu`."""
    ours = {
        name: parameter.detach().cpu() if on_cpu else parameter.detach() for name, parameter in model.named_parameters()
    }
    theirs: dict[str, Tensor] = {}
    llama = class_of(model.recipe) is ModelType.LLAMA
    for name, tensor in ours.items():
        if llama:
            names = llama_names(name)
            theirs.update(zip(names, (part.contiguous() for part in tensor.chunk(len(names))), strict=True))
        else:
            # their Conv1D keeps a linear layer's weight as (in, out)
            theirs[gpt2_name(name)] = tensor.t().contiguous() if is_conv1d(name) else tensor
    return theirs


def from_hugging_face(recipe: ModelRecipe, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a Hugging Face model's weights under regpt's names. Raises KeyError for a missing tensor."""
    with torch.device("meta"):
        names = [name for name, _ in GPT(recipe).named_parameters()]
    if class_of(recipe) is ModelType.LLAMA:
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
    if class_of(recipe) is ModelType.GPT2:
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
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": recipe.n_layer,
        "num_attention_heads": recipe.n_head,
        "num_key_value_heads": recipe.n_head,
        "head_dim": recipe.head_width,
        "hidden_size": recipe.n_embd,
        "intermediate_size": recipe.mlp_hidden,
        "max_position_embeddings": recipe.block_size,
        "rms_norm_eps": recipe.norm_eps,
        "rope_theta": recipe.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": recipe.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **shared,
    }
