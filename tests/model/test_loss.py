"""The loss in pieces is the plain loss: value, gradients, and each position by itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.model import loss
from regpt.model.loss import mean_loss, token_losses


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


@pytest.mark.parametrize("rows_in_a_piece", [1, 5, 36, 37, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradients_equal_the_plain_loss(
    monkeypatch: pytest.MonkeyPatch, rows_in_a_piece: int, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(loss, "PIECE_ELEMENTS", rows_in_a_piece * 311)
    ours, theirs = (value_and_gradients(function, *inputs(dtype)) for function in (mean_loss, plain))
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)


def test_each_positions_loss_equals_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PIECE_ELEMENTS", 7 * 311)
    hidden, weight, targets = inputs(torch.float64)
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    torch.testing.assert_close(token_losses(hidden, weight, targets), expected, rtol=1e-12, atol=1e-12)


def test_very_unlikely_targets_have_a_finite_loss_and_gradient() -> None:
    """exp(-1000) is 0 in float32; the loss is 1000 all the same."""
    hidden = torch.tensor([[1000.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [1.0]], requires_grad=True)
    value, *gradients = value_and_gradients(mean_loss, hidden, weight, torch.tensor([0]))
    assert value == 1000.0
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_autocast_keeps_sums_in_float32_and_stays_near_the_plain_loss() -> None:
    hidden, weight, targets = inputs(torch.float32, width=64)
    with torch.autocast("cpu", torch.bfloat16):
        value = mean_loss(hidden, weight, targets)
    assert value.dtype == torch.float32
    value.backward()
    exact, _, weight_gradient = value_and_gradients(plain, *inputs(torch.float32, width=64))
    assert value.item() == pytest.approx(exact.item(), rel=5e-3)
    assert weight.grad is not None
    assert (weight.grad * 0.7 - weight_gradient).norm() / weight_gradient.norm() < 2e-2


def test_no_tensor_of_all_logits_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PIECE_ELEMENTS", 4 * 311)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        value_and_gradients(mean_loss, *inputs(torch.float32, width=2))
    assert largest == 4 * 311  # far below 37 x 311


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    hidden, weight, targets = inputs(torch.float64)
    (first,) = torch.autograd.grad(mean_loss(hidden, weight, targets), hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()
