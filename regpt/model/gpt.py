"""GPT-2, classic and modern, in the order of its forward pass.

B sequences, T positions, C width, H heads, D width of a head (C = H x D), V padded vocabulary.

The recipe chooses each part by itself: positions, activation, normalization, biases, tied head, dropout. All classic
parts together are GPT-2; all modern ones have exactly Llama's shape.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regpt.base.architecture import ModelRecipe
from regpt.model.elementwise import rms_norm, rotary_heads, split_heads, swiglu
from regpt.model.loss import mean_loss, token_losses, token_losses_and_best


class SharedPrefix(NamedTuple):
    """How rows of tokens fork: each has a stem and branches that go on from it, one behind the other.

    A branch sees the stem and itself, so that a context is read once for all its endings.
    """

    positions: Tensor  # (B, T), of a token in its own sequence: stem and branch
    segments: Tensor  # (B, T), 0 in the stem, then 1, 2 … ; -1 where a row is filled up

    def mask(self) -> Tensor:
        """Whether a position (second to last) sees another (last).  (B, 1, T, T)"""
        T = self.segments.shape[1]
        before = torch.ones(T, T, dtype=torch.bool, device=self.segments.device).tril()
        same = self.segments[:, :, None] == self.segments[:, None, :]
        stem = self.segments[:, None, :] == 0
        return (before & (same | stem))[:, None]


class GPT(nn.Module):
    """Tokens in; a loss, losses, or logits out."""

    rotations: Tensor | None  # (2, block_size, D/2); not a parameter, not saved

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.token_embedding = nn.Embedding(recipe.vocab_size, recipe.n_embd)
        self.position_embedding = (
            nn.Embedding(recipe.block_size, recipe.n_embd) if recipe.positions == "learned" else None
        )
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(recipe.n_layer))
        self.final_norm = normalization(recipe)
        self.head = None if recipe.tied_head else nn.Linear(recipe.n_embd, recipe.vocab_size, bias=False)
        self.dropout = nn.Dropout(recipe.dropout)
        rotations = rotary_table(recipe) if recipe.positions == "rope" else None
        self.register_buffer("rotations", rotations, persistent=False)
        self.activation_checkpointing = False  # the blocks in the backward pass, instead of keeping what is inside them

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over all targets, nats per token.  (B, T), (B, T) -> ()"""
        hidden = self.hidden(tokens)
        return mean_loss(hidden.flatten(0, 1), self.head_weight, targets.flatten())

    @torch.no_grad()
    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Loss of each target, nats; no gradient.  (B, T), (B, T) -> (B, T)"""
        hidden = self.hidden(tokens)
        return token_losses(hidden.flatten(0, 1), self.head_weight, targets.flatten()).view_as(targets)

    @torch.no_grad()
    def losses_at(self, tokens: Tensor, fork: SharedPrefix, places: Tensor, targets: Tensor) -> Tensor:
        """Losses, nats, where they are asked for: of target n after the token at place n of the flattened rows.

        (B, T), (B, T) twice, (M), (M) -> (M)
        """
        return token_losses(self.hidden_at(tokens, fork, places), self.head_weight, targets)

    @torch.no_grad()
    def losses_and_best_at(
        self, tokens: Tensor, fork: SharedPrefix, places: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same, and whether each target is the likeliest token there.  … -> (M), (M)"""
        return token_losses_and_best(self.hidden_at(tokens, fork, places), self.head_weight, targets)

    def hidden_at(self, tokens: Tensor, fork: SharedPrefix, places: Tensor) -> Tensor:
        """(B, T), (B, T) twice, (M) -> (M, C)"""
        return self.hidden(tokens, fork=fork).flatten(0, 1)[places]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every next token, for the few positions where somebody asks.  (..., C) -> (..., V)"""
        return F.linear(hidden, self.head_weight)

    def next_logits(self, tokens: Tensor, cache: "KeyValueCache") -> Tensor:
        """Scores of what follows the last of the tokens, which follow those in the cache.  (B, T) -> (B, V)"""
        return self.logits(self.hidden(tokens, cache)[:, -1])

    def hidden(self, tokens: Tensor, cache: "KeyValueCache | None" = None, fork: SharedPrefix | None = None) -> Tensor:
        """What the head reads. With a cache, `tokens` follow those that it holds.  (B, T) -> (B, T, C)"""
        first = cache.length if cache else 0
        last = first + tokens.shape[1]
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(fork.positions if fork else torch.arange(first, last, device=tokens.device))
        x = self.dropout(x)
        rotations, mask = None, fork.mask() if fork else None
        if self.rotations is not None:  # with a fork each row has its own: (2, B, 1, T, D/2)
            rotations = self.rotations[:, fork.positions][:, :, None] if fork else self.rotations[:, first:last]
        for layer, block in enumerate(self.blocks):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rotations, use_reentrant=False)
            else:
                x = block(x, rotations, (cache, layer) if cache else None, mask)
        if cache:
            cache.length = last
        return self.final_norm(x)

    @property
    def head_weight(self) -> Tensor:
        """(V, C)"""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def initialize(self, seed: int) -> None:
        """Draw all weights anew."""
        with torch.no_grad():
            for parameter, drawn in zip(self.parameters(), self.initial_weights(seed), strict=True):
                parameter.copy_(drawn)

    def initial_weights(self, seed: int) -> Iterator[Tensor]:
        """Each parameter's first values, whole: normal(0, init_std), residual projections x (2 n_layer)^-0.5, biases 0,
        norms 1.

        Drawn on the CPU, in the order of the forward pass, so that a seed gives the same weights on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        residual_std = self.recipe.init_std * (2 * self.recipe.n_layer) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                yield torch.full(parameter.shape, 1.0 if name.endswith("norm.weight") else 0.0)
            else:
                is_residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
                std = residual_std if is_residual else self.recipe.init_std
                yield torch.empty(parameter.shape).normal_(0.0, std, generator=generator)


class Block(nn.Module):
    """Attention and MLP, each reading the normalized stream and adding to it.  (B, T, C) -> (B, T, C)"""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.attention_norm = normalization(recipe)
        self.attention = Attention(recipe)
        self.mlp_norm = normalization(recipe)
        self.mlp = MLP(recipe)
        self.dropout = nn.Dropout(recipe.dropout)

    def forward(
        self,
        x: Tensor,
        rotations: Tensor | None,
        cached: "tuple[KeyValueCache, int] | None" = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotations, cached, mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Attention(nn.Module):
    """Every position mixes in what came before it.  (B, T, C) -> (B, T, C)"""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.heads = recipe.n_head
        self.qkv = nn.Linear(recipe.n_embd, 3 * recipe.n_embd, bias=recipe.bias)
        self.out = nn.Linear(recipe.n_embd, recipe.n_embd, bias=recipe.bias)
        self.dropout = recipe.dropout

    def forward(
        self,
        x: Tensor,
        rotations: Tensor | None,
        cached: "tuple[KeyValueCache, int] | None",
        mask: Tensor | None,
    ) -> Tensor:
        B, T, C = x.shape
        if rotations is not None:
            q, k, v = rotary_heads(self.qkv(x), self.heads, *rotations)  # each (B, H, T, D)
        else:
            q, k, v = split_heads(self.qkv(x), self.heads).unbind()
        if cached is not None:
            cache, layer = cached
            k, v = cache.extended(layer, k, v)
        # Without a cache, or in its first pass, T queries meet T keys; later one query meets all keys before it.
        dropout = self.dropout if self.training else 0.0
        causal = mask is None and T > 1
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.out(mixed.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Each position by itself: widened, bent, narrowed.  (B, T, C) -> (B, T, C)

    With SwiGLU, `expand` holds the gate's rows and then the values'.
    """

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.gated = recipe.activation == "swiglu"
        self.expand = nn.Linear(recipe.n_embd, recipe.mlp_hidden * (2 if self.gated else 1), bias=recipe.bias)
        self.down = nn.Linear(recipe.mlp_hidden, recipe.n_embd, bias=recipe.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return self.down(swiglu(self.expand(x)))
        return self.down(F.gelu(self.expand(x), approximate="tanh"))


class RMSNorm(nn.Module):
    """Each position scaled to a mean square of 1, then by a weight.  (..., C) -> (..., C)"""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def normalization(recipe: ModelRecipe) -> nn.Module:
    if recipe.normalization == "rmsnorm":
        return RMSNorm(recipe.n_embd, recipe.norm_eps)
    return nn.LayerNorm(recipe.n_embd, eps=recipe.norm_eps, bias=recipe.bias)


def rotary_table(recipe: ModelRecipe) -> Tensor:
    """Cosines and sines of each position's angles, in float32.  (2, block_size, D/2)"""
    D = recipe.n_embd // recipe.n_head
    frequencies = recipe.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)
    angles = torch.outer(torch.arange(recipe.block_size, dtype=torch.float32), frequencies)
    return torch.stack([angles.cos(), angles.sin()])


class KeyValueCache:
    """Keys and values of the positions seen so far, so that a new token costs one position."""

    def __init__(self, recipe: ModelRecipe, sequences: int, dtype: torch.dtype, device: torch.device) -> None:
        D = recipe.n_embd // recipe.n_head
        shape = (recipe.n_layer, 2, sequences, recipe.n_head, recipe.block_size, D)
        self.room = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def extended(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all of them.  (B, H, T, D) -> (B, H, length + T, D)"""
        last = self.length + k.shape[2]
        self.room[layer, 0, :, :, self.length : last] = k
        self.room[layer, 1, :, :, self.length : last] = v
        return self.room[layer, 0, :, :, :last], self.room[layer, 1, :, :, :last]
