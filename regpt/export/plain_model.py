"""A regpt model in plain PyTorch, without regpt: the file that an exported directory of a model of its own holds.

B sequences, T new positions, S positions with the cache, C width, H heads of queries, K of keys and values, D width of
a head, V vocabulary, N tokens. The parameters have regpt's names. `settings` has the entries of [model] of the recipe.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Stores the new keys and values of a layer and returns all of them.
Store = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


class PlainModel(nn.Module):
    """From tokens to logits."""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        L, V, C = settings.n_layer, settings.vocab_size, settings.n_embd
        self.token_embedding = nn.Embedding(V, C)
        self.position_embedding = nn.Embedding(settings.block_size, C) if settings.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(settings) for _ in range(L))
        self.final_norm = norm_of(settings)
        self.head = None if settings.tied_head else nn.Linear(C, V, bias=False)
        has_shortcuts = settings.residual_scalars or settings.value_residual or settings.value_embeddings
        self.shortcuts = Shortcuts(settings) if has_shortcuts else None

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, visible: Tensor | None = None, store: Store | None = None
    ) -> Tensor:
        """Return the logits after each token.  (B, T) -> (B, T, V)

        Args:
            positions: of the tokens (B, T); None: from 0
            visible: which positions each token sees (B, 1, T, S); None: all earlier ones and itself
            store: keeps keys and values of earlier calls
        """
        x = self.hidden(tokens, positions, visible, store)
        logits = F.linear(x, self.token_embedding.weight if self.head is None else self.head.weight)
        cap = self.settings.logit_softcap
        return cap * (logits / cap).tanh() if cap else logits

    def hidden(self, tokens: Tensor, positions: Tensor | None, visible: Tensor | None, store: Store | None) -> Tensor:
        """Return the input of the head.  (B, T) -> (B, T, C)"""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        if self.settings.embedding_norm:
            x = unit_rms(x, self.settings.norm_eps)
        embedded, first_values = x, None
        angles = rotary_angles(self.settings, positions) if self.settings.positions == "rope" else None
        for layer, block in enumerate(self.blocks):
            add_values = None
            if self.shortcuts is not None:
                x = self.shortcuts.residual(layer, x, embedded)
                add_values = self.shortcuts.adder(layer, tokens, first_values)
            keep = None if store is None else LayerStore(store, layer)
            x, values = block(x, angles, visible, keep, add_values)
            first_values = values if first_values is None else first_values
        normed: Tensor = self.final_norm(x)
        return normed


class LayerStore:
    """A store for one layer."""

    def __init__(self, store: Store, layer: int) -> None:
        self.store, self.layer = store, layer

    def __call__(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.store(self.layer, k, v)


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.attention_norm, self.attention = norm_of(settings), Attention(settings)
        self.mlp_norm, self.mlp = norm_of(settings), mlp_of(settings)

    def forward(
        self, x: Tensor, angles: Tensor | None, visible: Tensor | None, keep: Any, add_values: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the residual stream and the values of attention.  (B, T, C) -> (B, T, C), (B, K, T, D)"""
        mixed, values = self.attention(self.attention_norm(x), angles, visible, keep, add_values)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), values


class Attention(nn.Module):
    """Causal attention; heads of queries may share one of keys and values."""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.D = settings.head_dim or settings.n_embd // settings.n_head
        self.H, self.K = settings.n_head, settings.n_kv_head or settings.n_head
        self.qkv = nn.Linear(settings.n_embd, (self.H + 2 * self.K) * self.D, bias=settings.bias or settings.qkv_bias)
        self.out = nn.Linear(self.H * self.D, settings.n_embd, bias=settings.bias)

    def forward(
        self, x: Tensor, angles: Tensor | None, visible: Tensor | None, keep: Any, add_values: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the values.  (B, T, C) -> (B, T, C), (B, K, T, D)"""
        heads = self.qkv(x).unflatten(-1, (-1, self.D)).transpose(1, 2)  # (B, H + 2K, T, D)
        q, k, v = heads.split([self.H, self.K, self.K], dim=1)
        values = v
        if angles is not None:
            q, k = rotated(q, angles), rotated(k, angles)
        if self.settings.qk_norm:
            q, k = unit_rms(q, self.settings.norm_eps), unit_rms(k, self.settings.norm_eps)
        if add_values is not None:
            v = add_values(v, x)
        if keep is not None:
            k, v = keep(k, v)
        shared = self.H // self.K
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        is_causal = visible is None and q.shape[2] > 1
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=is_causal)
        return self.out(mixed.transpose(1, 2).flatten(2)), values


def rotary_angles(settings: Any, positions: Tensor) -> Tensor:
    """Return the angles of rotary positions, in float32.  (B, T) -> (B, 1, T, D/2)"""
    D = settings.head_dim or settings.n_embd // settings.n_head
    frequencies = settings.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float32, device=positions.device) / D)
    if settings.rope_scaling == "llama3":
        turns = settings.rope_original_block_size * frequencies / (2 * torch.pi)
        low, high = settings.rope_low_frequency_factor, settings.rope_high_frequency_factor
        kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        frequencies = frequencies * (kept + (1.0 - kept) / settings.rope_factor)
    return positions.float()[:, None, :, None] * frequencies


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate elements i and i + D/2 of each head.  (B, H, T, D) -> (B, H, T, D)"""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def activated(kind: str, x: Tensor) -> Tensor:
    if kind == "swiglu":
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value
    return F.gelu(x, approximate="tanh") if kind == "gelu" else F.relu(x).square()


def expanded_width(settings: Any) -> int:
    width: int = settings.mlp_hidden * (2 if settings.activation == "swiglu" else 1)
    return width


def mlp_of(settings: Any) -> nn.Module:
    return MixtureOfExperts(settings) if settings.experts else MLP(settings)


class MLP(nn.Module):
    """Expand, activate, project.  (..., C) -> (..., C)"""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.activation = settings.activation
        self.expand = nn.Linear(settings.n_embd, expanded_width(settings), bias=settings.bias)
        self.down = nn.Linear(settings.mlp_hidden, settings.n_embd, bias=settings.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(activated(self.activation, self.expand(x)))
        return y


class ExpertLinear(nn.Module):
    """The matrices of all experts."""

    def __init__(self, experts: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, width_out, width_in))


class MixtureOfExperts(nn.Module):
    """The best experts of each token, weighted by the router, plus the shared expert.  (B, T, C) -> (B, T, C)"""

    balance: Tensor  # (E), added to the scores where experts are chosen

    def __init__(self, settings: Any) -> None:
        super().__init__()
        E, C = settings.experts, settings.n_embd
        self.activation, self.per_token = settings.activation, settings.experts_per_token
        self.router = nn.Linear(C, E, bias=False)
        self.expand = ExpertLinear(E, C, expanded_width(settings))
        self.down = ExpertLinear(E, settings.mlp_hidden, C)
        self.shared = MLP(settings) if settings.shared_experts else None
        self.register_buffer("balance", torch.zeros(E))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)  # (N, C)
        scores = self.router(tokens).float().sigmoid()  # (N, E)
        chosen = (scores + self.balance).topk(self.per_token, dim=1).indices
        weights = scores.gather(1, chosen)
        if self.per_token > 1:
            weights = weights / weights.sum(1, keepdim=True)
        mixed = torch.zeros(tokens.shape, device=x.device, dtype=torch.float32)
        for expert in range(len(self.balance)):
            row, place = (chosen == expert).nonzero(as_tuple=True)
            inner = activated(self.activation, F.linear(tokens[row], self.expand.weight[expert]))
            mixed[row] += weights[row, place, None] * F.linear(inner, self.down.weight[expert])
        mixed = mixed.to(x.dtype)
        if self.shared is not None:
            mixed = mixed + self.shared(tokens)
        return mixed.view(x.shape)


class Shortcuts(nn.Module):
    """What the blocks get besides the residual stream: the embedding, the first values, embeddings of values."""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        L, C = settings.n_layer, settings.n_embd
        K = settings.n_kv_head or settings.n_head
        D = settings.head_dim or C // settings.n_head
        self.residual_scale = nn.Parameter(torch.ones(L)) if settings.residual_scalars else None
        self.embedding_scale = nn.Parameter(torch.zeros(L)) if settings.residual_scalars else None
        self.value_share = nn.Parameter(torch.full((L,), 0.5)) if settings.value_residual else None
        layers = [str(layer) for layer in range((L - 1) % 2, L if settings.value_embeddings else 0, 2)]
        self.value_embeddings = nn.ParameterDict({n: torch.zeros(settings.vocab_size, K * D) for n in layers})
        self.value_gates = nn.ParameterDict({n: torch.zeros(K, min(settings.gate_channels, C)) for n in layers})

    def residual(self, layer: int, x: Tensor, embedded: Tensor) -> Tensor:
        if self.residual_scale is None or self.embedding_scale is None:
            return x
        return self.residual_scale[layer] * x + self.embedding_scale[layer] * embedded

    def adder(self, layer: int, tokens: Tensor, first: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function of the values (B, K, T, D) and the attention's input, that mixes others into the values."""

        def added(v: Tensor, x: Tensor) -> Tensor:
            if self.value_share is not None and first is not None:
                v = torch.lerp(v, first, self.value_share[layer].to(v.dtype))
            if str(layer) in self.value_embeddings:
                gate = self.value_gates[str(layer)]
                opened = 2.0 * torch.sigmoid(F.linear(x[..., : gate.shape[1]], gate))  # (B, T, K)
                embedded = F.embedding(tokens, self.value_embeddings[str(layer)])
                embedded = embedded.unflatten(-1, (v.shape[1], -1)).transpose(1, 2)
                v = v + opened.transpose(1, 2)[..., None] * embedded
            return v

        return added


class RMSNorm(nn.Module):
    """Scale each position to a mean square of 1, then by a weight.  (..., C) -> (..., C)"""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return unit_rms(x, self.eps) * self.weight


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps), computed in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)


def norm_of(settings: Any) -> nn.Module:
    if settings.normalization == "rmsnorm":
        return RMSNorm(settings.n_embd, settings.norm_eps)
    return nn.LayerNorm(settings.n_embd, eps=settings.norm_eps, bias=settings.bias)
