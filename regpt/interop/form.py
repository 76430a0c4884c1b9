"""Which Hugging Face class computes what a model computes: GPT-2's, Llama's, or none but a file of its own.

Without torch, so that `regpt recipe show` can say it before a run.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from regpt.recipe.architecture import ModelRecipe


class ModelType(StrEnum):
    """The `model_type` of a config.json."""

    GPT2 = "gpt2"
    LLAMA = "llama"
    OWN = "regpt"  # the modeling file comes with the model: trust_remote_code=True


@dataclass(frozen=True)
class Form:
    """How a model is exported. `unlike` names the settings of model.* that neither GPT-2 nor Llama has."""

    type: ModelType
    unlike: tuple[str, ...] = ()


# Settings that the classes need. Those that are not named here change training alone, or with document_mask nothing
# within a document.
SWITCHES_OFF: dict[str, Any] = {
    "qk_norm": False,
    "embedding_norm": False,
    "value_residual": False,
    "residual_scalars": False,
    "value_embeddings": False,
    "logit_softcap": 0.0,
    "experts": 0,
    "shared_experts": 0,
}
CLASSES: dict[ModelType, dict[str, Any]] = {
    ModelType.LLAMA: {"positions": "rope", "activation": "swiglu", "normalization": "rmsnorm", "bias": False},
    ModelType.GPT2: {
        "positions": "learned",
        "activation": "gelu",
        "normalization": "layernorm",
        "bias": True,
        "tied_head": True,
        "head_dim": 0,
        "n_kv_head": 0,
    },
}


def form_of(model: ModelRecipe) -> Form:
    """Return how a model is exported; for a modeling file of its own, with its differences from the closest class."""
    plain = replace(
        model,
        n_kv_head=0 if model.kv_heads == model.n_head else model.n_kv_head,
        head_dim=0 if model.n_head * model.head_dim == model.n_embd else model.head_dim,
    )
    found = {
        kind: tuple(name for name, value in (wanted | SWITCHES_OFF).items() if getattr(plain, name) != value)
        for kind, wanted in CLASSES.items()
    }
    closest = min(found, key=lambda kind: len(found[kind]))
    return Form(ModelType.OWN, found[closest]) if found[closest] else Form(closest)


PROGRAMS = "transformers, llama.cpp, vLLM"
CLASS_NAMES = {ModelType.GPT2: "GPT-2's", ModelType.LLAMA: "Llama's"}


def form_text(form: Form) -> str:
    """Say which class a model is exported with, and which programs open it."""
    if form.type is ModelType.OWN:
        names = ", ".join(f"model.{name}" for name in form.unlike)
        return (
            f"with a modeling file of its own, because of {names}: opens in transformers with trust_remote_code=True,"
            " not in llama.cpp, vLLM or mlx-lm"
        )
    return f"with {CLASS_NAMES[form.type]} class, which {PROGRAMS} and others open"
