"""The ceilings of this machine: memory bandwidth, and the rate of the products of a training step."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.results import Measured, Value
from regpt.machine.compilation import find_obstacle
from regpt.machine.nvidia import driver_version
from regpt.recipe.architecture import ModelRecipe

CLOCKS = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"
BANDWIDTH = "bandwidth, bytes/s"  # a key of `Bench.found`


def describe_machine(bench: Bench) -> dict[str, Value]:
    """Return what identifies the machine and its software."""
    about: dict[str, Value] = {
        "device": bench.kind,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
        "command": " ".join(sys.argv[1:]),
    }
    obstacle = find_obstacle(bench.kind)
    about["torch.compile"] = obstacle.problem if obstacle else bench.compiles
    if bench.on_card:
        properties = torch.cuda.get_device_properties(bench.place)
        about |= {
            "card": properties.name,
            "memory, GB": properties.total_memory / 1e9,
            "multiprocessors": properties.multi_processor_count,
            "driver": driver_version() or query("driver_version"),
            "CUDA": torch.version.cuda or "",
            "cuDNN": torch.backends.cudnn.version(),
            "triton": triton_version(),
            "clocks before": query(CLOCKS),
        }
    return about


def query(names: str) -> str:
    """Return what nvidia-smi says; empty if it is missing or refuses."""
    command = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def ceilings(bench: Bench) -> Iterator[Measured]:
    """Measure a copy, a large product, and each product of a micro-batch in its three directions."""
    bench.found[BANDWIDTH] = copy_bandwidth(bench)
    yield Measured("copy, bytes read and written", bench.found[BANDWIDTH] / 1e9, "GB/s")
    side = bench.sizes.square
    yield Measured(f"product of {side} x {side}", rate(bench, side, side, side), "TFLOP/s")
    model = bench.recipe("gpt2-modern").model
    positions = bench.sizes.micro_batch * model.block_size
    floor = 0.0
    for name, (inputs, outputs) in products(model).items():
        times = model.n_layer if name != "head" else 1
        for direction, shape in directions(positions, inputs, outputs).items():
            teraflops = rate(bench, *shape)
            floor += times * 2 * positions * inputs * outputs / teraflops / 1e9
            yield Measured(f"{name}, {direction}", teraflops, "TFLOP/s")
    yield Measured("all products of a micro-batch at these rates", floor, "ms")


def copy_bandwidth(bench: Bench) -> float:
    """Return the bytes per second that a copy reads and writes."""
    source = torch.randn(bench.sizes.copied_bytes // 4, device=bench.place)
    target = torch.empty_like(source)
    return 2 * bench.sizes.copied_bytes / (bench.milliseconds(lambda: target.copy_(source)) / 1e3)


def products(model: ModelRecipe) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of the matrix products of the modern model."""
    C, M = model.n_embd, model.mlp_hidden
    return {"qkv": (C, 3 * C), "out": (C, C), "expand": (C, 2 * M), "down": (M, C), "head": (C, model.vocab_size)}


def directions(positions: int, inputs: int, outputs: int) -> dict[str, tuple[int, int, int]]:
    """Return the shapes (rows, inner, columns) of a layer's forward product and its two gradients."""
    return {
        "forward": (positions, inputs, outputs),
        "gradient of the input": (positions, outputs, inputs),
        "gradient of the weight": (outputs, positions, inputs),
    }


def rate(bench: Bench, rows: int, inner: int, columns: int) -> float:
    """Return the rate of a product of random matrices, in TFLOP/s."""
    left = torch.randn(rows, inner, device=bench.place, dtype=bench.product_type)
    right = torch.randn(inner, columns, device=bench.place, dtype=bench.product_type)
    out = torch.empty(rows, columns, device=bench.place, dtype=bench.product_type)
    return 2 * rows * inner * columns / bench.milliseconds(lambda: torch.mm(left, right, out=out)) / 1e9
