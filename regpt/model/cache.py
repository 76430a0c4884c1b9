"""Keys and values of earlier positions.

B sequences, T new positions, K heads of keys and values, D width of a head.
"""

import torch
from torch import Tensor

from regpt.recipe.architecture import ModelRecipe


class KeyValueCache:
    """Keys and values of earlier positions, so that a new token costs one position."""

    def __init__(self, recipe: ModelRecipe, sequences: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (recipe.n_layer, 2, sequences, recipe.kv_heads, recipe.block_size, recipe.head_width)
        self.buffer = torch.empty(shape, dtype=dtype, device=device)
        self.documents = torch.zeros(sequences, recipe.block_size, dtype=torch.long, device=device)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all of them.  (B, K, T, D) -> (B, K, length + T, D)"""
        last = self.length + k.shape[2]
        self.buffer[layer, 0, :, :, self.length : last] = k
        self.buffer[layer, 1, :, :, self.length : last] = v
        return self.buffer[layer, 0, :, :, :last], self.buffer[layer, 1, :, :, :last]

    def append_documents(self, documents: Tensor) -> tuple[Tensor, Tensor]:
        """Store the documents' numbers of new tokens, counted from 0; return theirs and all, counted from the start.

        (B, T) -> (B, T), (B, length + T)
        """
        last = self.length + documents.shape[1]
        if self.length:
            documents = documents + self.documents[:, self.length - 1 : self.length]
        self.documents[:, self.length : last] = documents
        return documents, self.documents[:, :last]
