"""Matrix products: in float32 on CPUs by oneDNN where MKL is slow, on CUDA without rounding a wider result.

Weights are cast to another precision here too, once for all products that may share them.

torch multiplies float32 matrices on x86 by MKL, which keeps its fastest instructions for Intel's processors. On an AMD
EPYC with AVX-512, oneDNN, which torch has as well, is about twice as fast, with rounding errors of the same size
(docs/log.md, 2026-11-27).

N rows, K and M columns.
"""

import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linear(nn.Linear):
    """A linear layer with these products.  (..., K) -> (..., M)"""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.t() + bias, in autocast's precision where it is on.  (..., K), (M, K), (M) -> (..., M)"""
    is_torchs = torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)
    if is_torchs or not is_faster(x, weight):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return by_rows(x, weight, bias)
    result: Tensor = LinearFunction.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


class LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return by_rows(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return (
            by_rows(gradient, weight.t()) if ctx.needs_input_grad[0] else None,
            transposed_product(rows, x.flatten(0, -2)).contiguous() if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Return left @ right; oneDNN writes into new memory instead of `out`.  (N, K), (K, M) -> (N, M)"""
    return by_rows(left, right.t()) if is_faster(left, right) else torch.mm(left, right, out=out)


def transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left.t() @ right, in the order of memory that is computed fastest.  (N, K), (N, M) -> (K, M)"""
    return by_rows(right.t(), left.t()).t() if is_faster(left, right) else torch.mm(left.t(), right)


def write_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Write left @ right into a tensor of the same or a wider type.  (N, M), (N, K), (K, M)"""
    if left.is_cuda and left.dtype != target.dtype:  # without rounding it first, and in one kernel instead of two
        torch.mm(left, right, out_dtype=target.dtype, out=target)
    else:
        target[:] = product(left, right)


def by_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the product of each row with each row of the weight, by oneDNN.  (..., K), (M, K), (M) -> (..., M)"""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # with gaps in its memory, oneDNN takes twenty times as long and more
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class KeptCasts(threading.local):
    """The weights that the present `shared_casts` has cast, by what they were cast from; None outside of one."""

    by_source: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] | None = None


kept_casts = KeptCasts()


@contextmanager
def shared_casts() -> Iterator[None]:
    """Let `cast_weight` cast each weight once within the context, which must not change a weight.

    Autocast does the same for the weights of the operations that it knows.
    """
    outer, kept_casts.by_source = kept_casts.by_source, {}
    try:
        yield
    finally:
        kept_casts.by_source = outer


@torch.no_grad()
def cast_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in another precision, without gradient."""
    casts = kept_casts.by_source
    if casts is None or weight.dtype == dtype:
        return weight.to(dtype)
    key = id(weight), dtype
    if key not in casts:
        casts[key] = weight, weight.to(dtype)  # the weight itself too, as another object may have its id later
    return casts[key][1]


def is_faster(left: Tensor, right: Tensor) -> bool:
    """Return whether oneDNN is the faster one for these matrices; sharded ones, of another class, are left to torch."""
    return (
        left.dtype == right.dtype == torch.float32
        and left.device.type == right.device.type == "cpu"
        and type(left) in (Tensor, nn.Parameter)
        and type(right) in (Tensor, nn.Parameter)
        and left.numel() > 0
        and has_faster_products()
    )


@cache
def has_faster_products() -> bool:
    """Return whether this processor is AMD's, and torch has oneDNN's products, by a small one."""
    if "AMD" not in (torch.cpu.get_capabilities().get("cpu_name") or platform.processor()):
        return False
    try:
        small = by_rows(torch.full((1, 2), 2.0), torch.full((3, 2), 0.5), torch.ones(3))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return small.tolist() == [[3.0, 3.0, 3.0]]
