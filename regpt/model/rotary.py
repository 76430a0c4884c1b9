"""The angles of rotary embedding.  T positions, D width of a head."""

import math

import torch
from torch import Tensor

from regpt.recipe.architecture import ModelRecipe


def rotary_table(recipe: ModelRecipe) -> Tensor:
    """Return cosines and sines of the rotary angles of each position, in float32.  (2, block_size, D)

    Both halves of a head have the same angles. The sines of the first half are negated, so that a head x becomes
    x * cos + (x with its halves swapped) * sin.
    """
    D = recipe.head_width
    frequencies = recipe.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)
    if recipe.rope_scaling == "llama3":
        frequencies = llama3_frequencies(frequencies, recipe)
    angles = torch.outer(torch.arange(recipe.block_size, dtype=torch.float32), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)])


def llama3_frequencies(frequencies: Tensor, recipe: ModelRecipe) -> Tensor:
    """Divide low frequencies by `rope_factor` and keep high ones; between the two limits, interpolate.  (D/2) -> (D/2)

    As in Llama 3.1 (https://github.com/meta-llama/llama-models, `apply_scaling`). The limits are given in turns that a
    pair makes in the original context.
    """
    turns = recipe.rope_original_block_size * frequencies / (2 * math.pi)
    low, high = recipe.rope_low_frequency_factor, recipe.rope_high_frequency_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / recipe.rope_factor + kept * frequencies
