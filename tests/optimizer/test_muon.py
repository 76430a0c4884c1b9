"""Muon: its arithmetic compared with torch's and with a plain reference, its switches, and its state."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from regpt.machine import products
from regpt.model.gpt import GPT
from regpt.optimizer.exchange import NoExchange
from regpt.optimizer.making import CombinedOptimizer, make_optimizer
from regpt.optimizer.muon import Muon, join, orthogonalize, split
from regpt.recipe.optimization import OptimizerRecipe
from regpt.recipe.settings import load_recipe

SHAPES = [(8, 8), (24, 8), (8, 24)]


def reference(update: Tensor, steps: int = 5) -> Tensor:
    """Return Newton-Schulz iterations in float64, from the formula of Jordan et al."""
    x = update.double() / update.double().norm()
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def muon_of(
    parameters: list[nn.Parameter], settings: OptimizerRecipe, stacked: tuple[int, ...] = (1,), rate: float = 0.02
) -> Muon:
    group = {
        "params": parameters,
        "stacked": [stacked] * len(parameters),
        "lr": rate,
        "weight_decay": settings.muon_weight_decay,
    }
    return Muon([group], settings, NoExchange())


def trained(
    settings: OptimizerRecipe,
    shape: tuple[int, ...],
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    stacked: tuple[int, ...] = (1,),
    steps: int = 3,
) -> tuple[Tensor, list[Tensor]]:
    """Return a matrix before and after each of some steps with the same gradients for the same shape."""
    generator = torch.Generator().manual_seed(1)
    parameter = nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = make([parameter]) if make else muon_of([parameter], settings, stacked)
    start, after = parameter.detach().clone(), []
    for _ in range(steps):
        parameter.grad = torch.randn(shape, generator=generator)
        optimizer.step()
        after.append(parameter.detach().clone())
    return start, after


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_matrix_equals_torch_muon_within_bfloat16(
    shape: tuple[int, int], scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = OptimizerRecipe(muon_weight_decay=0.1, muon_scale=scale)  # type: ignore[arg-type]

    def of_torch(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Muon(parameters, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=scale)

    _, theirs = trained(settings, shape, of_torch)
    monkeypatch.setattr("regpt.optimizer.muon.precision_of_products", lambda device: torch.bfloat16)
    start, ours = trained(settings, shape)
    for one, other in zip(ours, theirs, strict=True):
        moved = float((other - start).abs().max())
        torch.testing.assert_close(one, other, atol=0.02 * moved, rtol=0)
    monkeypatch.undo()
    _, exact = trained(settings, shape)  # float32 differs from bfloat16 by rounding that the iteration amplifies
    torch.testing.assert_close(exact[-1], theirs[-1], atol=0.15 * moved, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_update_equals_a_plain_reference_in_float64(shape: tuple[int, int]) -> None:
    settings = OptimizerRecipe(muon_weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator).double()
    mean = torch.zeros(shape, dtype=torch.float64)
    _, ours = trained(settings, shape)
    for after in ours:
        gradient = torch.randn(shape, generator=generator).double()
        mean = 0.95 * mean + 0.05 * gradient
        update = reference(0.05 * gradient + 0.95 * mean)
        weight = weight * (1 - 0.02 * 0.1) - 0.02 * max(1, shape[0] / shape[1]) ** 0.5 * update
        torch.testing.assert_close(after.double(), weight, atol=3e-6, rtol=0)


@pytest.mark.parametrize("shape", [(3, 20, 60), (2, 60, 20), (1, 16, 16)])
def test_iteration_matrix_by_matrix_is_that_of_the_stack(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    updates, found = torch.randn(shape), []
    for faster in (False, True):
        monkeypatch.setattr(products, "has_faster_products", lambda faster=faster: faster)
        found.append(orthogonalize(updates, 5))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    result = orthogonalize(torch.randn(3, 20, 60), 5)
    assert torch.linalg.svdvals(result).min() > 0.6 and torch.linalg.svdvals(result).max() < 1.3
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4), 5), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (48, 16)])
def test_bits_of_a_matrix_do_not_depend_on_its_batch(shape: tuple[int, int]) -> None:
    updates = torch.randn(5, *shape)
    assert torch.equal(orthogonalize(updates, 5), torch.cat([orthogonalize(one[None], 5) for one in updates]))


@pytest.mark.parametrize("heights", [(1, 1, 1), (4, 1, 1)], ids=str)
@pytest.mark.parametrize("normuon", [False, True])
def test_stacked_matrices_are_orthogonalized_separately(heights: tuple[int, ...], normuon: bool) -> None:
    settings = OptimizerRecipe(kind="muon", normuon=normuon)
    start, together = trained(settings, (24, 8), stacked=heights, steps=2)
    generator = torch.Generator().manual_seed(1)
    whole, *gradients = (torch.randn(24, 8, generator=generator) for _ in range(3))
    assert torch.equal(start, whole)
    rows = [24 // sum(heights) * height for height in heights]
    parts = [nn.Parameter(part.clone()) for part in whole.split(rows)]
    optimizers = [muon_of([part], settings) for part in parts]
    for gradient in gradients:
        for optimizer, part, of_part in zip(optimizers, parts, gradient.split(rows), strict=True):
            part.grad = of_part.clone()
            optimizer.step()
    torch.testing.assert_close(together[-1], torch.cat([part.detach() for part in parts]), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(together[-1], trained(settings, (24, 8), steps=2)[1][-1])


def test_experts_are_a_batch_of_matrices() -> None:
    settings = OptimizerRecipe(normuon=True, kind="muon")
    start, together = trained(settings, (4, 6, 10), stacked=(1, 1), steps=1)
    generator = torch.Generator().manual_seed(1)
    _, gradient = (torch.randn(4, 6, 10, generator=generator) for _ in range(2))
    for expert in range(4):
        for half in (slice(0, 3), slice(3, 6)):
            one = nn.Parameter(start[expert, half].clone())
            one.grad = gradient[expert, half].clone()
            muon_of([one], settings).step()
            assert torch.equal(one.detach(), together[0][expert, half])


def test_normuon_gives_rows_equal_norms_and_the_rms_of_the_paper() -> None:
    settings = OptimizerRecipe(kind="muon", normuon=True, muon_scale="match_rms_adamw")
    start, after = trained(settings, (12, 30), steps=1)
    update = (start - after[0]) / 0.02
    norms = update.norm(dim=1)
    torch.testing.assert_close(norms, norms.mean().expand(12), rtol=1e-3, atol=0)
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=1e-4)


def test_normuon_divides_by_the_root_of_the_mean_of_squares() -> None:
    settings = OptimizerRecipe(kind="muon", normuon=True, normuon_beta2=0.9)
    start, after = trained(settings, (6, 9), steps=2)
    generator = torch.Generator().manual_seed(1)
    _, *gradients = (torch.randn(6, 9, generator=generator).double() for _ in range(3))
    mean, moment, weight = torch.zeros(6, 9), torch.zeros(6, 1), start.double()
    for gradient in gradients:
        mean = 0.95 * mean + 0.05 * gradient
        update = reference(0.05 * gradient + 0.95 * mean)
        moment = 0.9 * moment + 0.1 * update.square().mean(dim=1, keepdim=True)
        update = update / moment.sqrt()
        weight = weight - 0.02 * update * 6**0.5 / update.norm()
    torch.testing.assert_close(after[-1].double(), weight, atol=3e-6, rtol=0)


def test_cautious_decay_spares_weights_that_the_update_moves_away_from_zero() -> None:
    plain = OptimizerRecipe(muon_weight_decay=0.0)
    start, without = trained(plain, (8, 8), steps=1)
    _, cautious = trained(replace(plain, muon_weight_decay=0.5, cautious_weight_decay=True), (8, 8), steps=1)
    towards_zero = (start - without[0]) * start > 0
    assert 8 < towards_zero.sum() < 56
    torch.testing.assert_close(without[0] - cautious[0], torch.where(towards_zero, 0.02 * 0.5 * start, 0.0))


def test_batches_are_bounded_without_changing_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("demo-modern", ["model.n_layer=3", "model.n_embd=16", "optimizer.kind=muon"])
    results = []
    for elements in (1 << 25, 1):
        monkeypatch.setattr("regpt.optimizer.muon.BATCH_ELEMENTS", elements)
        model = GPT(recipe.model)
        model.initialize(1)
        optimizer = make_optimizer(model, recipe)
        model(torch.arange(64).view(2, 32), torch.arange(1, 65).view(2, 32)).backward()
        optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("stacked", [(1,), (2, 1, 1)])
def test_joining_split_matrices_returns_the_parameters(count: int, stacked: tuple[int, ...]) -> None:
    """Of more ranks than there are matrices, some own none."""
    parameters = torch.arange(count * 8 * 3.0).view(count, 8, 3)
    parts = split(parameters, stacked)
    assert torch.equal(join(parts, torch.Size([8, 3])), parameters)
    rows = join([part[..., :1] for part in parts], torch.Size([8, 1]))
    assert torch.equal(rows, parameters[..., :1])


def test_state_of_muon_is_momentum_and_row_moments_alone() -> None:
    recipe = load_recipe("demo-modern", ["model.n_embd=16", "optimizer.kind=muon", "optimizer.normuon=true"])
    model = GPT(recipe.model)
    model.initialize(1)
    optimizer = make_optimizer(model, recipe)
    assert isinstance(optimizer, CombinedOptimizer)
    model(torch.arange(64).view(2, 32), torch.arange(1, 65).view(2, 32)).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        state = {key: tuple(value.shape) for key, value in optimizer.state[parameter].items()}
        if name.startswith("blocks.") and parameter.ndim == 2:
            assert state == {"momentum_buffer": tuple(parameter.shape), "row_moment": (parameter.shape[0], 1)}
        else:
            assert state == {"exp_avg": tuple(parameter.shape), "exp_avg_sq": tuple(parameter.shape), "step": ()}
    optimizer.state.clear()
    assert not any(part.state for part in optimizer.parts)
