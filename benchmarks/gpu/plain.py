"""A plain GPT with the parts of gpt2-modern, written as nanoGPT writes its model: one graph, all logits at a time.

B sequences, T positions, C width, H heads, D width of a head. Parameters have the names of `regpt.model.gpt.GPT`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regpt.recipe.architecture import ModelRecipe


class PlainNorm(nn.Module):
    """RMSNorm.  (..., C) -> (..., C)"""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(recipe.n_embd))
        self.eps = recipe.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class PlainAttention(nn.Module):
    """Causal self-attention with RoPE.  (B, T, C) -> (B, T, C)"""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.heads = recipe.n_head
        self.qkv = nn.Linear(recipe.n_embd, 3 * recipe.n_embd, bias=False)
        self.out = nn.Linear(recipe.n_embd, recipe.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(C, dim=2))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).contiguous().view(B, T, C))


class PlainMLP(nn.Module):
    """SwiGLU.  (B, T, C) -> (B, T, C)"""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.expand = nn.Linear(recipe.n_embd, 2 * recipe.mlp_hidden, bias=False)
        self.down = nn.Linear(recipe.mlp_hidden, recipe.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class PlainBlock(nn.Module):
    """(B, T, C) -> (B, T, C)"""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = PlainNorm(recipe), PlainNorm(recipe)
        self.attention, self.mlp = PlainAttention(recipe), PlainMLP(recipe)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class PlainGPT(nn.Module):
    """Tokens to the mean loss, with the logits of all positions.  (B, T), (B, T) -> ()"""

    cos: Tensor  # (T, D/2)
    sin: Tensor

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        D = recipe.n_embd // recipe.n_head
        self.token_embedding = nn.Embedding(recipe.vocab_size, recipe.n_embd)
        self.blocks = nn.ModuleList(PlainBlock(recipe) for _ in range(recipe.n_layer))
        self.final_norm = PlainNorm(recipe)
        frequencies = recipe.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)
        angles = torch.outer(torch.arange(recipe.block_size, dtype=torch.float32), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.token_embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.final_norm(x), self.token_embedding.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE, in the split-half form of Llama.  (B, H, T, D), (T, D/2), (T, D/2) -> (B, H, T, D)"""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
