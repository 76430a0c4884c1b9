"""Attention: which implementation PyTorch chooses, how fast each one is, and what a new shape costs."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.results import Bound, Measured
from regpt.machine.attention import NAMES, attention_backend
from regpt.model.evaluation_mode import ATTENTION_OF_ANY_SHAPE

MASKED_SHAPES = 3
MOST_FIRST_CALL_SECONDS = 0.1  # cuDNN prepares a plan for 0.4 s


def attention_backends(bench: Bench) -> Iterator[Measured]:
    """Time causal attention forward and backward by each implementation, and masked attention at new shapes."""
    recipe = bench.recipe("gpt2-modern")
    chosen = attention_backend(recipe, bench.device(recipe, False))
    yield Measured("chosen for a training step", chosen or None)
    inputs = random_heads(bench, *bench.sizes.attention_shape)
    kinds = {"default": None, **{name: backend for backend, name in NAMES.items()}}
    for name, backend in kinds.items():
        try:
            with sdpa_kernel([backend]) if backend is not None else nullcontext():
                taken: float | None = bench.milliseconds(lambda: forward_and_backward(inputs))
        except RuntimeError:  # this machine or shape has no such kernel
            taken = None
        yield Measured(f"causal, forward and backward: {name}", taken, "ms")
    default, ours = first_calls(bench, limited=False), first_calls(bench, limited=True)
    for name, seconds in (("default", default), ("as our evaluations do", ours)):
        yield Measured(f"masked, new shape, first call: {name}", max(first for first, _ in seconds), "s")
        yield Measured(f"masked, second call: {name}", max(second for _, second in seconds), "s")
    slowest = max(first for first, _ in ours[1:])  # the very first call loads the kernel
    yield Measured("masked, later new shapes: ours", slowest, "s", bench.speed(Bound(most=MOST_FIRST_CALL_SECONDS)))


def random_heads(bench: Bench, B: int, H: int, T: int, D: int) -> list[Tensor]:
    """Return queries, keys and values.  -> three (B, H, T, D)"""
    return [torch.randn(B, H, T, D, device=bench.place, dtype=bench.product_type, requires_grad=True) for _ in range(3)]


def forward_and_backward(inputs: list[Tensor]) -> None:
    q, k, v = inputs
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.autograd.grad(mixed, inputs, torch.ones_like(mixed))


def first_calls(bench: Bench, limited: bool) -> list[tuple[float, float]]:
    """Return the seconds of the first and second call for several shapes, with masks like those of packed questions."""
    B, H, T, D = bench.sizes.attention_shape
    found = []
    for number in range(MASKED_SHAPES):
        length = T // 8 + 3 * (2 * number + limited)  # no shape twice
        q, k, v = random_heads(bench, B, H, length, D)
        mask = torch.ones(B, 1, length, length, dtype=torch.bool, device=bench.place).tril()

        def work() -> None:
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # noqa: B023  called before the next shape

        with torch.no_grad(), sdpa_kernel(ATTENTION_OF_ANY_SHAPE) if limited else nullcontext():
            found.append((bench.seconds(work), bench.seconds(work)))
    return found
