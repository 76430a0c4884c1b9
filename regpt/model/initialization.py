"""The initial weights, drawn on the CPU, so that a seed gives the same ones on every device."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from regpt.recipe.architecture import ModelRecipe

RESIDUAL_PROJECTIONS = (".out.weight", ".down.weight")
ONES = ("norm.weight", "residual_scale")
HALVES = ("value_share",)


def initial_weights(model: nn.Module, recipe: ModelRecipe, seed: int) -> Iterator[Tensor]:
    """Yield each parameter's full initial values, in the order of the parameters.

    Matrices: normal with the standard deviation of `matrix_std`. Biases 0, norms 1. A block with the initial scalars of
    its shortcuts takes the residual stream alone and half of the first block's values.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            value = 1.0 if name.endswith(ONES) else 0.5 if name.endswith(HALVES) else 0.0
            yield torch.full(parameter.shape, value)
        elif std := matrix_std(name, recipe):
            yield torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
        else:
            yield torch.zeros(parameter.shape)


def matrix_std(name: str, recipe: ModelRecipe) -> float:
    """Return the standard deviation of a matrix's initial weights: init_std, and for projections to the residual
    stream init_std x (2 n_layer)^-0.5 (GPT-2), unless a switch says otherwise."""
    if name.endswith(RESIDUAL_PROJECTIONS):
        return 0.0 if recipe.zero_init else recipe.init_std * (2 * recipe.n_layer) ** -0.5
    if name.startswith("shortcuts.value_gates"):
        return 0.0
    if name.startswith("shortcuts.value_embeddings"):
        return float(recipe.n_embd**-0.5)  # nanochat
    if name == "head.weight" and recipe.head_init == "zero":
        return 0.0
    if name == "token_embedding.weight" and recipe.embedding_init_std:
        return recipe.embedding_init_std
    return recipe.init_std
