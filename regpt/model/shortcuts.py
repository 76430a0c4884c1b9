"""Shortcuts past the blocks, all off in the recorded models: the embedding and attention values of other origin.

B sequences, T positions, C width, K heads of keys and values, D width of a head, L layers, V padded vocabulary, G
channels of a gate.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regpt.recipe.architecture import ModelRecipe


class ValueSources(NamedTuple):
    """What a block mixes into the values of its attention."""

    first: Tensor | None  # (B, K, T, D), the values of the first block
    first_share: Tensor | None  # scalar, the share of `first` in the sum
    embedded: Tensor | None  # (B, T, KD), the value embedding of each token
    gate: Tensor | None  # (K, G), weights of the gate of each head


class Shortcuts(nn.Module):
    """The parameters of all shortcuts, and what each of them adds.

    Residual scalars and value residual as in modded-nanogpt (record of 2024-11-06); value embeddings with a gate in
    each head, in every second block, as in nanochat.
    """

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        L, V = recipe.n_layer, recipe.vocab_size
        self.residual_scale = nn.Parameter(torch.ones(L)) if recipe.residual_scalars else None
        self.embedding_scale = nn.Parameter(torch.zeros(L)) if recipe.residual_scalars else None
        self.value_share = nn.Parameter(torch.full((L,), 0.5)) if recipe.value_residual else None
        layers = [str(layer) for layer in recipe.layers_with_value_embeddings]
        self.value_embeddings = nn.ParameterDict({n: torch.empty(V, recipe.kv_width) for n in layers})
        self.value_gates = nn.ParameterDict({n: torch.empty(recipe.kv_heads, recipe.gate_channels) for n in layers})

    def residual(self, layer: int, x: Tensor, embedded: Tensor) -> Tensor:
        """Return the input of a block: the residual stream and the embedding, each scaled.  (B, T, C) -> (B, T, C)"""
        if self.residual_scale is None or self.embedding_scale is None:
            return x
        return self.residual_scale[layer] * x + self.embedding_scale[layer] * embedded

    def value_sources(self, layer: int, tokens: Tensor, first_values: Tensor | None) -> ValueSources:
        """Return what the block mixes into its values. `first_values` are those of the first block, None in it."""
        first, share, embedded, gate = None, None, None, None
        if self.value_share is not None and first_values is not None:
            first, share = first_values, self.value_share[layer]
        if str(layer) in self.value_embeddings:
            embedded = F.embedding(tokens, self.value_embeddings[str(layer)])
            gate = self.value_gates[str(layer)]
        return ValueSources(first, share, embedded, gate)


def mixed_values(v: Tensor, x: Tensor, sources: ValueSources) -> Tensor:
    """Mix other values into those of an attention, whose input is `x`.  (B, K, T, D), (B, T, C) -> (B, K, T, D)

    v becomes (1 - share) v + share first + 2 sigmoid(gate) embedded; a gate of zeros passes the embedding unchanged.
    """
    B, K, T, D = v.shape
    if sources.first is not None and sources.first_share is not None:
        v = torch.lerp(v, sources.first, sources.first_share.to(v.dtype))
    if sources.embedded is not None and sources.gate is not None:
        opened = 2.0 * torch.sigmoid(F.linear(x[..., : sources.gate.shape[1]], sources.gate))  # (B, T, K)
        embedded = sources.embedded.to(v.dtype).view(B, T, K, D).transpose(1, 2)
        v = v + opened.to(v.dtype).transpose(1, 2)[..., None] * embedded
    return v


def has_shortcuts(recipe: ModelRecipe) -> bool:
    return recipe.residual_scalars or recipe.value_residual or recipe.value_embeddings
