"""The chunked loss equals the plain cross-entropy: mean, gradients, and loss per position."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.model import loss
from regpt.model.loss import Head, mean_loss, token_losses
from regpt.plan import memory


def inputs(dtype: torch.dtype, rows: int = 37, width: int = 24, vocabulary: int = 311) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = (3 * torch.randn(rows, width, generator=generator)).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, vocabulary, (rows,), generator=generator)


def value_and_gradients(function, hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
    hidden.grad = weight.grad = None
    value = function(hidden, weight, targets)
    (0.7 * value).backward()
    assert hidden.grad is not None and weight.grad is not None
    return [value.detach(), hidden.grad.clone(), weight.grad.clone()]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.t(), targets)


@pytest.mark.parametrize("rows_per_chunk", [1, 5, 36, 37, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_chunked_loss_and_gradients_equal_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, rows_per_chunk: int, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS_ON_CPU", rows_per_chunk * 311)
    ours, theirs = (value_and_gradients(function, *inputs(dtype)) for function in (mean_loss, plain))
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)


def test_token_losses_equal_cross_entropy_without_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS_ON_CPU", 7 * 311)
    hidden, weight, targets = inputs(torch.float64)
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    torch.testing.assert_close(token_losses(hidden, weight, targets), expected, rtol=1e-12, atol=1e-12)


def test_loss_and_gradient_are_finite_for_very_unlikely_targets() -> None:
    """exp(-1000) is 0 in float32; the loss must still be 1000."""
    hidden = torch.tensor([[1000.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [1.0]], requires_grad=True)
    value, *gradients = value_and_gradients(mean_loss, hidden, weight, torch.tensor([0]))
    assert value == 1000.0
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_loss_under_autocast_is_float32_and_near_cross_entropy() -> None:
    hidden, weight, targets = inputs(torch.float32, width=64)
    with torch.autocast("cpu", torch.bfloat16):
        value = mean_loss(hidden, weight, targets)
    assert value.dtype == torch.float32
    value.backward()
    exact, _, weight_gradient = value_and_gradients(plain, *inputs(torch.float32, width=64))
    assert value.item() == pytest.approx(exact.item(), rel=5e-3)
    assert weight.grad is not None
    assert (weight.grad * 0.7 - weight_gradient).norm() / weight_gradient.norm() < 2e-2


def test_full_logits_matrix_is_never_materialized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS_ON_CPU", 4 * 311)
    largest = 0

    class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with LargestTensor():
        value_and_gradients(mean_loss, *inputs(torch.float32, width=2))
    assert largest == 4 * 311  # far below 37 x 311


def test_second_derivative_of_the_loss_raises() -> None:
    hidden, weight, targets = inputs(torch.float64)
    (first,) = torch.autograd.grad(mean_loss(hidden, weight, targets), hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


@pytest.mark.parametrize(("device", "limit"), [("cpu", loss.CHUNK_LOGITS_ON_CPU), ("meta", loss.CHUNK_LOGITS_ON_GPU)])
def test_loss_chunk_has_the_size_that_plan_estimates_with(device: str, limit: int) -> None:
    """A chunk is as large as the limit allows in whole tiles of 64 rows."""
    V = 50_304
    rows = Head(torch.empty(V, 1, device=device), torch.float32).rows
    assert rows * V <= limit < (rows + 64) * V
    assert memory.CHUNK_LOGITS_ON_CPU == loss.CHUNK_LOGITS_ON_CPU
    assert memory.CHUNK_LOGITS_ON_GPU == loss.CHUNK_LOGITS_ON_GPU
