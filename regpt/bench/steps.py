"""Time optimizer steps on synthetic tokens: the training loop's own step, without dataset, journal and guard."""

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from regpt.bench.result import MemoryUse, StepTimes, TimedStep
from regpt.bench.synthetic import SyntheticWindows
from regpt.console.training import Console
from regpt.data.batches import BatchLoader, equal_batches
from regpt.distributed.rank_group import RankGroup
from regpt.machine.device import Device, memory_bytes, peak_memory_bytes, reserved_bytes, reset_peak_memory
from regpt.machine.load import LoadMeter
from regpt.machine.oom import is_out_of_memory, release_memory, smaller_micro_batch
from regpt.parallel.model import Parallel
from regpt.recipe.recipe import Recipe
from regpt.training.gradients import Gradients

WARM_UP_STEPS = 2  # the first one compiles, allocates memory and chooses kernels
MIN_STEPS = 3


class Trained(NamedTuple):
    """The model after the timed steps, and their times."""

    recipe: Recipe  # with the micro-batch that fits in memory
    parallel: Parallel
    times: StepTimes
    memory: MemoryUse
    other_share: float  # of the processors, used by other programs; -1: unknown


def train_for(recipe: Recipe, device: Device, console: Console, seconds: float) -> Trained:
    """Train for about `seconds` after a warm-up. If memory runs out, begin again with half the micro-batch.

    Raises UserError if it is one sequence already.
    """
    before = 0 if device.torch_device.type == "cuda" else memory_bytes(device.torch_device)
    while True:
        trained = try_to_train(recipe, device, console, seconds, before)
        if trained is not None:
            return trained
        release_memory(device.torch_device.type, device.compiled)
        size, smaller = recipe.data.micro_batch, smaller_micro_batch(recipe, 1)
        console.note(f"out of memory with data.micro_batch = {size}; measuring with {smaller}")
        recipe = replace(recipe, data=replace(recipe.data, micro_batch=smaller))


def try_to_train(recipe: Recipe, device: Device, console: Console, seconds: float, before: int) -> Trained | None:
    """Train for about `seconds`; return None if memory runs out. `before`: bytes of the process without a model."""
    reset_peak_memory(device.torch_device)
    try:
        parallel = Parallel(recipe, device, RankGroup())
        parallel.initialize(recipe.run.seed)
        steps = Steps(recipe, parallel, console)
        console.update_bar("warm-up" + ", compiling" * device.compiled + " …")
        warm_up = steps.run(WARM_UP_STEPS, 0.0, 1)
        # the whole step if three of them fit in the time, otherwise fewer micro-batches in each
        most = int(seconds / MIN_STEPS / warm_up[-1].gradients)
        micro_batches = min(recipe.accumulation_steps(), max(1, most))
        load = LoadMeter(1)
        timed = steps.run(MIN_STEPS, seconds, micro_batches)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    times = StepTimes(
        tokens=recipe.data.total_batch_tokens,
        accumulation=recipe.accumulation_steps(),
        micro_batches=micro_batches,
        warm_up=tuple(warm_up),
        timed=tuple(timed),
    )
    peak = max(before, peak_memory_bytes(device.torch_device))  # the kernel counts the two a little differently
    memory = MemoryUse(peak, before, reserved_bytes(device.torch_device))
    return Trained(recipe, parallel, times, memory, load.other_share())


class Steps:
    """Optimizer steps on synthetic windows, which continue from call to call."""

    def __init__(self, recipe: Recipe, parallel: Parallel, console: Console) -> None:
        self.recipe, self.parallel, self.console = recipe, parallel, console
        self.windows = SyntheticWindows(recipe.model)
        shown = console.training_console(recipe, parallel.device, 1)
        self.gradients = Gradients(
            recipe.run.seed, parallel.device, parallel.ranks, parallel, console.raise_if_stopped, shown
        )
        self.step = 0

    def run(self, least: int, seconds: float, micro_batches: int) -> list[TimedStep]:
        """Do at least `least` steps of `micro_batches` micro-batches, and more until `seconds` have passed."""
        timed: list[TimedStep] = []
        size, data = self.recipe.data.micro_batch, self.recipe.data
        started_at = time.perf_counter()
        with BatchLoader(
            self.windows,
            positions=equal_batches(micro_batches * size),
            micro_batch=size,
            seed=self.recipe.run.seed,
            shuffled=data.order == "shuffled",
        ) as batches:
            while len(timed) < least or time.perf_counter() - started_at < seconds:
                timed.append(self.do(batches))
                if seconds:
                    speed = micro_batches * size * self.recipe.model.block_size / np.median([sum(t) for t in timed])
                    passed = min(seconds, time.perf_counter() - started_at)
                    self.console.update_bar(f"step {len(timed):,} · {speed:,.0f} tokens/s", passed)
        return timed

    def do(self, batches: BatchLoader) -> TimedStep:
        """Do one step, as the training loop does."""
        batch = batches.at(self.step)
        started_at = time.perf_counter()
        _, norm, _ = self.gradients.compute(self.step, batch)
        computed_at = time.perf_counter()
        self.parallel.update(norm, self.step)
        self.step += 1
        return TimedStep(computed_at - started_at, time.perf_counter() - computed_at)
