"""Muon: momentum whose update of each matrix is orthogonalized.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. Momentum, weight decay and factors follow
`torch.optim.Muon`, which updates one matrix at a time, always in bfloat16 and whole on every rank.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from regpt.distributed.dtensor import shard_like, to_local
from regpt.machine.products import by_rows, is_faster
from regpt.optimizer.adam import cautious_decay_
from regpt.optimizer.base import Optimizer
from regpt.optimizer.exchange import Exchange
from regpt.recipe.optimization import OptimizerRecipe

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: the largest slope at 0
EPS = 1e-7
BATCH_ELEMENTS = 1 << 25  # of the parameters that a rank orthogonalizes at once: bounds the memory of a step
MOMENTUM, ROW_MOMENT = "momentum_buffer", "row_moment"  # in the state of a parameter


Stacked = tuple[int, ...]  # relative heights of the matrices that a parameter stacks by rows


class Muon(Optimizer):
    """Muon for the groups that `make_optimizer` makes; a parameter has two dimensions, or three: a batch of matrices.

    `stacked` of a group holds, per parameter, the relative heights of the matrices that it stacks by rows.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], settings: OptimizerRecipe, exchange: Exchange) -> None:
        super().__init__([{**group, "momentum": settings.muon_momentum} for group in groups])
        self.settings, self.exchange = settings, exchange

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient. All ranks that share the work call this."""
        for group in self.param_groups:
            for stacked, parameters in batches(group, self.exchange.ranks):
                self.update(group, stacked, parameters)

    def update(self, group: dict[str, Any], stacked: Stacked, parameters: Sequence[nn.Parameter]) -> None:
        """Update parameters of one shape."""
        shape = parameters[0].shape
        own = self.exchange.collect([self.nesterov(parameter, group["momentum"]) for parameter in parameters], shape)
        directions = [orthogonalize(part, self.settings.newton_schulz_steps) for part in split(own, stacked)]
        del own
        if self.settings.normuon:
            directions = self.normalize_rows(directions, parameters, stacked)
        for part in directions:
            part.mul_(shape_factor(part, self.settings))
        joined = join(directions, shape)
        del directions
        results = self.exchange.distribute(joined, len(parameters))
        for parameter, direction in zip(parameters, results, strict=True):
            weight, rate = to_local(parameter), group["lr"]
            if self.settings.cautious_weight_decay and group["weight_decay"]:
                cautious_decay_(weight, direction, rate * group["weight_decay"])
            else:
                weight.mul_(1 - rate * group["weight_decay"])
            weight.sub_(direction, alpha=rate)

    def nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Update the mean of gradients; return this rank's rows of the update, in the precision of the products."""
        state = self.state[parameter]
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        gradient, mean = to_local(parameter.grad), to_local(state[MOMENTUM])
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum).to(precision_of_products(gradient.device))

    def normalize_rows(
        self, directions: Sequence[Tensor], parameters: Sequence[nn.Parameter], stacked: Stacked
    ) -> list[Tensor]:
        """Divide each row by the root of the mean of its mean squares; a matrix gets the norm of an orthogonal one.

        Source: NorMuon (Li et al. 2025, arXiv 2510.05491, algorithm 1). With muon_scale = "match_rms_adamw" the update
        is that of the paper: its root mean square is 0.2 x the learning rate.  Each (n, rows, columns) -> the same
        """
        for parameter in parameters:
            state, local = self.state[parameter], to_local(parameter)
            if ROW_MOMENT not in state:
                state[ROW_MOMENT] = shard_like(parameter, local.new_zeros((*local.shape[:-1], 1)))
        rows = [to_local(self.state[parameter][ROW_MOMENT]) for parameter in parameters]
        shape = torch.Size([*parameters[0].shape[:-1], 1])
        own = self.exchange.collect(rows, shape)
        squares = join([part.float().square().mean(dim=-1, keepdim=True) for part in directions], shape)
        own.lerp_(squares, 1 - self.settings.normuon_beta2)
        for row, new in zip(rows, self.exchange.distribute(own, len(parameters)), strict=True):
            row.copy_(new)
        return [normalized(part, moments) for part, moments in zip(directions, split(own, stacked), strict=True)]


def normalized(direction: Tensor, moments: Tensor) -> Tensor:
    """Divide rows by the roots of their moments, then give each matrix the norm of an orthogonal one."""
    exact = direction.float() / (moments.sqrt() + EPS)
    norm_of_orthogonal = min(direction.shape[-2:]) ** 0.5
    return (exact * (norm_of_orthogonal / frobenius_norm(exact).clamp(min=EPS))).to(direction.dtype)


def batches(group: dict[str, Any], ranks: int) -> Iterator[tuple[Stacked, list[nn.Parameter]]]:
    """Yield (heights of stacked matrices, parameters of one shape that have a gradient), in a fixed order."""
    alike: dict[tuple[torch.Size, Stacked], list[nn.Parameter]] = {}
    for parameter, stacked in zip(group["params"], group["stacked"], strict=True):
        if parameter.grad is not None:
            alike.setdefault((parameter.shape, stacked), []).append(parameter)
    for (shape, stacked), parameters in alike.items():
        size = batch_size(shape.numel(), ranks)
        for first in range(0, len(parameters), size):
            yield stacked, parameters[first : first + size]


def batch_size(elements: int, ranks: int) -> int:
    """Return how many parameters of a number of elements `ranks` ranks orthogonalize at once."""
    return ranks * max(1, BATCH_ELEMENTS // elements)


def split(parameters: Tensor, stacked: Stacked) -> list[Tensor]:
    """Return the matrices that parameters stack by rows; neighbours of one height are one batch.

    (n, …, rows, columns) -> each (n x … x matrices, rows of a matrix, columns)
    """
    unit = parameters.shape[-2] // sum(stacked)
    runs = [(height * unit, len(list(equal))) for height, equal in groupby(stacked)]
    parts = parameters.split([rows * count for rows, count in runs], dim=-2)
    return [part.reshape(-1, rows, part.shape[-1]) for part, (rows, _) in zip(parts, runs, strict=True)]


def join(parts: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Stack the results of `split` for parameters of a shape again.  -> (n, *shape)"""
    rows, columns = shape[-2:]
    stacks = sum(part.shape[0] * part.shape[1] for part in parts) // rows
    if not stacks:  # a rank beyond the number of matrices owns none
        return parts[0].new_empty((0, *shape))
    tall = [part.reshape(stacks, -1, columns) for part in parts]
    return (tall[0] if len(tall) == 1 else torch.cat(tall, dim=1)).reshape(-1, *shape)


def precision_of_products(device: torch.device) -> torch.dtype:
    """Return bfloat16 for a GPU, which the iteration tolerates, and float32 for a CPU, where bfloat16 may be slow."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def orthogonalize(updates: Tensor, steps: int) -> Tensor:
    """Return nearly orthogonal matrices with the singular vectors of `updates`; singular values are 0.7 to 1.2.

    Newton-Schulz iteration of Jordan et al., in the precision of `updates`.  (n, rows, columns) -> the same
    """
    a, b, c = COEFFICIENTS
    is_tall = updates.shape[-2] > updates.shape[-1]
    x = updates.mT if is_tall else updates
    x = x / frobenius_norm(updates).clamp(min=EPS).to(x.dtype)
    if is_faster(x, x):
        x = torch.stack([orthogonalize_by_rows(one, steps) for one in x])
        return x.mT if is_tall else x
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x


def orthogonalize_by_rows(x: Tensor, steps: int) -> Tensor:
    """Compute the same iteration for one wide matrix by `machine.products`.  (rows, columns) -> the same"""
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = by_rows(x, x)
        polynomial = by_rows(gram, gram).mul_(c).add_(gram, alpha=b)  # gram is symmetric
        x = by_rows(polynomial, x.t()).add_(x, alpha=a)
    return x


def frobenius_norm(updates: Tensor) -> Tensor:
    """Return norms in float32, summed by row: torch's sum over a large tensor on a CPU is imprecise.  -> (n, 1, 1)"""
    rows = torch.linalg.vector_norm(updates, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.linalg.vector_norm(rows, dim=-2, keepdim=True)


def shape_factor(updates: Tensor, settings: OptimizerRecipe) -> float:
    """Return the factor of the learning rate by the matrices' shape: `optimizer.muon_scale`."""
    rows, columns = updates.shape[-2:]
    if settings.muon_scale == "original":
        return max(1.0, rows / columns) ** 0.5
    return 0.2 * max(rows, columns) ** 0.5
