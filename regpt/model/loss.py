"""The language-model head and its cross-entropy, chunk by chunk: the full logits matrix is never materialized.

N positions (B x T, flattened), n positions of a chunk, p positions of a piece of it, C width, V padded vocabulary.

The logits of 32 x 1,024 positions and 50,304 tokens take 6.6 GB in float32, and a plain loss keeps several copies.
Here the logits of a chunk exist at a time. Their gradient is computed right after them, so the forward pass also stores
the gradients of the hidden states and of the weight, and the backward pass only scales them.

Between the matrix products a chunk is read and written by element. Uncompiled, this happens in pieces that fit a CPU's
cache, where softmax is one kernel between casts to float32 and back. Compiled, `softmax_gradient_` is one kernel, which
overwrites the logits with their gradient. `python -m benchmarks.loss_traffic` counts the memory traffic of both.

A target that is `IGNORED` has a loss of 0 and adds nothing to any gradient. Means are over all positions, those
included: who trains on masked targets divides by the share that counts (`regpt/training/gradients.py`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regpt.data.loss_masks import IGNORED
from regpt.machine.products import cast_weight, is_faster, product, transposed_product, write_product
from regpt.model.chunks import rows_in_cache, rows_of_chunk
from regpt.model.graphs import outside_graphs


@dataclass(frozen=True)
class LossOptions:
    """What the loss computes besides the cross-entropy, and how."""

    softcap: float = 0.0  # logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv 2408.00118); 0: unchanged
    z_weight: float = 0.0  # adds z_weight * log(sum of exp(logits))² (PaLM, arXiv 2204.02311) to the mean loss
    compiled: bool = False  # by torch.compile


PLAIN = LossOptions()
SMALLEST_LIKELIHOOD = 1e-30  # below, the logarithm of a float32 is no longer exact


@outside_graphs  # chunks have a graph of their own, all before them another
def mean_loss(hidden: Tensor, weight: Tensor, targets: Tensor, options: LossOptions = PLAIN) -> Tensor:
    """Return the mean cross-entropy of softmax(hidden @ weight.T) over all positions, nats.  (N, C), (V, C), (N) -> ()

    Products are computed in the autocast precision if autocast is on, sums in float32 (float64 for float64 inputs). The
    z-loss is part of the value where gradients are computed.
    """
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        return token_losses(hidden, weight, targets, options.softcap).mean()
    loss: Tensor = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, product_dtype(hidden), options
    )
    return loss


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0) -> Tensor:
    """Return the cross-entropy at each position, nats, without gradient.  (N, C), (V, C), (N) -> (N)"""
    head = Head(weight, product_dtype(hidden), len(hidden), gradients=False)
    pieces = head.capped_pieces(hidden, targets, softcap)
    return torch.cat([head.losses_and_softmax_(*piece, softcap)[0].squeeze(1) for piece in pieces])


@torch.no_grad()
def token_losses_and_best(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropies, and whether each target is the most likely token.  (N, C), (V, C), (N) -> (N), (N)"""
    head = Head(weight, product_dtype(hidden), len(hidden), gradients=False)
    losses, best = [], []
    for logits, rows, piece_targets in head.capped_pieces(hidden, targets, softcap):
        best.append(logits.argmax(dim=1) == piece_targets)
        losses.append(head.losses_and_softmax_(logits, rows, piece_targets, softcap)[0].squeeze(1))
    return torch.cat(losses), torch.cat(best)


class ChunkedLoss(torch.autograd.Function):
    """The mean loss, whose gradients are computed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, options: LossOptions
    ) -> Tensor:
        head = Head(weight, dtype, len(hidden), fused=options.compiled)
        total = torch.zeros((), dtype=head.sum_dtype, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient: Tensor | None = None
        first = 0
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, chunk_targets in head.chunks(hidden, targets):
                losses, gradient = head.losses_and_gradient(rows, chunk_targets, options)
                total += losses.sum()
                write_product(hidden_gradient[first : first + len(rows)], gradient, head.weight)
                weight_gradient = add_product(weight_gradient, gradient, rows.to(dtype), head.sum_dtype)
                first += len(rows)
        assert weight_gradient is not None, "there is no position"
        ctx.gradients = hidden_gradient, weight_gradient.to(weight.dtype).contiguous(), len(hidden)
        return total / len(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient, N = ctx.gradients
        del ctx.gradients
        scale = output_gradient / N
        return hidden_gradient.mul_(scale), weight_gradient.mul_(scale), None, None, None


class Head:
    """The head's weight in the precision of its products, and buffers that all chunks reuse for logits."""

    def __init__(
        self, weight: Tensor, dtype: torch.dtype, positions: int, fused: bool = False, gradients: bool = True
    ) -> None:
        """`fused`: logits stay in the precision of the products; the compiled kernel computes whole chunks."""
        self.weight, self.fused = cast_weight(weight, dtype), fused
        self.sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        on_cpu = weight.device.type == "cpu"
        self.rows = rows_of_chunk(positions, len(weight), on_cpu, fused, dtype == torch.bfloat16, gradients)
        self.piece_rows = rows_in_cache(self.rows, len(weight)) if on_cpu else self.rows
        # Fresh memory for each chunk would cost more than the arithmetic.
        self.products = torch.empty(self.rows, len(weight), dtype=dtype, device=weight.device)
        self.wide: Tensor | None = None  # a piece in `sum_dtype`, where products have another type
        if dtype != self.sum_dtype and not fused:
            self.wide = torch.empty_like(self.products[: self.piece_rows], dtype=self.sum_dtype)
        self.tanh_buffer: Tensor | None = None

    def chunks(self, hidden: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split inputs so that the logits of each chunk fit the buffer.  (N, C), (N) -> pairs of (n, C), (n)"""
        return list(zip(hidden.split(self.rows), targets.split(self.rows), strict=True))

    def logits(self, rows: Tensor) -> Tensor:
        """Compute logits into the buffer.  (n, C) -> (n, V)"""
        return product(rows.to(self.weight.dtype), self.weight.t(), out=self.products[: len(rows)])

    def pieces(self, products: Tensor, rows: Tensor, targets: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Split a chunk into pieces.  (n, V), (n, C), (n) -> triples of (p, V), (p, C), (p)"""
        p = self.piece_rows
        return zip(products.split(p), rows.split(p), targets.split(p), strict=True)

    def capped_pieces(self, hidden: Tensor, targets: Tensor, softcap: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the logits of each piece, capped if `softcap` is above 0, its rows and its targets.

        (N, C), (N) -> triples of (p, V), (p, C), (p)
        """
        for chunk_rows, chunk_targets in self.chunks(hidden, targets):
            for products, rows, piece_targets in self.pieces(self.logits(chunk_rows), chunk_rows, chunk_targets):
                logits = self.widened(products)
                yield logits.div_(softcap).tanh_().mul_(softcap) if softcap else logits, rows, piece_targets

    def widened(self, products: Tensor) -> Tensor:
        """Return a piece of the logits in the precision of sums, itself or a copy that later pieces overwrite.

        (p, V) -> (p, V)
        """
        return products if self.wide is None else self.wide[: len(products)].copy_(products)

    def losses_and_gradient(self, rows: Tensor, targets: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
        """Return losses, and the gradient of their sum with respect to the logits.  (n, C), (n) -> (n), (n, V)"""
        products = self.logits(rows)
        if self.fused:
            return self.fused_losses_and_gradient(products, targets, options)
        pieces = self.pieces(products, rows, targets)
        return torch.cat([self.losses_of_piece(*piece, options) for piece in pieces]), products

    def losses_of_piece(self, products: Tensor, rows: Tensor, targets: Tensor, options: LossOptions) -> Tensor:
        """Return the losses of a piece; overwrite its logits with their gradient.  (p, V), (p, C), (p) -> (p)"""
        logits = self.widened(products)
        tanh = self.cap_(logits, options.softcap) if options.softcap else None
        losses, log_sums = self.losses_and_softmax_(logits, rows, targets, options.softcap)
        counts = counted(targets, losses.dtype)
        # softmax - one-hot of the target, in place of the logits
        gradient = logits
        if options.z_weight:
            losses += options.z_weight * (counts * log_sums).square()
            gradient.mul_(1.0 + 2.0 * options.z_weight * log_sums)
        gradient.scatter_add_(1, any_target(targets), -torch.ones_like(losses))
        if not counts.all():
            gradient.mul_(counts)
        if tanh is not None:  # times the derivative of the cap, 1 - tanh²
            gradient.addcmul_(gradient, tanh.square_(), value=-1.0)
        if gradient is not products:
            products.copy_(gradient)
        return losses.squeeze(1)

    def losses_and_softmax_(
        self, logits: Tensor, rows: Tensor, targets: Tensor, softcap: float
    ) -> tuple[Tensor, Tensor]:
        """Return cross-entropies and log(sum of exp(logits)); overwrite the logits with their softmax.

        (p, V), (p, C), (p) -> (p, 1), (p, 1)
        """
        places = any_target(targets)
        target_logits = logits.gather(1, places)
        torch.softmax(logits, dim=1, out=logits)  # one kernel, which keeps a row in the core's cache
        likelihoods = logits.gather(1, places)
        losses = -likelihoods.log()
        if (rare := (likelihoods < SMALLEST_LIKELIHOOD).squeeze(1)).any():
            losses[rare] = self.log_sums(logits[rare], rows[rare], softcap) - target_logits[rare]
        return losses * counted(targets, losses.dtype), losses + target_logits

    def log_sums(self, softmax: Tensor, rows: Tensor, softcap: float) -> Tensor:
        """Return log(sum of exp(logits)) by the most likely token of each row.  (n, V), (n, C) -> (n, 1)"""
        likelihoods, tokens = softmax.max(dim=1, keepdim=True)
        weight = self.weight[tokens.squeeze(1)].to(softmax.dtype)
        best = (rows.to(self.weight.dtype).to(softmax.dtype) * weight).sum(dim=1, keepdim=True)
        return cap(best, softcap) - likelihoods.log()

    def fused_losses_and_gradient(self, logits: Tensor, targets: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
        """Do the same by one compiled kernel for whole chunks; a rest of another shape is computed uncompiled."""
        compute = compiled_softmax_gradient_() if len(logits) == self.rows else softmax_gradient_
        target_logits = cap(logits.gather(1, any_target(targets)).to(self.sum_dtype), options.softcap)
        log_sums = compute(logits, targets, options.softcap, options.z_weight)
        losses = (log_sums - target_logits + options.z_weight * log_sums.square()) * counted(targets, log_sums.dtype)
        return losses.squeeze(1), logits.to(self.weight.dtype)

    def cap_(self, logits: Tensor, softcap: float) -> Tensor:
        """Cap logits in place; return tanh(logits / softcap), in a second buffer that all chunks reuse."""
        if self.tanh_buffer is None:
            self.tanh_buffer = torch.empty_like(logits)
        tanh = torch.div(logits, softcap, out=self.tanh_buffer[: len(logits)]).tanh_()
        torch.mul(tanh, softcap, out=logits)
        return tanh


def counted(targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 for each target that counts, 0 for each that is ignored.  (n) -> (n, 1)"""
    return (targets != IGNORED)[:, None].to(dtype)


def any_target(targets: Tensor) -> Tensor:
    """Return the targets as indices of logits, with any index for an ignored one.  (n) -> (n, 1)"""
    return targets.clamp(min=0)[:, None]


def softmax_gradient_(logits: Tensor, targets: Tensor, softcap: float, z_weight: float) -> Tensor:
    """Return log(sum of exp(logits)) of each row; overwrite the logits with the gradient of the sum of the losses.

    A plain expression, which torch.compile turns into one kernel with a few passes over the logits.
    (n, V), (n) -> (n, 1)
    """
    # torch 2.11 may read single logits after they are overwritten, so the caller reads the target's before. Sums over
    # rows are safe, because the gradient needs them.
    capped = cap(logits if logits.dtype == torch.float64 else logits.float(), softcap)
    largest = capped.amax(dim=1, keepdim=True)
    log_sums = (capped - largest).exp().sum(dim=1, keepdim=True).log() + largest
    is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    gradient = (capped - log_sums).exp() * (1.0 + 2.0 * z_weight * log_sums) - is_target.to(capped.dtype)
    if softcap:
        gradient = gradient * (1.0 - (capped / softcap).square())
    logits.copy_(gradient * counted(targets, capped.dtype))
    return log_sums


@cache
def compiled_softmax_gradient_() -> Callable[[Tensor, Tensor, float, float], Tensor]:
    """Return `softmax_gradient_`, compiled."""
    return torch.compile(softmax_gradient_, dynamic=False)


def cap(logits: Tensor, softcap: float) -> Tensor:
    """Return softcap * tanh(logits / softcap); the logits themselves if `softcap` is 0."""
    return softcap * (logits / softcap).tanh() if softcap else logits


def add_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return left.t() @ right in the precision `dtype`, added to `total` in place if there is one.

    (K, M), (N, K), (N, M) -> (K, M)
    """
    if left.dtype == dtype:
        if total is None:
            return transposed_product(left, right)
        return total.add_(transposed_product(left, right)) if is_faster(left, right) else total.addmm_(left.t(), right)
    is_first = total is None
    if total is None:
        total = left.new_empty(left.shape[1], right.shape[1], dtype=dtype)
    if total.device.type == "cuda":  # accumulated in float32, without rounding a chunk's product
        if is_first:
            total.zero_()
        return torch.addmm(total, left.t(), right, out_dtype=dtype, out=total)
    # On a CPU, in pieces that stay in the cache while they are cast and added.
    rows = rows_in_cache(*total.shape) if total.device.type == "cpu" else len(total)
    for of_total, of_left in zip(total.split(rows), left.split(rows, dim=1), strict=True):
        added = of_left.t() @ right
        of_total.copy_(added) if is_first else of_total.add_(added)
    return total


def product_dtype(hidden: Tensor) -> torch.dtype:
    """Return autocast's type where autocast is on and the inputs are not float64, else the type of the inputs."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return hidden.dtype
