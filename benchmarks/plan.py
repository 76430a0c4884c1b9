"""Compare the times that `regpt plan` predicts on a CPU with real steps and real runs.

For each size the parts are measured for two seconds, as in `regpt plan`, and then a few steps are timed. Both run in
turn in one process, so a slower machine slows both. For each run the prediction is made just before it; a run is longer
than the measurement, so other programs may slow it alone. The share of the processors that they used is printed.

    python -m benchmarks.plan              all sizes and runs, in separate processes
    python -m benchmarks.plan --size NAME  one size
    python -m benchmarks.plan --run NAME   one run, in a temporary folder
    python -m benchmarks.plan --run NAME --cpu-seconds
                                           the same on a busy machine: one thread, and the CPU seconds of the process
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.history import Section, measure_of
from benchmarks.step import THREADS
from regpt.distributed.rank_group import RankGroup
from regpt.machine.device import Device, open_device
from regpt.machine.load import LoadMeter, process_seconds
from regpt.parallel.model import Parallel
from regpt.plan.measure_cpu import measured_rates
from regpt.plan.run_time import time_on_cpu
from regpt.plan.workload import count_work
from regpt.preparation.dataset import open_or_prepare
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe
from regpt.training.start import start_training

GOAL = 0.25
ROUNDS = 3
STEPS = 3  # per round; the median counts
WIDE = "model.n_layer=8 model.n_embd=256 model.mlp_hidden=688 data.micro_batch=8 data.total_batch_tokens=4096"
SIZES = {  # name: (recipe, settings)
    "modern 7M, float32": ("demo-modern", "run.precision=float32"),
    "classic 7M, float32": ("demo-classic", "run.precision=float32"),
    "modern 7M, bfloat16": ("demo-modern", "run.precision=bfloat16"),
    "modern 7M, 4 x 16 x 256, float32": (
        "demo-modern",
        "run.precision=float32 data.micro_batch=16 data.total_batch_tokens=16384",
    ),
    "modern 20M, 2 x 8 x 256, float32": ("demo-modern", f"run.precision=float32 {WIDE}"),
    "modern 124M, 1 x 1,024, float32": (
        "gpt2-modern",
        "run.precision=float32 data.micro_batch=1 data.total_batch_tokens=1024",
    ),
    "classic 124M, 1 x 1,024, float32": (
        "gpt2-classic",
        "run.precision=float32 data.micro_batch=1 data.total_batch_tokens=1024",
    ),
}

RUNS = {  # name: (recipe, settings)
    "demo-classic": ("demo-classic", ""),
    "demo-modern": ("demo-modern", ""),
    "2 layers, 60 steps, 50 items": (
        "demo-modern",
        "model.n_layer=2 run.max_steps=60 optimizer.warmup_steps=5 evaluation.hellaswag_items=50"
        " evaluation.validation_every=30 evaluation.hellaswag_every=60 evaluation.sample_every=60",
    ),
    "40 steps, 4 checkpoints": (
        "demo-classic",
        "run.max_steps=40 optimizer.warmup_steps=5 checkpoint.every=10 evaluation.hellaswag_every=0",
    ),
}


def one_run(name: str, cpu_seconds: bool = False) -> tuple[float, float, float]:
    """Return (predicted, measured) seconds of a whole command, and the share (0 to 1) that others used meanwhile.

    With `cpu_seconds` both are those that processors work for one thread, which other programs hardly change.
    """
    file, settings = RUNS[name]
    recipe = load_recipe(file, [*settings.split(), *(["run.threads=1"] if cpu_seconds else [])])
    if cpu_seconds:
        time.perf_counter = time.process_time
    device = open_device(recipe.run)
    start_seconds = time.process_time() if cpu_seconds else process_seconds()
    open_or_prepare(recipe)
    optimistic, conservative = time_on_cpu(
        recipe, count_work(recipe), measured_rates(recipe, device), start_seconds
    ).total
    load, started_at = LoadMeter(1), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        start_training(recipe, Path(folder) / "run")
    measured = start_seconds + time.perf_counter() - started_at
    return (optimistic * conservative) ** 0.5, measured, load.other_share()


def one_size(name: str) -> list[tuple[float, float]]:
    """Return (predicted, measured) seconds of a step for each round."""
    file, settings = SIZES[name]
    recipe = load_recipe(file, [*settings.split(), f"run.threads={THREADS}", "run.device=cpu"])
    device = open_device(recipe.run)
    parallel = Parallel(recipe, device, RankGroup())
    parallel.initialize(recipe.run.seed)
    take_step(parallel, recipe, device)
    pairs = []
    for _ in range(ROUNDS):
        predicted = measured_rates(recipe, device).step_seconds(recipe)
        pairs.append((predicted, statistics.median(take_step(parallel, recipe, device) for _ in range(STEPS))))
    return pairs


def take_step(parallel: Parallel, recipe: Recipe, device: Device) -> float:
    """Return the seconds of one optimizer step on random tokens."""
    shape = (recipe.data.micro_batch, recipe.model.block_size + 1)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 50_257, shape))
    started_at = time.perf_counter()
    for _ in range(recipe.accumulation_steps()):
        with device.autocast():
            loss = parallel.train_module(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
    parallel.clip(parallel.squared_norm() ** 0.5)
    parallel.optimizer.step()
    parallel.optimizer.zero_grad()
    return time.perf_counter() - started_at


def report() -> Section:
    lines = [
        f"On this CPU, {THREADS} threads, predicted from parts measured for two seconds; {ROUNDS} rounds, each with the"
        f" median of {STEPS} real steps. Goal: within {GOAL:.0%}.",
        "",
        "| | predicted | measured | predicted / measured |",
        "|---|---|---|---|",
    ]
    measures = []
    for name in SIZES:
        pairs = numbers_of("--size", name)
        ratios = [predicted / taken for predicted, taken in pairs]
        medians = [statistics.median(values) for values in zip(*pairs, strict=True)]
        lines.append(
            f"| {name} | {medians[0]:.2f} s | {medians[1]:.2f} s"
            f" | **{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
        print(lines[-1], flush=True)
        measures.append(measure_of(f"step of {name}: predicted / measured", ratios))
    text = "\n".join([*lines, "", *run_lines()])
    return Section("The step time that `regpt plan` predicts", text, tuple(measures))


def run_lines() -> list[str]:
    """Return the table of whole runs."""
    lines = [
        "### Whole runs",
        "",
        "Training, validation, HellaSwag, samples, checkpoints and the start, predicted just before. Goal: within"
        f" {GOAL:.0%} where others use few of the processors.",
        "",
        "| | predicted | measured | predicted / measured | others used |",
        "|---|---|---|---|---|",
    ]
    for name in RUNS:
        ((predicted, measured, others),) = numbers_of("--run", name)
        ratio = predicted / measured
        lines.append(f"| {name} | {predicted:.0f} s | {measured:.0f} s | **{ratio:.2f}** | {others:.0%} |")
        print(lines[-1], flush=True)
    return lines


def numbers_of(option: str, name: str) -> list[tuple[float, ...]]:
    """Run this module in another process and return the numbers in each line that it prints."""
    words = [sys.executable, "-m", "benchmarks.plan", option, name]
    shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return [tuple(map(float, line.split())) for line in shown.splitlines()]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=SIZES, help="measure one size in this process")
    options.add_argument("--run", choices=RUNS, help="measure one run in this process")
    options.add_argument("--cpu-seconds", action="store_true", help="with --run, count CPU seconds of one thread")
    arguments = options.parse_args()
    if arguments.run:
        print(*(f"{number:.4f}" for number in one_run(arguments.run, arguments.cpu_seconds)))
    elif arguments.size:
        for predicted, taken in one_size(arguments.size):
            print(f"{predicted:.4f} {taken:.4f}")
    else:
        print(report().text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
