"""Head and loss: value and gradients compared with float64, time and memory compared with other implementations."""

from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.bench import Bench, median, relative_norm
from benchmarks.gpu.ceilings import BANDWIDTH
from benchmarks.gpu.results import Bound, Measured
from regpt.model import chunks
from regpt.model.loss import LossOptions, mean_loss

EXACT_ROWS = 1_024  # that are computed in float64
DRAWS = 20  # for the mean error
GRADIENTS = ("gradient of the hidden states", "gradient of the weight")
RUN_ROWS = 4_096  # of a chunk in a run with 32 windows of 1,024 tokens
MOST_BYTES_PER_LOGIT = 17  # of time, at the bandwidth of a copy: 10 ms on an H100

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (N, C), (V, C), (N) -> ()


@dataclass
class Inputs:
    """Hidden states, the head's weight, and targets."""

    hidden: Tensor  # (N, C)
    weight: Tensor  # (V, C)
    targets: Tensor  # (N)

    def first(self, rows: int) -> "Inputs":
        return Inputs(self.hidden[:rows], self.weight, self.targets[:rows])


def draw(bench: Bench, seed: int) -> Inputs:
    """Draw inputs of the scale that a model has: normalized hidden states, weights of deviation 0.02."""
    N, C, V = bench.sizes.loss_shape
    generator = torch.Generator(device=bench.place).manual_seed(seed)
    hidden = torch.randn(N, C, generator=generator, device=bench.place)
    weight = 0.02 * torch.randn(V, C, generator=generator, device=bench.place)
    return Inputs(hidden, weight, torch.randint(0, V, (N,), generator=generator, device=bench.place))


def value_and_gradients(bench: Bench, loss: Loss, inputs: Inputs, dtype: torch.dtype) -> tuple[float, Tensor, Tensor]:
    """Return a loss and its gradients with respect to the hidden states and the weight."""
    hidden, weight = (one.detach().requires_grad_() for one in (inputs.hidden, inputs.weight))
    with torch.autocast(bench.kind, dtype) if dtype == torch.bfloat16 else nullcontext():
        value = loss(hidden, weight, inputs.targets)
    value.backward()
    assert hidden.grad is not None and weight.grad is not None
    return float(value.detach()), hidden.grad, weight.grad


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The loss over all logits at a time, as nanoGPT computes it."""
    return F.cross_entropy(F.linear(hidden, weight), targets)


def ours(compiled: bool) -> Loss:
    return lambda hidden, weight, targets: mean_loss(hidden, weight, targets, LossOptions(compiled=compiled))


def other_losses(bench: Bench) -> dict[str, Loss]:
    """Return the losses of others that this machine has."""
    found: dict[str, Loss] = {"cross_entropy over all logits": plain}
    if bench.compiles:
        found["cross_entropy over all logits, compiled"] = torch.compile(plain, dynamic=False)
    if hasattr(F, "linear_cross_entropy"):
        found["torch's linear_cross_entropy"] = lambda hidden, weight, targets: F.linear_cross_entropy(
            hidden, weight, targets
        )
    try:
        from liger_kernel.transformers import functional  # type: ignore[import-not-found]
    except ImportError:
        return found
    found["Liger's fused loss"] = functional.liger_fused_linear_cross_entropy
    return found


def loss_parity_and_time(bench: Bench) -> Iterator[Measured]:
    """Compare our loss, compiled and not, with float64 and with others."""
    inputs = draw(bench, 1)
    yield from parity(bench, inputs)
    yield from mean_error(bench)
    dtype = bench.product_type
    products = bench.milliseconds(lambda: three_products(bench, inputs))
    yield Measured("the three products alone", products, "ms")
    N, _, V = bench.sizes.loss_shape
    name = "ours, compiled" if bench.compiles else "ours"
    for rows in bench.sizes.loss_rows:
        limit = patch.object(chunks, "COMPILED_CHUNK_LOGITS_ON_GPU", rows * V)
        with limit, patch.object(chunks, "GRADIENT_CHUNK_LOGITS_ON_CPU", rows * V):
            total = yield from time_and_memory(bench, f"{name}, {rows:,} rows", ours(bench.compiles), inputs, dtype)
        bandwidth = bench.found.get(BANDWIDTH, 0.0)
        per_logit = (total - products) / 1e3 * bandwidth / (N * V)
        bound = bench.speed(Bound(most=MOST_BYTES_PER_LOGIT)) if rows == RUN_ROWS else None
        yield Measured(f"{name}, {rows:,} rows: besides the products, per logit", per_logit, "bytes", bound)
    yield from time_and_memory(bench, "ours, uncompiled", ours(False), inputs, dtype)
    if bench.on_card:
        settings = torch.backends.cuda.matmul
        for allowed in (False, True):  # True is PyTorch's default
            settings.allow_bf16_reduced_precision_reduction = allowed
            value, of_hidden, _ = value_and_gradients(bench, ours(bench.compiles), inputs, dtype)
            exact = value_and_gradients(bench, ours(False), inputs, torch.float32)
            about = f"sums of products in bfloat16 {'allowed' if allowed else 'forbidden'}: "
            yield Measured(about + "error of the value", abs(value - exact[0]), "nats")
            yield Measured(about + "error of the gradient of the hidden states", relative_norm(of_hidden, exact[1]))
            del of_hidden, exact
    for name, loss in other_losses(bench).items():
        try:
            yield from time_and_memory(bench, name, loss, inputs, dtype)
        except (RuntimeError, TypeError, AttributeError) as error:  # another program's failure is a result
            yield Measured(f"{name}: failed", str(error).splitlines()[0][:120])


def parity(bench: Bench, inputs: Inputs) -> Iterator[Measured]:
    """Compare value and gradients with float64 on some rows, and with float32 on all."""
    few = inputs.first(EXACT_ROWS)
    exact = value_and_gradients(
        bench, plain, Inputs(few.hidden.double(), few.weight.double(), few.targets), torch.float64
    )
    torch.set_float32_matmul_precision("highest")
    for dtype, of_value, of_gradient in ((torch.float32, 1e-5, 3e-6), (torch.bfloat16, 2e-3, 1e-2)):
        for compiled in (True, False) if bench.compiles else (False,):
            name = f"{str(dtype).removeprefix('torch.')}, {'compiled' if compiled else 'uncompiled'}: "
            value, *gradients = value_and_gradients(bench, ours(compiled), few, dtype)
            yield Measured(name + "error of the value", abs(value - exact[0]), "nats", Bound(most=of_value))
            for what, mine, theirs in zip(GRADIENTS, gradients, exact[1:], strict=True):
                error = relative_norm(mine, theirs)
                yield Measured(f"{name}error of the {what}", error, "", Bound(most=of_gradient))
    del exact
    on_all = value_and_gradients(bench, ours(False), inputs, torch.float32)
    value, *gradients = value_and_gradients(bench, ours(bench.compiles), inputs, torch.bfloat16)
    yield Measured("all rows, bfloat16 against float32: value", abs(value - on_all[0]), "nats", Bound(most=2e-3))
    for what, mine, theirs in zip(GRADIENTS, gradients, on_all[1:], strict=True):
        yield Measured(f"all rows, bfloat16 against float32: {what}", relative_norm(mine, theirs), "", Bound(most=1e-2))
    torch.set_float32_matmul_precision("high" if bench.on_card else "highest")


def mean_error(bench: Bench) -> Iterator[Measured]:
    """Yield the mean error of the bfloat16 value over several draws, in standard errors."""
    errors = []
    for seed in range(DRAWS):
        few = draw(bench, 100 + seed).first(EXACT_ROWS)
        with torch.no_grad():
            exact = float(ours(False)(few.hidden.double(), few.weight.double(), few.targets))
            with torch.autocast(bench.kind, torch.bfloat16):
                errors.append(float(ours(False)(few.hidden, few.weight, few.targets)) - exact)
    mean = sum(errors) / DRAWS
    deviation = (sum((one - mean) ** 2 for one in errors) / (DRAWS - 1)) ** 0.5
    yield Measured("bfloat16: mean error of the value", mean, "nats")
    yield Measured("the same, in standard errors", abs(mean) / (deviation / DRAWS**0.5), "", Bound(most=4))


def three_products(bench: Bench, inputs: Inputs) -> None:
    """Do the head's products, in chunks of our loss, and nothing else."""
    N, _, V = bench.sizes.loss_shape
    dtype = bench.product_type
    weight, rows = (
        inputs.weight.to(dtype),
        chunks.rows_of_chunk(N, V, not bench.on_card, compiled=True, bfloat16=dtype == torch.bfloat16),
    )
    logits = torch.empty(rows, V, dtype=dtype, device=bench.place)
    total = torch.zeros_like(weight)
    for part in inputs.hidden.to(dtype).split(rows):
        torch.mm(part, weight.t(), out=logits[: len(part)])
        torch.mm(logits[: len(part)], weight)
        torch.addmm(total, logits[: len(part)].t(), part, out=total)


def time_and_memory(
    bench: Bench, name: str, loss: Loss, inputs: Inputs, dtype: torch.dtype
) -> Generator[Measured, None, float]:
    """Yield the time of a loss with its gradients, and the most memory that it allocates; return the milliseconds."""

    def work() -> None:
        value_and_gradients(bench, loss, inputs, dtype)

    work()  # compiles
    if bench.on_card:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        yield Measured(f"{name}: memory", (torch.cuda.max_memory_allocated() - before) / 1e9, "GB")
    taken = median([bench.one_time(work) for _ in range(bench.sizes.repeats)])
    yield Measured(f"{name}: forward and backward", taken, "ms")
    return taken
