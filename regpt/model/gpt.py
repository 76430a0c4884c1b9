"""GPT-2, classic and modern, in the order of its forward pass.

B sequences, T positions, C width, H heads, K heads of keys and values (K = H in the recorded models), D width of a head
(C = H x D), V padded vocabulary.

The recipe selects each part independently: positions, activation, normalization, biases, tied head, dropout. All
classic parts together are GPT-2; all modern parts together are Llama. Later improvements are switches that are off in
both: shortcuts.py, masks.py and initialization.py hold most of what they do.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regpt.data.tokenizer import END_OF_TEXT
from regpt.machine.products import Linear, linear
from regpt.model.cache import KeyValueCache
from regpt.model.elementwise import ACTIVATIONS, rms_norm, rotary_heads, split_heads, unit_rms
from regpt.model.initialization import initial_weights
from regpt.model.loss import LossOptions, cap, mean_loss, product_dtype, token_losses, token_losses_and_best
from regpt.model.masks import SharedPrefix, additive, attend, document_blocks, document_numbers, same_document
from regpt.model.moe import MixtureOfExperts
from regpt.model.rotary import rotary_table
from regpt.model.shortcuts import Shortcuts, ValueSources, has_shortcuts, mixed_values
from regpt.recipe.architecture import ModelRecipe


class BlockInputs(NamedTuple):
    """What a block reads besides the residual stream."""

    rotations: Tensor | None  # (2, T, D), or (2, B, 1, T, D) where each row has positions of its own
    mask: Any = None  # of `masks.attend`; None: causal
    cached: tuple[KeyValueCache, int] | None = None  # with the number of the block
    values: ValueSources | None = None


class GPT(nn.Module):
    """GPT-2: from tokens to a mean loss, a loss per token, or logits."""

    # Methods besides `forward` that run a complete pass: a sharded model must gather its parameters around each.
    FORWARD_METHODS = ("losses", "losses_at", "losses_and_best_at", "next_logits", "all_logits")

    rotations: Tensor | None  # (2, block_size, D); not a parameter, not saved

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.end_of_text = END_OF_TEXT  # begins a document, for `document_mask`; other tokenizers have another one
        self.token_embedding = nn.Embedding(recipe.vocab_size, recipe.n_embd)
        self.position_embedding = (
            nn.Embedding(recipe.block_size, recipe.n_embd) if recipe.positions == "learned" else None
        )
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(recipe.n_layer))
        self.final_norm = normalization(recipe)
        self.head = None if recipe.tied_head else nn.Linear(recipe.n_embd, recipe.vocab_size, bias=False)
        self.head_product: nn.Module | None = None  # computes the logits of few positions, by `generation/half_weights`
        self.shortcuts = Shortcuts(recipe) if has_shortcuts(recipe) else None
        self.dropout = dropout(recipe)
        rotations = rotary_table(recipe) if recipe.positions == "rope" else None
        self.register_buffer("rotations", rotations, persistent=False)
        self.activation_checkpointing = False  # recompute the blocks in the backward pass
        self.loss_options = LossOptions(softcap=recipe.logit_softcap, z_weight=recipe.z_loss)

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
        logits = linear(hidden, self.head_weight) if self.head_product is None else self.head_product(hidden)
        return cap(logits, self.loss_options.softcap)

    def next_logits(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Return the logits after the last token; the tokens follow those in the cache.  (B, T) -> (B, V)"""
        return self.logits(self.hidden(tokens, cache)[:, -1])

    def all_logits(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Return the logits after each token; the tokens follow those in the cache.  (B, T) -> (B, T, V)"""
        return self.logits(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: KeyValueCache | None = None, prefix: SharedPrefix | None = None) -> Tensor:
        """Return the final hidden states, the head's input. With a cache, `tokens` follow those that it holds.

        (B, T) -> (B, T, C)
        """
        positions = cache.begin(tokens.shape[1]) if cache else prefix.positions if prefix else None
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            plain = torch.arange(tokens.shape[1], device=tokens.device)
            x = x + self.position_embedding(plain if positions is None else positions)
        if self.recipe.embedding_norm:
            x = unit_rms(x, self.recipe.norm_eps)
        x = embedded = self.dropout(x)
        rotations, mask = None, self.attention_mask(tokens, cache, prefix)
        if self.rotations is not None:
            plain = self.rotations[:, : tokens.shape[1]]
            rotations = plain if positions is None else self.rotations[:, positions][:, :, None]
            rotations = rotations.to(product_dtype(x))  # here once, instead of in each block
        first_values = None
        for layer, block in enumerate(self.blocks):
            inputs = BlockInputs(rotations, mask, (cache, layer) if cache else None)
            if self.shortcuts is not None:
                x = self.shortcuts.residual(layer, x, embedded)
                inputs = inputs._replace(values=self.shortcuts.value_sources(layer, tokens, first_values))
            if self.activation_checkpointing and torch.is_grad_enabled():
                x, values = checkpoint(block, x, inputs, use_reentrant=False)
            else:
                x, values = block(x, inputs)
            first_values = values if first_values is None else first_values
        if cache:
            cache.advance()
        return self.final_norm(x)

    def attention_mask(self, tokens: Tensor, cache: KeyValueCache | None, prefix: SharedPrefix | None) -> Any:
        """Return the mask of `masks.attend` for all blocks; None where each token sees all earlier ones."""
        if cache:
            return self.cached_mask(tokens, cache)
        visible = prefix.visible() if prefix else None
        if not self.recipe.document_mask:
            return None if visible is None else visible[:, None]
        documents = document_numbers(tokens, visible, self.end_of_text)
        if tokens.is_cuda and torch.compiler.is_compiling() and not (prefix or self.recipe.dropout):
            return document_blocks(documents)
        return additive(same_document(documents, documents, visible), product_dtype(self.token_embedding.weight))

    def cached_mask(self, tokens: Tensor, cache: KeyValueCache) -> Tensor | None:
        """Return the mask of tokens that follow those in a cache; None where each token sees all earlier ones."""
        visible = cache.visible()
        if self.recipe.document_mask:
            documents, known = cache.append_documents(document_numbers(tokens, None, self.end_of_text))
            visible = same_document(documents, known, visible)
        return None if visible is None else additive(visible, cache.buffer.dtype)

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
        """Yield each parameter's full initial values, in the order of the parameters."""
        return initial_weights(self, self.recipe, seed)


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each added to the residual stream."""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.attention_norm = normalization(recipe)
        self.attention = Attention(recipe)
        self.mlp_norm = normalization(recipe)
        self.mlp: nn.Module = MLP(recipe)
        if recipe.experts:
            self.mlp = MixtureOfExperts(recipe, shared=self.mlp if recipe.shared_experts else None)
        self.dropout = dropout(recipe)

    def forward(self, x: Tensor, inputs: BlockInputs) -> tuple[Tensor, Tensor]:
        """Return the residual stream and the attention's values.  (B, T, C) -> (B, T, C), (B, K, T, D)"""
        mixed, values = self.attention(self.attention_norm(x), inputs)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.mlp_norm(x))), values


class Attention(nn.Module):
    """Causal multi-head self-attention; heads of queries may share one of keys and values."""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.qkv = Linear(recipe.n_embd, recipe.qkv_width, bias=recipe.has_qkv_bias)
        self.out = Linear(recipe.attention_width, recipe.n_embd, bias=recipe.bias)

    def forward(self, x: Tensor, inputs: BlockInputs) -> tuple[Tensor, Tensor]:
        """Return the output and the values.  (B, T, C) -> (B, T, C), (B, K, T, D)"""
        heads = self.recipe.n_head, self.recipe.kv_heads
        if inputs.rotations is not None:
            q, k, v = rotary_heads(self.qkv(x), *heads, *inputs.rotations)  # (B, H, T, D), two (B, K, T, D)
        else:
            q, k, v = split_heads(self.qkv(x), *heads)
        values = v
        if self.recipe.qk_norm:  # after the rotation, which changes no norm
            q, k = unit_rms(q, self.recipe.norm_eps), unit_rms(k, self.recipe.norm_eps)
        if inputs.values is not None:
            v = mixed_values(v, x, inputs.values)
        if inputs.cached is not None:
            cache, layer = inputs.cached
            k, v = cache.append(layer, k, v)
        mixed = attend(q, k, v, inputs.mask, self.recipe.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2)), values


class MLP(nn.Module):
    """Position-wise feed-forward: expand, activate, project.  (B, T, C) -> (B, T, C)

    With SwiGLU, the rows of `expand` are those of the gate, then those of the value.
    """

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.expand = Linear(recipe.n_embd, recipe.expanded_width, bias=recipe.bias)
        self.activate = ACTIVATIONS[recipe.activation]
        self.down = Linear(recipe.mlp_hidden, recipe.n_embd, bias=recipe.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activate(self.expand(x)))


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


def dropout(recipe: ModelRecipe) -> nn.Module:
    return nn.Dropout(recipe.dropout) if recipe.dropout else nn.Identity()
