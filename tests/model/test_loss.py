"""The chunked loss equals the plain cross-entropy: mean, gradients, and loss per position."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.data.loss_masks import IGNORED
from regpt.model import chunks
from regpt.model.chunks import rows_of_chunk
from regpt.model.loss import LossOptions, add_product, cap, compiled_softmax_gradient_, mean_loss, token_losses


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


def set_chunk_logits(monkeypatch: pytest.MonkeyPatch, logits: int) -> None:
    """Let chunks on a CPU have this many logits, with gradients or without."""
    for name in ("CHUNK_LOGITS_ON_CPU", "GRADIENT_CHUNK_LOGITS_ON_CPU", "BFLOAT16_GRADIENT_CHUNK_LOGITS_ON_CPU"):
        monkeypatch.setattr(chunks, name, logits)


@pytest.mark.parametrize("rows_per_chunk", [1, 5, 36, 37, 1000])
@pytest.mark.parametrize("rows_per_piece", [1, 2, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_chunked_loss_and_gradients_equal_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, rows_per_chunk: int, rows_per_piece: int, dtype: torch.dtype, tolerance: float
) -> None:
    set_chunk_logits(monkeypatch, rows_per_chunk * 311)
    monkeypatch.setattr(chunks, "ELEMENTS_IN_CACHE", rows_per_piece * 311)
    ours, theirs = (value_and_gradients(function, *inputs(dtype)) for function in (mean_loss, plain))
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)


def test_token_losses_equal_cross_entropy_without_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunk_logits(monkeypatch, 7 * 311)
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


@pytest.mark.parametrize("softcap", [0.0, 300.0])
@pytest.mark.parametrize("z_weight", [0.0, 1e-3])
def test_unlikely_targets_among_likely_ones_have_exact_losses(softcap: float, z_weight: float) -> None:
    """Losses from 6 to over 200 nats: float32 has no likelihood for the larger ones."""
    hidden, weight, targets = inputs(torch.float32, rows=60)
    with torch.no_grad():
        hidden *= torch.linspace(0, 4, 60)[:, None]
    exact = cap(hidden.double() @ weight.double().t(), softcap)
    losses = F.cross_entropy(exact, targets, reduction="none")
    assert losses.min() < 6 and losses.max() > 200
    torch.testing.assert_close(token_losses(hidden, weight, targets, softcap).double(), losses, rtol=1e-5, atol=1e-5)
    expected = losses.mean() + z_weight * exact.logsumexp(dim=1).square().mean()
    value = mean_loss(hidden, weight, targets, LossOptions(softcap, z_weight))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("elements", [2 * 311, 1 << 21])
def test_loss_under_autocast_is_float32_and_near_cross_entropy(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    set_chunk_logits(monkeypatch, 10 * 311)
    monkeypatch.setattr(chunks, "ELEMENTS_IN_CACHE", elements)
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
    set_chunk_logits(monkeypatch, 4 * 311)
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


@pytest.mark.parametrize(
    ("on_cpu", "limit"), [(True, chunks.GRADIENT_CHUNK_LOGITS_ON_CPU), (False, chunks.CHUNK_LOGITS_ON_GPU)]
)
def test_loss_chunk_is_as_large_as_the_limit_allows_in_whole_tiles(on_cpu: bool, limit: int) -> None:
    rows = rows_of_chunk(1 << 20, 50_304, on_cpu, compiled=False, bfloat16=False)
    assert rows % 64 == 0 and rows * 50_304 <= limit < (rows + 64) * 50_304


@pytest.mark.parametrize(
    ("positions", "on_cpu", "rows"),
    [
        (32 * 1024, False, 4096),
        (64 * 1024, False, 4096),
        (16 * 1024, False, 4096),
        (4 * 1024, True, 2048),
        (100, True, 100),
    ],
)
def test_compiled_chunks_have_one_shape(positions: int, on_cpu: bool, rows: int) -> None:
    assert rows_of_chunk(positions, 50_304, on_cpu, compiled=True, bfloat16=True) == rows
    assert positions % rows == 0


def test_uncompiled_chunks_have_about_the_same_size() -> None:
    """4,096 positions are two chunks of 2,048 in bfloat16, not one of 2,624 and a rest."""
    assert rows_of_chunk(4096, 50_304, on_cpu=True, compiled=False, bfloat16=True) == 2048
    assert rows_of_chunk(4096, 50_304, on_cpu=True, compiled=False, bfloat16=False) == 640
    assert rows_of_chunk(4096, 50_304, on_cpu=True, compiled=False, bfloat16=False, gradients=False) == 320
    assert rows_of_chunk(3000, 50_304, on_cpu=True, compiled=False, bfloat16=True) == 1536


def masked(targets: Tensor) -> Tensor:
    """Return targets of which every third is ignored."""
    return torch.where(torch.arange(len(targets)) % 3 == 0, IGNORED, targets)


def sum_over_all(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.t(), targets, ignore_index=IGNORED, reduction="sum") / len(targets)


@pytest.mark.parametrize("options", [LossOptions(), LossOptions(softcap=5.0, z_weight=1e-2)])
def test_ignored_targets_count_neither_in_the_loss_nor_in_gradients(
    monkeypatch: pytest.MonkeyPatch, options: LossOptions
) -> None:
    set_chunk_logits(monkeypatch, 7 * 311)
    hidden, weight, targets = inputs(torch.float64)

    def ours(*given: Tensor) -> Tensor:
        return mean_loss(*given, options)

    def of_kept_rows(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """The mean over the kept rows alone, times their share."""
        kept = targets != IGNORED
        return mean_loss(hidden[kept], weight, targets[kept], options) * float(kept.double().mean())

    values = value_and_gradients(ours, hidden, weight, masked(targets))
    definition = sum_over_all if options == LossOptions() else of_kept_rows
    expected = value_and_gradients(definition, hidden, weight, masked(targets))
    for our, their in zip(values, expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-11, atol=1e-12)
    assert not values[1][masked(targets) == IGNORED].any()
    without_gradient = token_losses(hidden, weight, masked(targets), options.softcap)
    assert torch.equal(without_gradient == 0, masked(targets) == IGNORED)


# The compiled kernel


def random_logits(dtype: torch.dtype, seed: int = 5, rows: int = 16, vocabulary: int = 1000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, vocabulary, generator=generator)
    return logits.to(dtype), torch.randint(0, vocabulary, (rows,), generator=generator)


def capped_loss(logits: Tensor, targets: Tensor, softcap: float, z_weight: float) -> Tensor:
    capped = softcap * (logits / softcap).tanh() if softcap else logits
    return F.cross_entropy(capped, targets, reduction="none") + z_weight * capped.logsumexp(1).square()


OPTIONS = [(0.0, 0.0), (5.0, 0.0), (0.0, 1e-2), (5.0, 1e-2)]


@pytest.mark.parametrize(("softcap", "z_weight"), OPTIONS)
def test_softcap_and_z_loss_equal_their_definitions(softcap: float, z_weight: float) -> None:
    """Through the head and the whole function, in float64."""
    options = LossOptions(softcap, z_weight)

    def plain_with_options(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return capped_loss(hidden @ weight.t(), targets, softcap, z_weight).mean()

    def ours_with_options(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return mean_loss(hidden, weight, targets, options)

    ours, theirs = (value_and_gradients(f, *inputs(torch.float64)) for f in (ours_with_options, plain_with_options))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-11, atol=1e-12)


def test_softcap_of_losses_without_gradient_equals_its_definition() -> None:
    hidden, weight, targets = inputs(torch.float64)
    expected = capped_loss(hidden @ weight.t(), targets, 5.0, 0.0)
    torch.testing.assert_close(token_losses(hidden, weight, targets, 5.0), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.compile
@pytest.mark.parametrize(("softcap", "z_weight"), [OPTIONS[0], OPTIONS[3]])
def test_compiled_kernel_equals_float64(softcap: float, z_weight: float) -> None:
    """In float32 within 1e-5 and 1e-6. In bfloat16 the gradient is rounded once, the sums are not."""
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        logits, targets = random_logits(dtype)
        exact = logits.double().requires_grad_()
        (gradient,) = torch.autograd.grad(capped_loss(exact, targets, softcap, z_weight).sum(), exact)
        expected = cap(exact.detach(), softcap).logsumexp(1, keepdim=True)
        log_sums = compiled_softmax_gradient_()(logits, targets, softcap, z_weight)
        assert log_sums.dtype == torch.float32
        assert (log_sums - expected).abs().max() < 1e-5
        assert (logits.double() - gradient).norm() / gradient.norm() < tolerance


@pytest.mark.compile
def test_compiled_loss_equals_the_uncompiled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over whole chunks and a rest: 300 rows in chunks of 128, 128 and 44."""
    set_chunk_logits(monkeypatch, 128 * 311)
    compiled = LossOptions(compiled=True)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        plain_values = value_and_gradients(mean_loss, *inputs(dtype, rows=300))
        values = value_and_gradients(lambda *given: mean_loss(*given, compiled), *inputs(dtype, rows=300))
        for ours, theirs in zip(values, plain_values, strict=True):
            assert (ours - theirs).norm() / theirs.norm() < tolerance
        hidden, weight, targets = inputs(dtype, rows=300)
        plain_values = value_and_gradients(mean_loss, hidden, weight, masked(targets))
        values = value_and_gradients(lambda *given: mean_loss(*given, compiled), hidden, weight, masked(targets))
        for ours, theirs in zip(values, plain_values, strict=True):
            assert (ours - theirs).norm() / theirs.norm() < tolerance


def test_loss_in_bfloat16_is_unbiased() -> None:
    """Over 100 draws, the mean error against float64 is zero within three standard errors."""
    errors = []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        hidden, weight = torch.randn(16, 64, generator=generator), torch.randn(311, 64, generator=generator) / 4
        targets = torch.randint(0, 311, (16,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            value = mean_loss(hidden, weight.requires_grad_(), targets, LossOptions(z_weight=1e-30))
        errors.append(value.detach().double() - F.cross_entropy(hidden.double() @ weight.double().t(), targets))
    error = torch.stack(errors)
    assert 0 < error.std() < 2e-2
    assert error.mean().abs() < 3 * error.std() / 10


def test_product_is_added_in_the_precision_of_the_sum() -> None:
    left, right = torch.ones(3, 2, dtype=torch.bfloat16), torch.ones(3, 2, dtype=torch.bfloat16)
    first = add_product(None, left, right, torch.float32)
    assert torch.equal(first, torch.full((2, 2), 3.0))
    total = add_product(first.fill_(2.0**-12), left, right, torch.float32)
    assert total is first and torch.equal(total, torch.full((2, 2), 3 + 2.0**-12))
