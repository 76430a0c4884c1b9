"""A mixture of experts in place of the MLP: a router sends each token to a few of many MLPs, and no token is dropped.

N tokens (B x T, flattened), C width, E experts, k experts of a token, R = N x k rows, M hidden width of an expert.

Tokens are sorted by expert, so that the rows of an expert lie together and one grouped product computes all experts.
Shapes do not depend on how many rows an expert gets: torch.compile needs one graph, and gradients are sums of a fixed
order, because no row is added where another one is.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from regpt.machine.products import linear
from regpt.model.elementwise import ACTIVATIONS
from regpt.model.graphs import outside_graphs
from regpt.model.loss import product_dtype
from regpt.recipe.architecture import ModelRecipe

ALIGNMENT = 8  # torch's grouped product takes widths that are multiples of 16 bytes, in bfloat16
GROUPED_PRODUCTS: dict[str, bool] = {}  # whether torch has them, by kind of device


class MixtureOfExperts(nn.Module):
    """The k best experts of each token, weighted by the router, plus the shared expert.  (B, T, C) -> (B, T, C)

    Scores are sigmoids, and the weights of the chosen experts are their scores divided by the sum of them (DeepSeek-V3,
    arXiv 2412.19437, section 2.1.2). With one expert per token the weight is its score: the quotient would be 1, from
    which a router learns nothing.

    Experts get about equally many tokens by a bias that is added to the scores where experts are chosen, and nowhere
    else (Wang et al. 2024, arXiv 2408.15664): no loss term disturbs the gradient. `balance_experts` changes it.
    """

    balance: Tensor  # (E), the bias; a checkpoint saves it, no gradient changes it
    load: Tensor  # (E), rows of each expert in the last pass with gradients

    def __init__(self, recipe: ModelRecipe, shared: nn.Module | None) -> None:
        """`shared` is an MLP that every token passes."""
        super().__init__()
        self.activate, self.per_token = ACTIVATIONS[recipe.activation], recipe.experts_per_token
        self.router = nn.Linear(recipe.n_embd, recipe.experts, bias=False)
        self.expand = ExpertLinear(recipe.experts, recipe.n_embd, recipe.expanded_width)
        self.down = ExpertLinear(recipe.experts, recipe.mlp_hidden, recipe.n_embd)
        self.shared = shared
        self.register_buffer("balance", torch.zeros(recipe.experts))
        self.register_buffer("load", torch.zeros(recipe.experts, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2).to(product_dtype(x))  # (N, C)
        chosen, weights = self.route(tokens)
        order = chosen.flatten().argsort(stable=True)  # from rows by token to rows by expert
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        ends = end_rows(chosen.flatten()[order], len(self.balance))
        if torch.is_grad_enabled():  # set, not added: activation checkpointing computes it twice
            self.load.copy_(ends.diff(prepend=ends.new_zeros(1)))
        rows = RowsByExpert.apply(tokens, order, place)  # type: ignore[no-untyped-call]  # (R, C)
        rows = self.down(self.activate(self.expand(rows, ends)), ends)
        outputs = Permuted.apply(rows, place, order).view(*chosen.shape, -1)  # type: ignore[no-untyped-call]  # (N, k, C)
        mixed = (outputs * weights[..., None]).sum(1).to(rows.dtype)
        if self.shared is not None:
            mixed = mixed + self.shared(tokens)
        return mixed.view(x.shape)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts of each token and the weights of their outputs.  (N, C) -> (N, k), (N, k)

        Scores are computed in float32 at least.
        """
        logits = self.router(tokens)
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()  # (N, E)
        chosen = (scores.detach() + self.balance).topk(self.per_token, dim=1).indices
        weights = scores.gather(1, chosen)
        return chosen, weights / weights.sum(1, keepdim=True) if self.per_token > 1 else weights


class ExpertLinear(nn.Module):
    """A linear layer for each expert, whose weight (E, out, in) is a batch of matrices.  (R, in) -> (R, out)"""

    def __init__(self, experts: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width_out, width_in))
        nn.init.normal_(self.weight, std=width_in**-0.5)  # for a layer alone; a GPT draws its own

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        """`ends`: the last row + 1 of each expert; the rows are sorted by expert."""
        weight = self.weight.to(rows.dtype)
        is_aligned = not any(width % ALIGNMENT for width in weight.shape[1:])
        if is_aligned and weight.dtype == torch.bfloat16 and has_grouped_product(rows.device.type):
            return F.grouped_mm(rows, weight.transpose(1, 2), offs=ends.to(torch.int32))
        return product_by_expert(rows, weight, ends)


@outside_graphs  # its shapes change with every batch
def product_by_expert(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Compute one product per expert, where torch has no grouped product.  (R, in), (E, out, in), (E) -> (R, out)"""
    counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return torch.cat([linear(part, matrix) for part, matrix in zip(rows.split(counts), weight.unbind(), strict=True)])


def has_grouped_product(kind: str) -> bool:
    """Return whether torch computes grouped products of bfloat16 and their gradients on a kind of device.

    A graph contains the answer, which must be known before it is traced; without it, there is no grouped product in it.
    """
    if kind not in GROUPED_PRODUCTS and not torch.compiler.is_compiling():
        GROUPED_PRODUCTS[kind] = try_grouped_product(kind)
    return GROUPED_PRODUCTS.get(kind, False)


def try_grouped_product(kind: str) -> bool:
    """Compute a small grouped product with an expert that has no rows, and its gradients; return whether it works."""
    rows, weight = torch.ones(16, 16, device=kind).bfloat16(), torch.ones(2, 16, 16, device=kind).bfloat16()
    ends = torch.tensor([0, 16], device=kind, dtype=torch.int32)
    try:
        # The inner pair of hooks hides these tensors from those of activation checkpointing, which counts them.
        with torch.enable_grad(), saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            rows, weight = rows.requires_grad_(), weight.requires_grad_()
            product = F.grouped_mm(rows, weight.transpose(1, 2), offs=ends)
            product.backward(torch.ones_like(product))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return weight.grad is not None and weight.grad.sum(dim=(1, 2)).tolist() == [0.0, 16.0**3]


def end_rows(experts: Tensor, count: int) -> Tensor:
    """Return the last row + 1 of each expert, given the expert of each row, sorted.  (R) -> (E)"""
    return torch.searchsorted(experts, torch.arange(count, device=experts.device), right=True)


class RowsByExpert(torch.autograd.Function):
    """Copy each token once for each of its experts, sorted by expert.  (N, C), (R), (R) -> (R, C)

    Autograd's own gradient of an indexed tensor adds rows in any order on a GPU. This one adds the k rows of a token in
    the order of its experts.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.tokens = len(tokens)
        return tokens[order // (len(order) // len(tokens))]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return gradient[place].view(ctx.tokens, -1, gradient.shape[-1]).sum(1), None, None


class Permuted(torch.autograd.Function):
    """Permute rows: row i of the result is row `order[i]`; `inverse` is the inverse permutation.  (R, C) -> (R, C)"""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows[order]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient[inverse], None, None


# Load and balance


def mixtures(model: nn.Module) -> dict[str, MixtureOfExperts]:
    """Return a model's mixtures of experts by name, in the order of its layers; empty for a dense model."""
    return {name: part for name, part in model.named_modules() if isinstance(part, MixtureOfExperts)}


def balances(model: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint saves besides the parameters: the balance of each layer, by name."""
    return {f"{name}.balance": mixture.balance for name, mixture in mixtures(model).items()}


def expert_loads(model: nn.Module) -> Tensor | None:
    """Return the rows of each expert in the last pass with gradients, (layers, E); None for a dense model."""
    loads = [mixture.load for mixture in mixtures(model).values()]
    return torch.stack(loads) if loads else None


@torch.no_grad()
def balance_experts(model: nn.Module, loads: Tensor, rate: float) -> None:
    """Raise the balance of underloaded experts by `rate`, and lower that of overloaded ones (arXiv 2408.15664).

    `loads` are the rows of each expert in the whole batch, on all ranks.  (layers, E)
    """
    above_mean = loads * loads.shape[1] - loads.sum(1, keepdim=True)  # times E: exact in integers
    for mixture, load in zip(mixtures(model).values(), above_mean, strict=True):
        mixture.balance -= rate * load.sign().to(mixture.balance)
