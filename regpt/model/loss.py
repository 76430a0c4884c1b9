"""The language-model head and its cross-entropy, chunk by chunk: the full logits matrix is never materialized.

N positions (B x T, flattened), n positions of a chunk, C width, V padded vocabulary.

The logits of 32 x 1,024 positions and 50,304 tokens take 6.6 GB in float32, and a plain loss keeps several copies.
Here the logits of a few hundred positions exist at a time. Their gradient is computed right after them, so the forward
pass also stores the gradients of the hidden states and of the weight, and the backward pass only scales them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regpt.model.chunks import CHUNK_LOGITS_ON_CPU, CHUNK_LOGITS_ON_GPU


@torch.compiler.disable  # type: ignore[untyped-decorator]  # chunks stay uncompiled; everything before them is one graph
def mean_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of softmax(hidden @ weight.T), nats per token.  (N, C), (V, C), (N) -> ()

    Products are computed in the autocast precision if autocast is on, sums in float32 (float64 for float64 inputs).
    """
    with_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss: Tensor = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, product_dtype(hidden), with_gradient
    )
    return loss


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy at each position, nats, without gradient.  (N, C), (V, C), (N) -> (N)"""
    head = Head(weight, product_dtype(hidden))
    return torch.cat(
        [head.losses(head.logits(rows), chunk_targets) for rows, chunk_targets in head.chunks(hidden, targets)]
    )


@torch.no_grad()
def token_losses_and_best(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropies, and whether each target is the most likely token.  (N, C), (V, C), (N) -> (N), (N)"""
    head = Head(weight, product_dtype(hidden))
    losses, best = [], []
    for rows, chunk_targets in head.chunks(hidden, targets):
        logits = head.logits(rows)
        best.append(logits.argmax(dim=1) == chunk_targets)
        losses.append(head.losses(logits, chunk_targets))
    return torch.cat(losses), torch.cat(best)


class ChunkedLoss(torch.autograd.Function):
    """The mean loss, whose gradients are computed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, with_gradient: bool
    ) -> Tensor:
        head = Head(weight, dtype)
        total = torch.zeros((), dtype=head.sum_dtype, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if with_gradient else None
        weight_gradient = torch.zeros_like(weight, dtype=head.sum_dtype) if with_gradient else None
        first = 0
        for rows, chunk_targets in head.chunks(hidden, targets):
            logits = head.logits(rows)
            total += head.losses(logits, chunk_targets).sum()
            if hidden_gradient is not None and weight_gradient is not None:
                # d loss / d logits = (softmax - one-hot of the target) / N, computed in place of the logits
                gradient = logits.mul_(1.0 / logits.sum(dim=1, keepdim=True))
                gradient.scatter_add_(1, chunk_targets[:, None], gradient.new_full((len(rows), 1), -1.0))
                gradient = gradient.to(dtype)
                hidden_gradient[first : first + len(rows)] = gradient @ head.weight
                add_product(weight_gradient, gradient.t(), rows.to(dtype))
                first += len(rows)
        if weight_gradient is not None:
            ctx.gradients = hidden_gradient, weight_gradient.to(weight.dtype), len(hidden)
        return total / len(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient, N = ctx.gradients
        del ctx.gradients
        scale = output_gradient / N
        return hidden_gradient.mul_(scale), weight_gradient.mul_(scale), None, None, None


class Head:
    """The head's weight in the precision of its products, and one buffer that all chunks reuse for logits."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype)
        self.sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        elements = CHUNK_LOGITS_ON_CPU if weight.device.type == "cpu" else CHUNK_LOGITS_ON_GPU
        rows = max(1, elements // weight.shape[0])
        self.rows = rows - rows % 64 if rows > 64 else rows  # whole tiles of a matrix product
        self.buffer: Tensor | None = None

    def chunks(self, hidden: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split inputs so that the logits of each chunk fit the buffer.  (N, C), (N) -> pairs of (n, C), (n)"""
        return list(zip(hidden.split(self.rows), targets.split(self.rows), strict=True))

    def logits(self, rows: Tensor) -> Tensor:
        """Compute logits into the buffer.  (n, C) -> (n, V)"""
        if self.buffer is None:
            self.buffer = torch.empty(len(rows), len(self.weight), dtype=self.sum_dtype, device=rows.device)
        logits = self.buffer[: len(rows)]
        if self.weight.dtype == self.sum_dtype:
            return torch.mm(rows.to(self.weight.dtype), self.weight.t(), out=logits)
        return logits.copy_(rows.to(self.weight.dtype) @ self.weight.t())

    @staticmethod
    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        """Return cross-entropies; overwrite the logits with exp(logits - maximum of the row).  (n, V), (n) -> (n)"""
        largest = logits.amax(dim=1, keepdim=True)
        target_logits = logits.gather(1, targets[:, None])
        total = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
        return (total.log() + largest - target_logits).squeeze(1)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, in the precision of `total`."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def product_dtype(hidden: Tensor) -> torch.dtype:
    """Return autocast's type where autocast is on and the inputs are not float64, else the type of the inputs."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return hidden.dtype
