"""The language-model head and its cross-entropy, in pieces: the logits of a whole batch never exist.

N positions (B x T, flattened), C width, V padded vocabulary.

The logits of 32 x 1,024 positions and 50,304 tokens are 6.6 GB in float32, and a plain loss keeps them more than once.
Here a few hundred rows exist at a time. Their gradient is known as soon as they are, so the forward pass leaves the
gradients of the hidden states and of the weight behind, and the backward pass only scales them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits at a time. On the CPU 64 MiB in float32: more rows made products faster and sums slower. On a GPU 512 MiB,
# so that the weight's gradient is read and written a dozen times a micro-batch, not a hundred; reckoned, not measured.
PIECE_ELEMENTS = 1 << 24
PIECE_ELEMENTS_ON_GPU = 1 << 27


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the pieces stay as they are; what comes before them is compiled as one graph
def mean_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of softmax(hidden @ weight.T) against the targets, nats.  (N, C), (V, C), (N) -> ()

    Products in the autocast precision if autocast is on, sums in float32 (float64 for float64 inputs).
    """
    with_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss: Tensor = LossInPieces.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, product_dtype(hidden), with_gradient
    )
    return loss


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Each position's own cross-entropy, nats; no gradient.  (N, C), (V, C), (N) -> (N)"""
    head = Head(weight, product_dtype(hidden))
    return torch.cat([head.losses(head.logits(rows), t) for rows, t in head.pieces(hidden, targets)])


@torch.no_grad()
def token_losses_and_best(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and whether no other token is likelier.  (N, C), (V, C), (N) -> (N), (N)"""
    head = Head(weight, product_dtype(hidden))
    losses, best = [], []
    for rows, of_rows in head.pieces(hidden, targets):
        logits = head.logits(rows)
        best.append(logits.argmax(dim=1) == of_rows)
        losses.append(head.losses(logits, of_rows))
    return torch.cat(losses), torch.cat(best)


class LossInPieces(torch.autograd.Function):
    """The mean loss, with its gradients made in the forward pass, piece by piece."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, with_gradient: bool
    ) -> Tensor:
        head = Head(weight, dtype)
        total = torch.zeros((), dtype=head.sum_dtype, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if with_gradient else None
        weight_gradient = torch.zeros_like(weight, dtype=head.sum_dtype) if with_gradient else None
        first = 0
        for rows, piece_targets in head.pieces(hidden, targets):
            logits = head.logits(rows)
            total += head.losses(logits, piece_targets).sum()
            if hidden_gradient is not None and weight_gradient is not None:
                # d loss / d logits = (softmax - one-hot of the target) / N, made where the logits stood
                gradient = logits.mul_(1.0 / logits.sum(dim=1, keepdim=True))
                gradient.scatter_add_(1, piece_targets[:, None], gradient.new_full((len(rows), 1), -1.0))
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
    """The head's weight in the precision of its products, and the one buffer in which all logits come and go."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype)
        self.sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        elements = PIECE_ELEMENTS if weight.device.type == "cpu" else PIECE_ELEMENTS_ON_GPU
        rows = max(1, elements // weight.shape[0])
        self.rows = rows - rows % 64 if rows > 64 else rows  # whole tiles of a matrix product
        self.buffer: Tensor | None = None

    def pieces(self, hidden: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Rows and their targets, so few at a time that their logits fit the buffer."""
        return list(zip(hidden.split(self.rows), targets.split(self.rows), strict=True))

    def logits(self, rows: Tensor) -> Tensor:
        """(n, C) -> (n, V), in the buffer"""
        if self.buffer is None:
            self.buffer = torch.empty(len(rows), len(self.weight), dtype=self.sum_dtype, device=rows.device)
        logits = self.buffer[: len(rows)]
        if self.weight.dtype == self.sum_dtype:
            return torch.mm(rows.to(self.weight.dtype), self.weight.t(), out=logits)
        return logits.copy_(rows.to(self.weight.dtype) @ self.weight.t())

    @staticmethod
    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropies of n rows; leaves exp(logits - their row's largest) in the buffer.  (n, V), (n) -> (n)"""
        largest = logits.amax(dim=1, keepdim=True)
        of_target = logits.gather(1, targets[:, None])
        total = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
        return (total.log() + largest - of_target).squeeze(1)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, the sum kept in total's precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def product_dtype(hidden: Tensor) -> torch.dtype:
    """What autocast asks for where it is on (never less than float64's own), else the inputs' own type."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return hidden.dtype
