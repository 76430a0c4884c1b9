"""Compare float32 matrix products by oneDNN with torch's own, by MKL on x86: GFLOP/s.

    python -m benchmarks.products

The products are those of a linear layer of the 124M and the 7M model, and of one row, as in decoding: output, gradient
of the input, gradient of the weight. Medians of rounds in turn. regpt uses oneDNN on AMD's processors
(`regpt/machine/products.py`); where this prints that it is slower, it should not.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.history import Measure, Section, measure_of
from regpt.machine.products import by_rows

SHAPES = {  # rows, inputs, outputs
    "a layer of 124M": (4096, 768, 2304),
    "a layer of 7M": (4096, 128, 384),
    "head of 124M": (320, 768, 50_304),
    "one row, 124M": (1, 768, 2304),
}
ROUNDS = 9
SECONDS = 0.02  # the least of a timed repetition


def products(rows: int, inputs: int, outputs: int) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """Return each product of a linear layer, by oneDNN and by torch."""
    x, weight, gradient = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    return {
        "output": (lambda: by_rows(x, weight), lambda: x @ weight.t()),
        "gradient of the input": (lambda: by_rows(gradient, weight.t()), lambda: gradient @ weight),
        "gradient of the weight": (lambda: by_rows(x.t(), gradient.t()), lambda: gradient.t() @ x),
    }


def seconds_of(compute: Callable[[], Tensor], repetitions: int) -> float:
    began_at = time.perf_counter()
    for _ in range(repetitions):
        compute()
    return (time.perf_counter() - began_at) / repetitions


def report() -> Section:
    """Measure and print every product."""
    lines = [
        f"GFLOP/s in float32, {torch.get_num_threads()} threads, medians of {ROUNDS} rounds in turn.",
        "",
        "| product | of | oneDNN | torch's own | ratio |",
        "|---|---|---|---|---|",
    ]
    measures: list[Measure] = []
    print("\n".join(lines[-2:]))
    for name, shape in SHAPES.items():
        operations = 2 * shape[0] * shape[1] * shape[2]
        for part, sides in products(*shape).items():
            repetitions = max(1, int(SECONDS / max(seconds_of(side, 2) for side in sides)))
            rounds = [[seconds_of(side, repetitions) for side in sides] for _ in range(ROUNDS)]
            ratio = measure_of(f"float32 product, {name}, {part}: oneDNN / torch", [own / one for one, own in rounds])
            rates = [operations / statistics.median(side) / 1e9 for side in zip(*rounds, strict=True)]
            lines.append(f"| {part} | {name} | {rates[0]:.0f} | {rates[1]:.0f} | {ratio.shown} |")
            print(lines[-1], flush=True)
            measures.append(ratio)
    return Section("Matrix products in float32", "\n".join(lines), tuple(measures))


if __name__ == "__main__":
    report()
    sys.exit(0)
