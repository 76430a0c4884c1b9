"""Checkpoints of the 124M model: how long training stands still, and whether writing slows it down."""

import time
from collections.abc import Iterator

import torch

from benchmarks.gpu.bench import Bench, Training, free_memory, median
from benchmarks.gpu.results import Bound, Measured
from regpt.checkpoint.saver import AsyncCheckpointer
from regpt.checkpoint.snapshot import snapshot

MOST_STANDSTILL_SECONDS, MOST_SLOWDOWN = 0.6, 1.05
STEPS = 5


def checkpoints(bench: Bench) -> Iterator[Measured]:
    """Time the copy of the state, with and without pinned memory, and steps while a checkpoint is written."""
    free_memory()
    recipe = bench.recipe("gpt2-modern")
    training, batches = Training(bench, recipe, bench.device(recipe, compiled=True)), bench.batches(recipe)
    parallel = training.parallel
    training.step(batches[0])
    training.step(batches[1])
    alone = [bench.seconds(lambda: training.step(batches[2])) for _ in range(STEPS)]
    if bench.on_card:
        taken = snapshot(0, parallel.model, parallel.optimizer, {})
        for tensors in (taken.weights, taken.moments):
            tensors.update({name: tensor.pin_memory() for name, tensor in tensors.items()})
        pinned = bench.seconds(lambda: snapshot(0, parallel.model, parallel.optimizer, {}, taken))
        yield Measured("copy into pinned memory", pinned, "s")
        del taken
    folder = bench.folder / "saving"
    folder.mkdir()
    with AsyncCheckpointer(folder, recipe.checkpoint) as saver:
        for name in ("first", "second"):
            began_at = time.perf_counter()
            saver.start(training.steps, parallel.model, parallel.optimizer, {}, {})
            standstill = time.perf_counter() - began_at
            meanwhile: list[float] = []
            while not meanwhile or (saver.writing is not None and not saver.writing.done()):
                meanwhile.append(bench.seconds(lambda: training.step(batches[3])))
            saved = saver.collect(wait=True)
            assert saved is not None
            # The first one also gets its memory from the system, once in a run.
            most = bench.speed(Bound(most=MOST_STANDSTILL_SECONDS)) if name == "second" else None
            yield Measured(f"{name} checkpoint: training stands still", standstill, "s", most)
            yield Measured(f"{name} checkpoint: written, hashed, flushed", saved.seconds, "s")
            yield Measured(f"{name} checkpoint: size", saved.bytes / 1e9, "GB")
            slowdown = median(meanwhile) / median(alone)
            most = bench.speed(Bound(most=MOST_SLOWDOWN))
            yield Measured(f"{name} checkpoint: step meanwhile / step alone", slowdown, "", most)
    finite = all(bool(torch.isfinite(parameter).all()) for parameter in parallel.model.parameters())
    yield Measured("weights are finite afterwards", finite, "", Bound(equal=True))
