"""Attention in blocks is scaled_dot_product_attention with its gradients, within the rounding of bfloat16."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.machine import cpu_attention
from regpt.machine.cpu_attention import causal_attention, is_faster
from regpt.model.masks import attend


@pytest.fixture
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "multiplies_bfloat16", lambda: True)


def drawn(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    """Return numbers of bfloat16 in the order of memory that a model has.  (B, H, T, D)"""
    B, H, T, D = shape
    return (size * torch.randn(B, T, H, D, generator=torch.Generator().manual_seed(seed))).bfloat16().transpose(1, 2)


def output_and_gradients(function: object, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    assert callable(function)
    leaves = [x.detach().requires_grad_() for x in inputs]
    mixed = function(*leaves)
    return [mixed.detach(), *torch.autograd.grad(mixed, leaves, gradient)]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def errors(function: object, inputs: list[Tensor], gradient: Tensor) -> list[float]:
    """Return the relative errors of output and gradients against float64."""
    found = output_and_gradients(function, inputs, gradient)
    exact = output_and_gradients(sdpa, [x.double() for x in inputs], gradient.double())
    return [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(found, exact, strict=True)]


@pytest.mark.parametrize("shape", [(2, 3, 256, 32), (1, 2, 1024, 64), (2, 1, 17, 16), (1, 2, 300, 48), (70, 1, 128, 8)])
@pytest.mark.parametrize("size", [0.1, 1.5, 4.0])  # of queries and keys: probabilities alike, spread out, one per row
def test_attention_and_its_gradients_are_as_exact_as_torchs(shape: tuple[int, int, int, int], size: float) -> None:
    """Errors are at most twice those of torch's kernel, which lie between 0.1 and 1.3 %."""
    inputs = [drawn(*shape, seed=1, size=size), drawn(*shape, seed=2, size=size), drawn(*shape, seed=3)]
    gradient = drawn(*shape, seed=4)
    for ours, theirs in zip(errors(causal_attention, inputs, gradient), errors(sdpa, inputs, gradient), strict=True):
        assert ours < 2 * theirs


def test_one_position_attends_to_itself() -> None:
    inputs = [drawn(2, 3, 1, 8, seed=seed) for seed in (1, 2, 3)]
    assert torch.equal(causal_attention(*inputs), inputs[2])


def test_errors_have_no_direction() -> None:
    """The part of an error along the exact value is far below the error: over many draws it averages out."""
    shape = (4, 4, 256, 32)
    inputs = [drawn(*shape, seed=seed, size=1.5) for seed in (1, 2, 3)]
    found = output_and_gradients(causal_attention, inputs, drawn(*shape, seed=4))
    exact = output_and_gradients(sdpa, [x.double() for x in inputs], drawn(*shape, seed=4).double())
    for ours, theirs in zip(found, exact, strict=True):
        along = float((ours.double() * theirs).sum() / theirs.square().sum() - 1)
        assert abs(along) < 5e-4


def test_no_query_sees_a_later_key_however_large() -> None:
    shape = (1, 2, 300, 16)
    inputs = [drawn(*shape, seed=seed) for seed in (1, 2, 3)]
    gradient = drawn(*shape, seed=4)
    gradient[:, :, 200:] = 0
    before = output_and_gradients(causal_attention, inputs, gradient)
    for x in inputs:
        x[:, :, 200:] *= 30
    after = output_and_gradients(causal_attention, inputs, gradient)
    for one, other in zip(before, after, strict=True):
        assert torch.isfinite(other).all()
        torch.testing.assert_close(one[:, :, :200], other[:, :, :200], rtol=0, atol=0)


@pytest.mark.parametrize("size", [0.0, 30.0])
def test_equal_and_huge_scores_have_finite_gradients(size: float) -> None:
    """Scores of up to 5,000; from about 20,000 on the largest of a row would be known too roughly."""
    shape = (1, 2, 130, 16)
    inputs = [drawn(*shape, seed=1, size=size), drawn(*shape, seed=2, size=size), drawn(*shape, seed=3)]
    for found in output_and_gradients(causal_attention, inputs, drawn(*shape, seed=4)):
        assert torch.isfinite(found).all()


def test_nan_stays_nan() -> None:
    """So that a run stops, instead of training on a hidden mistake."""
    inputs = [drawn(1, 1, 130, 8, seed=seed) for seed in (1, 2, 3)]
    inputs[0][0, 0, 100, 0] = float("nan")
    mixed, *gradients = output_and_gradients(causal_attention, inputs, drawn(1, 1, 130, 8, seed=4))
    assert mixed[0, 0, 100].isnan().all() and not mixed[0, 0, :100].isnan().any()
    assert all(gradient.isnan().any() for gradient in gradients[1:])


@pytest.mark.usefixtures("on_any_processor")
def test_blocks_are_used_where_a_gradient_is_computed_in_bfloat16_on_a_cpu() -> None:
    q = drawn(1, 2, 64, 8, seed=1).requires_grad_()
    assert is_faster(q, q)
    assert not is_faster(q.float(), q.float())
    assert not is_faster(q, q[:, :1])  # keys that several queries share
    assert not is_faster(q[:, :, :8], q[:, :, :8])
    assert not is_faster(q.detach(), q.detach())
    with torch.no_grad():
        assert not is_faster(q, q)


@pytest.mark.usefixtures("on_any_processor")
def test_masks_and_dropout_leave_attention_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr("regpt.model.masks.causal_attention", lambda *given: used.append(given))
    q = drawn(1, 2, 64, 8, seed=1).requires_grad_()
    attend(q, q, q, torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16), 0.0)
    attend(q, q, q, None, 0.1)
    assert used == []
    attend(q, q, q, None, 0.0)
    assert len(used) == 1
