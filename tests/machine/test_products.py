"""Products by oneDNN are those of torch, with their gradients, and are used only where they are faster."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.machine import products
from regpt.machine.products import Linear, by_rows, cast_weight, product, shared_casts, transposed_product

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_faster_products", lambda: True)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs_and_gradients(layer: Linear, x: Tensor, spread: bool, dtype: torch.dtype) -> list[Tensor]:
    """Return the output and all gradients; `spread`: the output's gradient is one number for all."""
    parameters = [one.detach().to(dtype).requires_grad_() for one in (x, *layer.parameters())]
    y = layer(parameters[0]) if dtype == torch.float32 else F.linear(*parameters)
    if dtype == torch.float32:
        parameters = [parameters[0], *layer.parameters()]
    (y.sum() if spread else (y * drawn(*y.shape, seed=2)).sum()).backward()
    return [y.detach(), *(one.grad for one in parameters if one.grad is not None)]


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (2, 5, 24), (3, 1, 24)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.usefixtures("onednn")
def test_linear_layer_and_its_gradients_are_those_of_float64(shape: tuple[int, ...], bias: bool, spread: bool) -> None:
    layer = Linear(24, 40, bias=bias)
    ours = outputs_and_gradients(layer, drawn(*shape), spread, torch.float32)
    exact = outputs_and_gradients(layer, drawn(*shape), spread, torch.float64)
    assert len(ours) == len(exact) == 3 + bias
    for our, their in zip(ours, exact, strict=True):
        assert our.is_contiguous()
        torch.testing.assert_close(our.double(), their, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_frozen_weight_and_input_get_no_gradient() -> None:
    layer, x = Linear(8, 8, bias=False), drawn(4, 8)
    layer(x).sum().backward()
    assert x.grad is None and layer.weight.grad is not None
    layer.weight.requires_grad_(False).grad = None
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_products_take_matrices_in_any_order_of_memory() -> None:
    wide = drawn(30, 90)
    for left in (wide[:, 20:50], wide.t()[20:50], wide[:, ::3], drawn(30, 30)):
        right = drawn(30, 50, seed=2)
        for ours, exact in (
            (product(left, right), left.double() @ right.double()),
            (transposed_product(left, right), left.double().t() @ right.double()),
            (by_rows(right.t(), left), right.double().t() @ left.double().t()),
        ):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("onednn")
def test_other_precisions_and_autocast_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr(products, "by_rows", refuse)
    layer, x = Linear(8, 8), drawn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    assert product(x.double(), x.double().t()).dtype == torch.float64
    with pytest.raises(AssertionError, match="oneDNN"):
        Linear(8, 8)(x)


def test_intel_s_processors_keep_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "Intel(R) Xeon(R) Platinum 8481C"})
    assert not products.has_faster_products.__wrapped__()


def test_weight_is_cast_again_in_each_context() -> None:
    weight = torch.nn.Parameter(drawn(3, 2))
    assert cast_weight(weight, torch.bfloat16) is not cast_weight(weight, torch.bfloat16)
    for number in (1.0, 2.0):
        torch.nn.init.constant_(weight, number)
        with shared_casts():
            first = cast_weight(weight, torch.bfloat16)
            assert cast_weight(weight, torch.bfloat16) is first and first.eq(number).all()
            assert not first.requires_grad
            assert cast_weight(weight, torch.float16).dtype == torch.float16
            with shared_casts():
                assert cast_weight(weight, torch.bfloat16) is not first
            assert cast_weight(weight, torch.bfloat16) is first


def test_casts_end_with_their_context_and_belong_to_one_thread() -> None:
    weight = drawn(3, 2)
    with pytest.raises(ZeroDivisionError), shared_casts():
        first = cast_weight(weight, torch.bfloat16)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(cast_weight, weight, torch.bfloat16).result() is not first
        raise ZeroDivisionError
    assert cast_weight(weight, torch.bfloat16) is not first
