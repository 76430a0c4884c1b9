"""Say what a training step on a CPU spends its time on: matrix products, attention, head, norms, copies, optimizer.

    python -m benchmarks.profile                              every size in both precisions
    python -m benchmarks.profile --size 7M --precision bfloat16 --operations 20

The step is that of benchmarks/step.py, uncompiled, under torch's profiler, which counts the time of each operation
without those that it calls. Matrix products with the vocabulary among their dimensions are those of the head, batched
ones belong to attention. The profiler adds a little to each operation; the shares are of the sum. Page faults are
counted by the kernel. The last row compares the operations of a step per second, as nanoGPT counts them, with those of
the fastest square matrix product.
"""

import argparse
import os
import resource
import statistics
import sys
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from benchmarks.history import Section
from benchmarks.step import PRECISIONS, SIZES, TOKENS, our_step
from regpt.machine.products import product

STEPS = 2  # profiled, after some that warm up and those that are timed
WARM_UP = 4  # the allocator and the profiler have their memory after these
TIMED = 3
SECONDS_OF_PRODUCTS = 3.0
HEAD, PRODUCTS = "head: matrix products", "matrix products of the blocks"
ATTENTION = "attention"
HEAD_LOSS, ELEMENTWISE, OTHER = (
    "head: loss and its gradient",
    "elementwise: rotary angles, norms, SwiGLU, sums",
    "other",
)
KINDS: dict[str, tuple[str, ...]] = {
    PRODUCTS: ("aten::mm", "aten::addmm", "aten::mkldnn", "mkl::", "mkldnn::"),
    ATTENTION: (
        "aten::_scaled_dot_product",
        "aten::bmm",
        "aten::baddbmm",
        "aten::exp",
        "aten::amax",
        "CausalAttention",
    ),
    "optimizer and clipping": ("aten::_fused_adamw", "aten::_foreach", "aten::linalg_vector_norm"),
    "embedding": ("aten::embedding", "aten::index_select", "aten::index_add", "aten::index_put"),
    ELEMENTWISE: (
        "aten::add",
        "aten::mul",
        "aten::sub",
        "aten::div",
        "aten::neg",
        "aten::silu",
        "aten::gelu",
        "aten::rsqrt",
        "aten::mean",
        "aten::sum",
        "aten::pow",
        "aten::square",
        "aten::native_layer_norm",
        "aten::_fused_rms_norm",
    ),
    "copies and casts": ("aten::copy_", "aten::clone", "aten::contiguous", "aten::fill_", "aten::zero_", "aten::cat"),
}
ORDER = (
    PRODUCTS,
    ATTENTION,
    ELEMENTWISE,
    HEAD,
    HEAD_LOSS,
    "embedding",
    "copies and casts",
    "optimizer and clipping",
    OTHER,
)


@dataclass(frozen=True)
class Operation:
    """An operation of a step with the shapes of its inputs."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    milliseconds: float  # per step, without the operations that it calls

    def kind(self, vocabulary: int) -> str:
        """Return the part of the step that this operation belongs to; `vocabulary` is the width of the logits."""
        found = next((kind for kind, names in KINDS.items() if self.name.startswith(names)), OTHER)
        if not any(vocabulary in shape[:2] for shape in self.shapes):
            return found
        if found == PRODUCTS:
            return HEAD
        has_logits = any(len(shape) == 2 and shape[1] == vocabulary for shape in self.shapes)
        return HEAD_LOSS if has_logits and found in (OTHER, ELEMENTWISE, ATTENTION, "copies and casts") else found


@dataclass(frozen=True)
class Profile:
    """The operations of a step, longest first, and how many fresh pages it touched."""

    operations: list[Operation]
    page_faults: float
    milliseconds: float  # of a step without the profiler
    share_of_rate: float = 0.0  # operations of a step per second / those of the fastest matrix product

    def kinds(self, vocabulary: int) -> dict[str, float]:
        """Return the milliseconds of each part of a step."""
        found: dict[str, float] = defaultdict(float)
        for one in self.operations:
            found[one.kind(vocabulary)] += one.milliseconds
        return dict(found)


def profile_of(step: Callable[[], float], steps: int = STEPS) -> Profile:
    """Profile some steps, after some that warm up, and others that are timed."""
    for _ in range(WARM_UP):
        step()
    milliseconds = 1e3 * statistics.median(timeit.repeat(step, number=1, repeat=TIMED))
    faults = 0.0
    turns = schedule(wait=0, warmup=WARM_UP, active=steps)
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, record_shapes=True, schedule=turns, acc_events=True) as recorded:
        for turn in range(WARM_UP + steps):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            step()
            if turn >= WARM_UP:
                faults += (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps
            recorded.step()
    averages: Sequence[Any] = recorded.key_averages(group_by_input_shape=True)
    operations = [
        Operation(one.key, shapes_of(one.input_shapes), one.self_cpu_time_total / 1e3 / steps)
        for one in averages
        if not one.key.startswith("ProfilerStep")
    ]
    return Profile(sorted(operations, key=lambda one: -one.milliseconds), faults, milliseconds)


def rate_of_products(precision: str, seconds: float) -> float:
    """Return the operations per second of the fastest square matrix product."""
    dtype = getattr(torch, precision)
    rates: list[float] = []
    began_at = time.perf_counter()
    while not rates or time.perf_counter() - began_at < seconds:
        for side in (2048, 4096):
            left, right = torch.randn(2, side, side).to(dtype)
            rates.append(2 * side**3 / timeit.timeit(lambda: product(left, right), number=1))  # noqa: B023  called at once
    return max(rates)


def shapes_of(stored: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for shape in stored if shape and all(isinstance(side, int) for side in shape))


def report(sizes: Sequence[str] = tuple(SIZES), precisions: Sequence[str] = PRECISIONS, operations: int = 0) -> Section:
    """Profile a step of each size and precision, and print the table; the longest operations too, if asked."""
    columns: dict[str, Profile] = {}
    for name in sizes:
        for precision in precisions:
            size = SIZES[name]
            found = profile_of(our_step(size.model, size, precision, "off"))
            per_second = size.model.flops_per_token * TOKENS / (found.milliseconds / 1e3)
            found = replace(found, share_of_rate=per_second / rate_of_products(precision, SECONDS_OF_PRODUCTS))
            columns[f"{name} {precision}"] = found
            for one in found.operations[:operations]:
                print(f"{one.milliseconds:9.1f} ms  {one.kind(size.model.vocab_size):28} {one.name} {list(one.shapes)}")
    text = table(columns)
    print(text, flush=True)
    return Section("What a training step consists of", text)


def table(columns: dict[str, Profile], vocabulary: int = SIZES["7M"].model.vocab_size) -> str:
    """Return the share of each part, the milliseconds, and the page faults of a step.

    The profiler's allocations can cause page faults that a run does not have, so the sum can exceed the time without.
    """
    kinds = {name: found.kinds(vocabulary) for name, found in columns.items()}
    sums = {name: sum(found.values()) for name, found in kinds.items()}
    rows = [["part", *columns], ["---"] * (len(columns) + 1)]
    rows += [[part, *(f"{kinds[name].get(part, 0.0) / sums[name]:.1%}" for name in columns)] for part in ORDER]
    rows.append(["milliseconds, sum", *(f"{total:,.0f}" for total in sums.values())])
    rows.append(["milliseconds, not profiled", *(f"{found.milliseconds:,.0f}" for found in columns.values())])
    rows.append(["share of the matmul rate", *(f"{found.share_of_rate:.2f}" for found in columns.values())])
    rows.append(["page faults, profiled", *(f"{found.page_faults:,.0f}" for found in columns.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES), help="sizes of the model")
    options.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="default: both")
    options.add_argument("--operations", type=int, default=0, metavar="N", help="show the N longest operations")
    options.add_argument("--threads", type=int, default=0, help="default: one per core")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads or os.cpu_count() or 1)
    report(arguments.size, arguments.precision, arguments.operations)
    return 0


if __name__ == "__main__":
    sys.exit(main())
