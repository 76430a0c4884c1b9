"""GPT-2, classic and modern, in the order of its forward pass.

B sequences, T positions, C width, H heads, D width of a head (C = H x D), V padded vocabulary.

The recipe selects each part independently: positions, activation, normalization, biases, tied head, dropout. All
classic parts together are GPT-2; all modern parts together are Llama.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regpt.model.elementwise import rms_norm, rotary_heads, split_heads, swiglu
from regpt.model.loss import LossOptions, cap, mean_loss, token_losses, token_losses_and_best
from regpt.recipe.architecture import ModelRecipe


class SharedPrefix(NamedTuple):
    """Layout of rows that pack several continuations after one shared prefix.

    A segment attends to the prefix and to itself, so that a context is computed once for all its continuations.
    """

    positions: Tensor  # (B, T), position of each token in its own sequence: prefix and segment
    segments: Tensor  # (B, T), 0 in the prefix, then 1, 2 …; -1 in padding

    def mask(self) -> Tensor:
        """Return the attention mask: whether a query (second to last) attends to a key (last).  (B, 1, T, T)"""
        T = self.segments.shape[1]
        before = torch.ones(T, T, dtype=torch.bool, device=self.segments.device).tril()
        same = self.segments[:, :, None] == self.segments[:, None, :]
        in_prefix = self.segments[:, None, :] == 0
        return (before & (same | in_prefix))[:, None]


class GPT(nn.Module):
    """GPT-2: from tokens to a mean loss, a loss per token, or logits."""

    # Methods besides `forward` that run a complete pass: a sharded model must gather its parameters around each.
    FORWARD_METHODS = ("losses", "losses_at", "losses_and_best_at", "next_logits")

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
        self.activation_checkpointing = False  # recompute the blocks in the backward pass
        self.loss_options = LossOptions()

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the mean loss over all targets, nats per token; without targets, the logits of every next token.

        (B, T), (B, T) -> (); without targets (B, T) -> (B, T, V)
        """
        hidden = self.hidden(tokens)
        if targets is None:
            return self.logits(hidden)
        return mean_loss(hidden.flatten(0, 1), self.head_weight, targets.flatten(), self.loss_options)

    @torch.no_grad()
    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each target, nats, without gradient.  (B, T), (B, T) -> (B, T)"""
        hidden = self.hidden(tokens)
        softcap = self.loss_options.softcap
        return token_losses(hidden.flatten(0, 1), self.head_weight, targets.flatten(), softcap).view_as(targets)

    @torch.no_grad()
    def losses_at(self, tokens: Tensor, prefix: SharedPrefix, target_positions: Tensor, targets: Tensor) -> Tensor:
        """Return losses, nats, of selected targets: `targets[i]` follows the token at `target_positions[i]`.

        Positions index the flattened rows.  (B, T), layout of (B, T), (M), (M) -> (M)
        """
        hidden = self.hidden_at(tokens, prefix, target_positions)
        return token_losses(hidden, self.head_weight, targets, self.loss_options.softcap)

    @torch.no_grad()
    def losses_and_best_at(
        self, tokens: Tensor, prefix: SharedPrefix, target_positions: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses as `losses_at`, and whether each target is the most likely token.  … -> (M), (M)"""
        hidden = self.hidden_at(tokens, prefix, target_positions)
        return token_losses_and_best(hidden, self.head_weight, targets, self.loss_options.softcap)

    def hidden_at(self, tokens: Tensor, prefix: SharedPrefix, target_positions: Tensor) -> Tensor:
        """Return hidden states at selected positions.  (B, T), layout of (B, T), (M) -> (M, C)"""
        return self.hidden(tokens, prefix=prefix).flatten(0, 1)[target_positions]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the next token; materializes them, so use it for few positions.  (..., C) -> (..., V)"""
        return cap(F.linear(hidden, self.head_weight), self.loss_options.softcap)

    def next_logits(self, tokens: Tensor, cache: "KeyValueCache") -> Tensor:
        """Return the logits after the last token; the tokens follow those in the cache.  (B, T) -> (B, V)"""
        return self.logits(self.hidden(tokens, cache)[:, -1])

    def hidden(
        self, tokens: Tensor, cache: "KeyValueCache | None" = None, prefix: SharedPrefix | None = None
    ) -> Tensor:
        """Return the final hidden states, the head's input. With a cache, `tokens` follow those that it holds.

        (B, T) -> (B, T, C)
        """
        first = cache.length if cache else 0
        last = first + tokens.shape[1]
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            positions = prefix.positions if prefix else torch.arange(first, last, device=tokens.device)
            x = x + self.position_embedding(positions)
        x = self.dropout(x)
        rotations, mask = None, prefix.mask() if prefix else None
        if self.rotations is not None:  # with a prefix each row has its own: (2, B, 1, T, D/2)
            rotations = self.rotations[:, prefix.positions][:, :, None] if prefix else self.rotations[:, first:last]
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
        """Set all weights to their initial values."""
        with torch.no_grad():
            for parameter, drawn in zip(self.parameters(), self.initial_weights(seed), strict=True):
                parameter.copy_(drawn)

    def initial_weights(self, seed: int) -> Iterator[Tensor]:
        """Yield each parameter's full initial values, in the order of the forward pass.

        Matrices: normal(0, init_std), residual projections scaled by (2 n_layer)^-0.5. Biases 0, norms 1. Drawn on
        the CPU, so that a seed gives the same weights on every device.
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
    """Pre-norm transformer block: attention and MLP, each added to the residual stream.  (B, T, C) -> (B, T, C)"""

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
    """Causal multi-head self-attention.  (B, T, C) -> (B, T, C)"""

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
            k, v = cache.append(layer, k, v)
        # T queries attend to T keys, or with a filled cache one query to all keys before it.
        dropout = self.dropout if self.training else 0.0
        causal = mask is None and T > 1
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.out(mixed.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Position-wise feed-forward: expand, activate, project.  (B, T, C) -> (B, T, C)

    With SwiGLU, the rows of `expand` are those of the gate, then those of the value.
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
    """Scale each position to a mean square of 1, then by a weight.  (..., C) -> (..., C)"""

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
    """Return cosines and sines of the rotary angles of each position, in float32.  (2, block_size, D/2)"""
    D = recipe.n_embd // recipe.n_head
    frequencies = recipe.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)
    angles = torch.outer(torch.arange(recipe.block_size, dtype=torch.float32), frequencies)
    return torch.stack([angles.cos(), angles.sin()])


class KeyValueCache:
    """Keys and values of earlier positions, so that a new token costs one position."""

    def __init__(self, recipe: ModelRecipe, sequences: int, dtype: torch.dtype, device: torch.device) -> None:
        D = recipe.n_embd // recipe.n_head
        shape = (recipe.n_layer, 2, sequences, recipe.n_head, recipe.block_size, D)
        self.buffer = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all of them.  (B, H, T, D) -> (B, H, length + T, D)"""
        last = self.length + k.shape[2]
        self.buffer[layer, 0, :, :, self.length : last] = k
        self.buffer[layer, 1, :, :, self.length : last] = v
        return self.buffer[layer, 0, :, :, :last], self.buffer[layer, 1, :, :, :last]
