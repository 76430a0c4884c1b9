"""Keys and values of earlier positions.

B rows, T new tokens of each row, S positions that the longest row has with its new tokens, K heads of keys and values,
D width of a head.
"""

import torch
from torch import Tensor

from regpt.recipe.architecture import ModelRecipe

FIRST_POSITIONS = 64  # room of a new cache; it doubles where a row needs more


class KeyValueCache:
    """Keys and values of earlier positions, so that a new token costs one position.

    Each row has a length of its own. Rows join at the end; where one leaves, the last one takes its place.
    """

    def __init__(self, recipe: ModelRecipe, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.block_size = recipe.block_size
        positions = min(FIRST_POSITIONS, recipe.block_size)
        shape = (recipe.n_layer, 2, rows, recipe.kv_heads, positions, recipe.head_width)
        # Zeros: attention gives what lies behind a shorter row the weight 0, and 0 times NaN would be NaN.
        self.buffer = torch.zeros(shape, dtype=dtype, device=device)
        self.documents = torch.zeros(rows, positions, dtype=torch.long, device=device)
        self.lengths = [0] * rows
        self.known: tuple[Tensor, ...] = ()  # keys and values of each layer in turn, (B, K, S, D)
        self.new: tuple[Tensor, ...] | None = None  # those of the new tokens, (B, K, T, D), if rows have one length
        self.rows = self.positions = torch.zeros(rows, 0, dtype=torch.long, device=device)  # of the new tokens

    def begin(self, tokens: int) -> Tensor:
        """Make room for this many new tokens in each row, and return their positions.  -> (B, T)"""
        self.make_room(len(self.lengths), max(self.lengths) + tokens)
        numbers = torch.arange(len(self.lengths), device=self.buffer.device)
        firsts = torch.tensor(self.lengths, device=self.buffer.device)
        self.rows, self.positions = numbers[:, None], firsts[:, None] + torch.arange(tokens, device=firsts.device)
        self.make_views(self.lengths[0] if len(set(self.lengths)) == 1 else None)
        return self.positions

    def make_views(self, common: int | None) -> None:
        """View keys and values of all layers at once, which is faster than in each layer.

        `common` is the length of all rows before the new tokens; None: they differ.
        """
        whole = self.buffer[:, :, : len(self.lengths), :, : self.end].flatten(0, 1)
        self.known = whole.unbind()
        self.new = None if common is None else whole[..., common:, :].unbind()

    @property
    def end(self) -> int:
        """S"""
        return max(self.lengths) + self.positions.shape[1]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all of them.  (B, K, T, D) -> (B, K, S, D)"""
        pair = slice(2 * layer, 2 * layer + 2)
        keys, values = self.known[pair]
        if self.new is not None:
            for place, new in zip(self.new[pair], (k, v), strict=True):
                place.copy_(new)
        else:
            for place, new in ((keys, k), (values, v)):
                place[self.rows, :, self.positions] = new.transpose(1, 2).to(place.dtype)
        return keys, values

    def append_documents(self, documents: Tensor) -> tuple[Tensor, Tensor]:
        """Store the documents' numbers of new tokens, counted from 0; return theirs and all, counted from the start.

        (B, T) -> (B, T), (B, S)
        """
        first = self.positions[:, :1]
        before = self.documents[self.rows, (first - 1).clamp(min=0)]
        documents = documents + torch.where(first > 0, before, 0)
        self.documents[self.rows, self.positions] = documents
        return documents, self.documents[: len(self.lengths), : self.end]

    def visible(self) -> Tensor | None:
        """Return which positions the new tokens may see. None: all of them, or all earlier ones in empty rows.

        -> (B, T, S)
        """
        T = self.positions.shape[1]
        if not any(self.lengths) or (T == 1 and len(set(self.lengths)) == 1):
            return None
        return torch.arange(self.end, device=self.buffer.device) <= self.positions[:, :, None]

    def advance(self) -> None:
        """Count the new tokens, after the last layer has stored them."""
        self.lengths = [length + self.positions.shape[1] for length in self.lengths]

    def join(self, other: "KeyValueCache", count: int) -> None:
        """Add rows that each begin with the only row of another cache."""
        (length,) = other.lengths
        first, last = len(self.lengths), len(self.lengths) + count
        self.make_room(last, min(length + 1, self.block_size))  # the next token's too: its room would be a second copy
        self.buffer[:, :, first:last, :, :length] = other.buffer[:, :, :1, :, :length]
        self.documents[first:last, :length] = other.documents[:1, :length]
        self.lengths += [length] * count

    def leave(self, row: int) -> None:
        """Remove a row. The last row gets its number."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if row < last:
            self.buffer[:, :, row, :, :length] = self.buffer[:, :, last, :, :length]
            self.documents[row, :length] = self.documents[last, :length]
            self.lengths[row] = length

    def make_room(self, rows: int, positions: int) -> None:
        """Have room for this many rows of this many positions."""
        has_rows, has_positions = self.documents.shape
        if rows <= has_rows and positions <= has_positions:
            return
        self.known, self.new = (), None  # they would keep the memory until the next pass
        rows = has_rows if rows <= has_rows else max(rows, 2 * has_rows)
        positions = has_positions if positions <= has_positions else max(positions, 2 * has_positions)
        positions = min(positions, self.block_size)
        layers, pair, _, heads, _, width = self.buffer.shape
        buffer = self.buffer.new_zeros(layers, pair, rows, heads, positions, width)
        buffer[:, :, :has_rows, :, :has_positions] = self.buffer
        documents = self.documents.new_zeros(rows, positions)
        documents[:has_rows, :has_positions] = self.documents
        self.buffer, self.documents = buffer, documents
