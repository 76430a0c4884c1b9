"""Causal attention with its gradient on CPUs in bfloat16, by matrix products of many heads at once.

B sequences, T positions, H heads, D width of a head; N heads of all sequences (B x H) or some of them.

The algorithm is FlashAttention's (Dao et al. 2022, arXiv 2205.14135): probabilities of a block at a time, which the
gradient computes again. torch's kernel multiplies a few rows of one head. Products of larger blocks, for as many heads
as the cache holds, take two thirds of its time for 1,024 positions and half of it for 256 (docs/log.md, 2026-11-27).

Their results are rounded to bfloat16, where torch's kernel keeps float32. So the largest score of its row is subtracted
from each score s before it is rounded, by three more columns of both factors. Then the rounding changes exp(s) by at
most exp(s) |s| / 256 < 0.0015, less than the rounding of exp(s) does where s is near 0. The same columns subtract from
the gradient of each probability the mean of the row.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FEWEST_POSITIONS = 16
FEWEST_ROWS_OF_BLOCK, MOST_BLOCKS = 128, 4  # half a block per row is computed in vain, but small blocks are slow
SCORES_IN_CACHE = 1 << 21  # 4 MiB


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q @ k.T / sqrt(D)) @ v over the keys that are not later.  three (B, H, T, D) -> (B, H, T, D)"""
    mixed: Tensor = CausalAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
    return mixed


def is_faster(q: Tensor, k: Tensor) -> bool:
    """Return whether a gradient will be computed, and by these functions faster than by torch's kernel."""
    return (
        torch.is_grad_enabled()
        and q.requires_grad
        and not torch.compiler.is_compiling()
        and q.dtype == k.dtype == torch.bfloat16
        and q.device.type == "cpu"
        and q.shape == k.shape
        and q.shape[2] >= FEWEST_POSITIONS
        and multiplies_bfloat16()
    )


@cache
def multiplies_bfloat16() -> bool:
    """Return whether the processor has instructions that multiply bfloat16."""
    instructions = torch.cpu.get_capabilities()
    return bool(instructions.get("avx512_bf16") or instructions.get("amx_bf16"))


class CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = (x.flatten(0, 1) for x in (q, k, v))
        columns = with_ones(keys)
        mixed = torch.empty_like(queries)
        largest = torch.empty(queries.shape[:2], dtype=q.dtype)  # score of each row
        sums = torch.empty(queries.shape[:2])  # of exp(score - largest)
        scale = q.shape[-1] ** -0.5
        for heads, rows in blocks(queries):
            seen = slice(0, rows.stop)
            scores = hide_later_keys_(product(queries[heads, rows], keys[heads, seen], scale))
            largest[heads, rows] = scores.amax(-1)
            shifted_rows = subtracting(queries[heads, rows], largest[heads, rows], scale)
            differences = product(shifted_rows, columns[heads, seen], scale)
            exponentials = hide_later_keys_(differences).exp_()
            sums[heads, rows] = exponentials.sum(-1, dtype=torch.float32)
            mixed[heads, rows] = (exponentials @ values[heads, seen]).div_(sums[heads, rows, None])
        mixed = torch.empty_like(q).copy_(mixed.view(q.shape))  # in the order of memory that queries have
        ctx.save_for_backward(q, k, v, mixed, largest, sums)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = gradient.shape
        *saved, largest, sums = ctx.saved_tensors
        q, k, v, mixed, gradient = (x.flatten(0, 1) for x in (*saved, gradient))
        scale = q.shape[-1] ** -0.5
        # Probabilities are exp(score - largest) / sum. What they are multiplied by is divided instead of them.
        gradient = (gradient / sums[..., None]).to(q.dtype)
        means = (gradient.float() * mixed).sum(-1)  # of the gradients of a row's probabilities, weighted by them
        rows, columns = subtracting(q, largest, scale), with_ones(k)
        gradient_rows, gradient_columns = subtracting(gradient, means), with_ones(v)

        q_gradient = torch.zeros_like(q, dtype=torch.float32)  # a sum over blocks
        k_gradient, v_gradient = torch.empty_like(k), torch.empty_like(v)
        for heads, keys in blocks(k):
            later = slice(keys.start, None)  # the queries that see them
            exponentials = hide_earlier_queries_(product(columns[heads, keys], rows[heads, later], scale)).exp_()
            of_scores = product(gradient_columns[heads, keys], gradient_rows[heads, later]).mul_(exponentials)
            v_gradient[heads, keys] = exponentials @ gradient[heads, later]
            k_gradient[heads, keys] = of_scores @ q[heads, later]
            q_gradient[heads, later] += of_scores.transpose(1, 2) @ k[heads, keys]
        q_gradient, k_gradient = q_gradient.mul_(scale).to(q.dtype), k_gradient.mul_(scale)
        return q_gradient.view(shape), k_gradient.view(shape), v_gradient.view(shape)


def blocks(rows: Tensor) -> list[tuple[slice, slice]]:
    """Return pairs of heads and rows whose scores the cache holds.  (N, T, D)"""
    N, T, _ = rows.shape
    size = max(FEWEST_ROWS_OF_BLOCK, T // MOST_BLOCKS)
    return [
        (heads, positions)
        for heads in slices(N, max(1, SCORES_IN_CACHE // (T * min(size, T))))
        for positions in slices(T, size)
    ]


def slices(size: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]


def product(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """Return scale * left @ right.T, rounded once.  (N, n, D), (N, m, D) -> (N, n, m)"""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right.transpose(1, 2), beta=0, alpha=scale)


def subtracting(rows: Tensor, numbers: Tensor, scale: float = 1.0) -> Tensor:
    """Append what subtracts a number from each scaled product of a row with a column of `with_ones`.

    Three numbers of bfloat16 add up to one of float32.  (N, T, D), (N, T) -> (N, T, D + 3)
    """
    rest = -numbers.float() / scale
    parts = []
    for _ in range(3):
        parts.append(rest.to(rows.dtype))
        rest = rest - parts[-1]
    return torch.cat([rows, torch.stack(parts, dim=-1)], dim=-1)


def with_ones(columns: Tensor) -> Tensor:
    """Append the factors of what `subtracting` appends.  (N, T, D) -> (N, T, D + 3)"""
    return torch.cat([columns, columns.new_ones(*columns.shape[:-1], 3)], dim=-1)


def hide_later_keys_(scores: Tensor) -> Tensor:
    """Set scores of keys after the query to minus infinity; the last key is that of the last query.

    (N, queries, keys)
    """
    scores[:, :, -scores.shape[1] :] += minus_infinity(scores.shape[1]).triu(1)
    return scores


def hide_earlier_queries_(scores: Tensor) -> Tensor:
    """Set scores of queries before the key to minus infinity; the first query is that of the first key.

    (N, keys, queries)
    """
    scores[:, :, : scores.shape[1]] += minus_infinity(scores.shape[1]).tril(-1)
    return scores


def minus_infinity(n: int) -> Tensor:
    return torch.full((n, n), float("-inf"), dtype=torch.bfloat16)
