"""RMSNorm, SwiGLU and RoPE with their gradients written out, and the other activations.

N positions, C width, M hidden width of the MLP; B sequences, T positions, H heads of queries, K heads of keys and
values, D width of a head.

Autograd computes the same in more passes over memory, and keeps more tensors alive. Next to each function is the plain
expression: torch.compile gets that one, because it fuses it itself. Tests compare the two.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

VECTOR_BYTES = 64  # of AVX-512
FEW_ELEMENTS = 1 << 14  # below, starting an operation takes longer than its arithmetic


def computed(function: Any, *inputs: Any) -> Any:
    """Apply a function with a gradient of its own; without gradients only its forward pass, which starts sooner."""
    return function.apply(*inputs) if torch.is_grad_enabled() else function.forward(NoGradient(), *inputs)


class NoGradient:
    """What a forward pass gets instead of a context where there is no backward pass."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Save nothing."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight (Zhang and Sennrich 2019, arXiv 1910.07467).  (..., C), (C) -> (..., C)"""
    if torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight, eps)
    return computed(RMSNormFunction, x, weight, eps)


class RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        C = x.shape[-1]
        products = (gradient * x).view(-1, C).to(weight.dtype)
        shrink = (products @ weight).view_as(scale) * scale.pow(3) / C
        weight_gradient = products.t() @ scale.view(-1).to(weight.dtype)
        x_gradient = (gradient * weight).mul_(scale).addcmul_(x, shrink, value=-1)
        return x_gradient.to(x.dtype), weight_gradient, None


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps), without weights.  (..., C) -> (..., C)"""
    if torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], None, eps)
    return computed(UnitRMSFunction, x, eps)


class UnitRMSFunction(torch.autograd.Function):
    """Keeps its output, which whatever follows keeps too, instead of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = (x * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        along = (gradient * y).mean(dim=-1, keepdim=True, dtype=scale.dtype)
        return ((gradient - y * along) * scale).to(y.dtype), None


def relu2(x: Tensor) -> Tensor:
    """relu(x)² (So et al. 2021, arXiv 2109.08668)."""
    return F.relu(x).square()


def gelu(x: Tensor) -> Tensor:
    """GELU in the tanh approximation of GPT-2 (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    return F.gelu(x, approximate="tanh")


def swiglu(expanded: Tensor) -> Tensor:
    """Return silu(gate) * value (Shazeer 2020, arXiv 2002.05202) of the two halves.  (..., 2M) -> (..., M)

    The backward pass overwrites `expanded` with its gradient, so nothing else may need `expanded` afterwards.
    """
    if torch.compiler.is_compiling():
        gate, value = expanded.chunk(2, dim=-1)
        return F.silu(gate) * value
    return computed(SwiGLUFunction, expanded)


class SwiGLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, expanded: Tensor) -> Tensor:
        gate, value = expanded.chunk(2, dim=-1)
        ctx.save_for_backward(expanded)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The gradient overwrites its input: on a CPU, fresh memory costs more than the arithmetic. If another function
        # had saved `expanded`, autograd's version counter raises.
        (expanded,) = ctx.saved_tensors
        gate, value = expanded.chunk(2, dim=-1)
        silu_gradient = value * gradient
        torch.mul(F.silu(gate), gradient, out=value)
        torch.ops.aten.silu_backward.grad_input(silu_gradient, gate, grad_input=gate)
        return expanded


ACTIVATIONS = {"gelu": gelu, "swiglu": swiglu, "relu2": relu2}  # of an MLP, by the recipe's name


def rotary_heads(qkv: Tensor, heads: int, kv_heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split heads as `split_heads` and rotate queries and keys by position. `cos` and `sin` have their type.

    RoPE (Su et al. 2021, arXiv 2104.09864) in the split-half form of Llama: element i of a head rotates with i + D/2.
    (B, T, (H + 2K)D), two (T, D) of `rotary_table` -> (B, H, T, D), two (B, K, T, D)
    """
    if torch.compiler.is_compiling():
        q, k, v = split_heads(qkv, heads, kv_heads)
        return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v
    return computed(RotaryHeadsFunction, qkv, heads, kv_heads, cos, sin)


class RotaryHeadsFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, heads: int, kv_heads: int, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        B, T, _ = qkv.shape
        by_head = qkv.view(B, T, heads + 2 * kv_heads, -1).transpose(1, 2)
        both, v = torch.split_with_sizes(by_head, [heads + kv_heads, kv_heads], 1)
        rotated = torch.empty_like(both, memory_format=torch.contiguous_format)  # queries, then keys
        q, k = torch.split_with_sizes(apply_rotary_out(both, cos, sin, rotated), [heads, kv_heads], 1)
        return q, k, v.contiguous()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, q_gradient: Tensor, k_gradient: Tensor, v_gradient: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        cos, sin = ctx.saved_tensors
        B, H, T, D = q_gradient.shape
        K = k_gradient.shape[1]
        result = torch.empty(B, T, (H + 2 * K) * D, dtype=q_gradient.dtype, device=q_gradient.device)
        q, k, v = split_heads(result, H, K)
        apply_rotary_out(q_gradient, cos, -sin, q)  # the inverse rotation
        apply_rotary_out(k_gradient, cos, -sin, k)
        v.copy_(v_gradient)
        return result, None, None, None, None


def split_heads(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """View queries, keys and values by head.  (B, T, (H + 2K)D) -> (B, H, T, D), two (B, K, T, D)"""
    B, T, _ = qkv.shape
    q, k, v = qkv.view(B, T, heads + 2 * kv_heads, -1).split([heads, kv_heads, kv_heads], dim=2)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2), as a plain expression.  (B, H, T, D), two (T, D) -> (B, H, T, D)"""
    half = x.shape[-1] // 2
    left, right = x.chunk(2, dim=-1)
    rotated = left * cos[..., :half] + right * sin[..., :half], right * cos[..., half:] + left * sin[..., half:]
    return torch.cat(rotated, dim=-1)


def apply_rotary_out(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """Rotate as `apply_rotary`, into `out`: by halves, without a copy, where these are long enough to be fast."""
    half = x.shape[-1] // 2
    if x.numel() < FEW_ELEMENTS or half * x.element_size() < VECTOR_BYTES:
        return torch.mul(x, cos, out=out).addcmul_(x.roll(half, -1), sin)
    left, right = x.chunk(2, dim=-1)
    out_left, out_right = out.chunk(2, dim=-1)
    torch.mul(left, cos[..., :half], out=out_left).addcmul_(right, sin[..., :half])
    torch.mul(right, cos[..., half:], out=out_right).addcmul_(left, sin[..., half:])
    return out
