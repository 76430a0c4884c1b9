"""nanoGPT's model and training step, written again from its description, with its defaults for a CPU.

Learned positions, LayerNorm and linear layers without biases, GELU, scaled_dot_product_attention, a tied head, and a
loss over the logits of all positions. The optimizer is torch.optim.AdamW as it comes on a CPU (nanoGPT asks for the
fused one on CUDA only), and nothing is compiled, as its README advises for a CPU. With bfloat16, forward pass and loss
run under autocast, which nanoGPT itself does on CUDA only.

B sequences, T positions, C width. Parameters have the names of `regpt.model.gpt.GPT`, so that both start from the same
weights.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regpt.recipe.architecture import ModelRecipe


class LayerNorm(nn.Module):
    """LayerNorm without a bias.  (..., C) -> (..., C)"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class Attention(nn.Module):
    """Causal self-attention.  (B, T, C) -> (B, T, C)"""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.heads = recipe.n_head
        self.qkv = nn.Linear(recipe.n_embd, 3 * recipe.n_embd, bias=False)
        self.out = nn.Linear(recipe.n_embd, recipe.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(C, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return cast(Tensor, self.out(mixed.transpose(1, 2).contiguous().view(B, T, C)))


class MLP(nn.Module):
    """Expand, GELU, project.  (B, T, C) -> (B, T, C)"""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.expand = nn.Linear(recipe.n_embd, recipe.mlp_hidden, bias=False)
        self.activate = nn.GELU()
        self.down = nn.Linear(recipe.mlp_hidden, recipe.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(self.activate(self.expand(x))))


class Block(nn.Module):
    """(B, T, C) -> (B, T, C)"""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = LayerNorm(recipe.n_embd), LayerNorm(recipe.n_embd)
        self.attention, self.mlp = Attention(recipe), MLP(recipe)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return cast(Tensor, x + self.mlp(self.mlp_norm(x)))


class NanoGPT(nn.Module):
    """Tokens and targets to the mean loss, or tokens to the logits of all positions.  (B, T), (B, T) -> ()"""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(recipe.vocab_size, recipe.n_embd)
        self.position_embedding = nn.Embedding(recipe.block_size, recipe.n_embd)
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(recipe.n_layer))
        self.final_norm = LayerNorm(recipe.n_embd)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self.logits(tokens)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)"""
        x = self.token_embedding(tokens) + self.position_embedding(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.final_norm(x), self.token_embedding.weight)


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """Return nanoGPT's optimizer on a CPU: tensors of two or more dimensions decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95))
