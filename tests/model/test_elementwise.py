"""Hand-written gradients equal those of autograd."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.model import elementwise
from regpt.model.elementwise import apply_rotary, apply_rotary_out, rms_norm, rotary_heads, split_heads, swiglu
from regpt.model.rotary import rotary_table
from tests.model.test_gpt import SMALL

COS, SIN = rotary_table(SMALL)[:, :6].double()


def plain_heads(qkv: Tensor) -> tuple[Tensor, ...]:
    q, k, v = split_heads(qkv, 4, 2)
    return apply_rotary(q, COS, SIN), apply_rotary(k, COS, SIN), v


def plain_swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


PAIRS: list[tuple[Callable[..., object], Callable[..., object], list[tuple[int, ...]]]] = [
    (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), [(3, 6, 16), (16,)]),
    (swiglu, plain_swiglu, [(3, 6, 20)]),
    (lambda qkv: rotary_heads(qkv, 4, 2, COS, SIN), plain_heads, [(3, 6, 64)]),
]


@pytest.mark.parametrize(("ours", "plain", "shapes"), PAIRS, ids=["rms_norm", "swiglu", "rotary_heads"])
def test_functions_and_gradients_equal_the_plain_expressions(ours, plain, shapes) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(4)
    found = []
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for function in (ours, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = [torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape) for out in outputs]
        sum((out * w).sum() for out, w in zip(outputs, weights, strict=True)).backward()
        found.append([*outputs, *(x.grad for x in leaves)])
    for our, their in zip(*found, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-12)


def test_rotary_scores_depend_on_relative_position_alone() -> None:
    cos, sin = rotary_table(SMALL)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 24, 8)
    scores = apply_rotary(q, cos, sin)[0, 0] @ apply_rotary(k, cos, sin)[0, 0].T
    for distance in (1, 5):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[0].expand_as(along), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores.diagonal(-1)[0], scores.diagonal(-5)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotating_by_halves_equals_rotating_whole_heads(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    cos, sin = rotary_table(SMALL).to(dtype)
    x = torch.randn(2, 24, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(1, 2)
    whole = apply_rotary_out(x, cos, sin, torch.empty_like(x))
    monkeypatch.setattr(elementwise, "FEW_ELEMENTS", 0)
    monkeypatch.setattr(elementwise, "VECTOR_BYTES", 0)
    monkeypatch.setattr(Tensor, "roll", None)  # what only whole heads need
    by_halves = apply_rotary_out(x, cos, sin, torch.empty_like(x))
    assert torch.equal(whole, by_halves)
    torch.testing.assert_close(
        whole, apply_rotary(x, cos, sin), rtol=0.02, atol=1e-6 if dtype == torch.float32 else 1e-2
    )
