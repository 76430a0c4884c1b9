"""RMSNorm, SwiGLU and RoPE with their gradients written out.

N positions, C width, M hidden width of the MLP; B sequences, T positions, H heads, D width of a head.

Autograd would do the same in more passes over memory and would keep more of it alive. Each function has the plain
expression beside it: torch.compile gets that one, which it fuses by itself, and the tests hold the two together.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight (Zhang and Sennrich 2019, arXiv 1910.07467).  (..., C), (C) -> (..., C)"""
    if torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight, eps)
    return RMSNormFunction.apply(x, weight, eps)  # type: ignore[no-untyped-call]


class RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = (norm.square() / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        C = x.shape[-1]
        products = (gradient * x).view(-1, C).to(weight.dtype)
        shrink = (products @ weight).view_as(scale) * scale.pow(3) / C
        of_weight = products.t() @ scale.view(-1).to(weight.dtype)
        of_x = (gradient * weight).mul_(scale).addcmul_(x, shrink, value=-1)
        return of_x.to(x.dtype), of_weight, None


def swiglu(expanded: Tensor) -> Tensor:
    """silu(gate) * value (Shazeer 2020, arXiv 2002.05202), gate and value side by side.  (..., 2M) -> (..., M)

    The backward pass overwrites `expanded` with its gradient: give it what nobody needs after this.
    """
    if torch.compiler.is_compiling():
        gate, value = expanded.chunk(2, dim=-1)
        return F.silu(gate) * value
    return SwiGLUFunction.apply(expanded)  # type: ignore[no-untyped-call]


class SwiGLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, expanded: Tensor) -> Tensor:
        gate, value = expanded.chunk(2, dim=-1)
        ctx.save_for_backward(expanded)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The gradient takes the memory of what it is the gradient of: on a CPU, fresh memory costs more than the sums.
        # Whoever else had kept `expanded` for a backward pass is told so by autograd's version counter.
        (expanded,) = ctx.saved_tensors
        gate, value = expanded.chunk(2, dim=-1)
        of_silu = value * gradient
        torch.mul(F.silu(gate), gradient, out=value)
        torch.ops.aten.silu_backward.grad_input(of_silu, gate, grad_input=gate)
        return expanded


def rotary_heads(qkv: Tensor, heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys turned by their positions, and values.  (B, T, 3HD), (T, D/2), (T, D/2) -> three (B, H, T, D)

    RoPE (Su et al. 2021, arXiv 2104.09864) in the split-half form of Llama: number i of a head turns with i + D/2.
    """
    cos, sin = cos.to(qkv.dtype), sin.to(qkv.dtype)
    if torch.compiler.is_compiling():
        q, k, v = split_heads(qkv, heads).unbind()
        return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v
    return RotatedHeads.apply(qkv, heads, cos, sin)  # type: ignore[no-untyped-call]


class RotatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        q, k, v = split_heads(qkv, heads)
        turned = [
            apply_rotary_out(x, cos, sin, torch.empty_like(x, memory_format=torch.contiguous_format)) for x in (q, k)
        ]
        return turned[0], turned[1], v.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        B, H, T, D = of_q.shape
        result = torch.empty(B, T, 3 * H * D, dtype=of_q.dtype, device=of_q.device)
        q, k, v = split_heads(result, H)
        apply_rotary_out(of_q, cos, -sin, q)  # turned back
        apply_rotary_out(of_k, cos, -sin, k)
        v.copy_(of_v)
        return result, None, None, None


def split_heads(qkv: Tensor, heads: int) -> Tensor:
    """(B, T, 3HD) -> (3, B, H, T, D)"""
    B, T, _ = qkv.shape
    return qkv.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The plain expression.  (B, H, T, D) -> (B, H, T, D)"""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def apply_rotary_out(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """The same, into `out`.  (B, H, T, D) -> (B, H, T, D)"""
    left, right = x.chunk(2, dim=-1)
    out_left, out_right = out.chunk(2, dim=-1)
    torch.mul(left, cos, out=out_left).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=out_right).addcmul_(left, sin)
    return out
