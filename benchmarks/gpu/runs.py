"""Whole runs by the command `regpt train`: killed and resumed, out of memory, stopped, with a planted NaN."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench, Training, free_memory, relative
from benchmarks.gpu.children import Child, Ended, Plant
from benchmarks.gpu.results import Bound, Measured
from regpt.checkpoint import store
from regpt.data.shards import read_manifest
from regpt.machine.device import memory_bytes, reserved_bytes
from regpt.preparation.existing import with_fixed_settings
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import to_toml
from regpt.tracking.events import OutOfMemory
from regpt.tracking.journal import History, read_history
from regpt.tracking.layout import RunPaths

TERMINATED = 143  # exit code after SIGTERM: 128 + 15
STEPS = 6
EVERY = 3  # steps between checkpoints
LONG = 100_000  # steps of a run that a signal stops
QUIET = (
    "evaluation.validation_every=0",
    "evaluation.validation_batches=1",
    "evaluation.validation_batch_size=2",
    "evaluation.sample_count=0",
    "evaluation.hellaswag_every=0",
    "optimizer.warmup_steps=3",
)


class Runs:
    """Runs of one recipe, by name, in a folder of their own."""

    def __init__(self, bench: Bench, name: str, *settings: str) -> None:
        self.bench = bench
        self.folder = bench.folder / name
        self.folder.mkdir(parents=True)
        compiled = f"run.compile={'on' if bench.compiles else 'off'}"
        place = (f"data.path={bench.dataset()}", "run.max_steps=6", f"checkpoint.every={EVERY}")
        recipe = bench.recipe("gpt2-modern", *QUIET, *place, compiled, *settings, short=True)
        self.recipe = with_fixed_settings(recipe, read_manifest(bench.dataset()))

    def train(self, name: str, *settings: str, plant: Plant | None = None) -> Child:
        """Start `regpt train` with settings on its command line."""
        file = self.folder / f"{name}.toml"
        file.write_text(to_toml(whole_vocabulary(self.recipe)), encoding="utf-8")
        words = ["train", str(file), "--runs", str(self.folder), "--name", name, *settings]
        return Child(words, self.folder / f"{name}.log", plant)

    def resume(self, name: str) -> Child:
        return Child(["resume", str(self.folder / name)], self.folder / f"{name}-resumed.log")

    def history(self, name: str) -> History:
        return read_history(self.folder / name)

    def losses(self, name: str) -> list[float]:
        return [step.loss for step in self.history(name).steps]

    def weights(self, name: str, step: int) -> bytes:
        """Return the bytes of a checkpoint's weights; empty without that checkpoint."""
        file = RunPaths(self.folder / name).checkpoint(step) / "model.safetensors"
        return file.read_bytes() if file.exists() else b""


def whole_vocabulary(recipe: Recipe) -> Recipe:
    """Return the recipe with GPT-2's padded vocabulary, which a recipe file needs."""
    return replace(recipe, model=replace(recipe.model, vocab_size=50_304))


def ended(name: str, end: Ended, code: int) -> Iterator[Measured]:
    """Yield the exit code, and the last line of the output if it is another one."""
    yield Measured(f"{name}: exit code", end.code, "", Bound(equal=code))
    if end.code != code:
        yield Measured(f"{name}: last line", (end.output.strip().splitlines() or ["(no output)"])[-1][:200])


def exact_resume(bench: Bench) -> Iterator[Measured]:
    """Compare an undisturbed run with one that was killed and resumed, and with one compiled without caches."""
    written = "checkpoint.background=false"  # before the kill
    runs = Runs(bench, "resume", "run.deterministic=true", "model.dropout=0.1", written)
    killed, whole = runs.train("killed", plant=Plant(kill_at=4)), runs.train("whole")
    fresh = runs.train("fresh", plant=Plant(without_caches=True))
    free = runs.train("free", "run.deterministic=false")
    yield from ended("killed in step 5", killed.end(), -9)
    yield from ended("resumed from step 3", runs.resume("killed").end(), 0)
    yield from ended("undisturbed", whole.end(), 0)
    yield from ended("compiled without caches", fresh.end(), 0)
    for name in ("killed", "fresh"):
        losses = runs.losses(name) == runs.losses("whole") and len(runs.losses("whole")) == STEPS
        yield Measured(f"{name}: losses equal to the last bit", losses, "", Bound(equal=True))
        weights = runs.weights(name, STEPS) == runs.weights("whole", STEPS) != b""
        yield Measured(f"{name}: weights equal to the last bit", weights, "", Bound(equal=True))
    yield from ended("not deterministic", free.end(), 0)
    spread = largest_difference(runs.losses("free"), runs.losses("whole"))
    yield Measured("not deterministic: losses, largest relative difference", spread)


def out_of_memory(bench: Bench) -> Iterator[Measured]:
    """Start with a micro-batch that does not fit, uncompiled and compiled; compare with one that does."""
    size = bench.sizes.micro_batch
    for compiled in (False, True) if bench.compiles else (False,):
        name = "compiled" if compiled else "uncompiled"
        runs = Runs(bench, f"memory-{name}", f"run.compile={'on' if compiled else 'off'}")
        plant = Plant(card_share=share_between(bench, runs.recipe, compiled)) if bench.on_card else None
        log = runs.folder / "reserved.txt"
        plant = replace(plant or Plant(most_windows=size // 2), memory_log=log)
        yield Measured(f"{name}: share of the card's memory", plant.card_share)
        large, small = runs.train("large", plant=plant), runs.train("small", f"data.micro_batch={size // 2}")
        yield from ended(f"{name}: too large", large.end(), 0)
        yield from ended(f"{name}: fits", small.end(), 0)
        found = runs.history("large").details(OutOfMemory)
        sizes = [f"{one.micro_batch_before} to {one.micro_batch_after}" for one in found]
        yield Measured(f"{name}: micro-batch", ", ".join(sizes), "", Bound(equal=f"{size} to {size // 2}"))
        largest = largest_difference(runs.losses("large"), runs.losses("small"))
        yield Measured(f"{name}: losses, largest relative difference", largest, "", Bound(most=1e-3))
        if found:
            yield from reserved_memory(name, log)


def reserved_memory(name: str, log: Path) -> Iterator[Measured]:
    """Yield the memory reserved before the first step, when memory ran out, and after it was released.

    At least half of the difference is to be free again: CUDA's allocator may keep parts of segments.
    """
    before, full, after = (int(line) / 1e9 for line in log.read_text(encoding="utf-8").split()[:3])
    yield Measured(f"{name}: reserved before the first step", before, "GB")
    yield Measured(f"{name}: reserved when memory ran out", full, "GB")
    yield Measured(f"{name}: reserved after it was released", after, "GB", Bound(most=(before + full) / 2))


def largest_difference(ours: list[float], theirs: list[float]) -> float:
    """Return the largest relative difference of two lists of losses; NaN if one of them is shorter."""
    if len(ours) != len(theirs) or not ours:
        return math.nan
    return max(map(relative, ours, theirs))


def share_between(bench: Bench, recipe: Recipe, compiled: bool) -> float:
    """Return the share of the card's memory between what half a micro-batch needs and what a whole one needs.

    Half a one fits into the memory that was reserved for it; a whole one fits into no less than it used.
    """
    whole = recipe.data.micro_batch
    enough, _ = memory_of_steps(bench, recipe, compiled, whole // 2)
    _, needed = memory_of_steps(bench, recipe, compiled, whole)
    return (enough + needed) / 2 / torch.cuda.get_device_properties(bench.place).total_memory


def memory_of_steps(bench: Bench, recipe: Recipe, compiled: bool, size: int) -> tuple[int, int]:
    """Return the bytes that two steps reserve and use at most."""
    free_memory()
    recipe = replace(recipe, data=replace(recipe.data, micro_batch=size))
    training = Training(bench, recipe, bench.device(recipe, compiled))
    for batch in bench.batches(recipe, micro_batches=2)[:2]:
        training.step(batch)
    found = reserved_bytes(bench.place), memory_bytes(bench.place)
    del training
    free_memory()
    return found


def stopping(bench: Bench) -> Iterator[Measured]:
    """Stop runs by SIGTERM while they compile and in a step; plant a NaN in one micro-batch."""
    runs = Runs(bench, "stopping", "checkpoint.every=0")
    moments = {
        "while it compiles": Plant(terminate_at=0, terminate_after=2.0 if bench.compiles else 0.0),
        "in step 3": Plant(terminate_at=2),
    }
    eager, long = "run.compile=off", f"run.max_steps={LONG}"
    nan = runs.train("nan", eager, "checkpoint.every=1", plant=Plant(nan_at=2))
    stopped = [
        runs.train(f"stopped-{number}", long, *([eager] if number else []), plant=plant)
        for number, plant in enumerate(moments.values())
    ]
    for number, moment in enumerate(moments):
        yield from ended(f"SIGTERM {moment}", stopped[number].end(), TERMINATED)
        intact = is_intact(runs.folder / f"stopped-{number}")
        yield Measured(f"SIGTERM {moment}: checkpoint is whole", intact, "", Bound(equal=True))
    yield from ended("NaN in step 3", nan.end(), 0)
    skipped = [record.step for record in runs.history("nan").skipped]
    yield Measured("NaN in step 3: skipped steps", ", ".join(map(str, skipped)), "", Bound(equal="3"))
    unchanged = runs.weights("nan", 3) == runs.weights("nan", 2) != b""
    yield Measured("NaN in step 3: weights unchanged", unchanged, "", Bound(equal=True))
    yield Measured("NaN in step 3: good steps", len(runs.losses("nan")), "", Bound(equal=STEPS - 1))


def is_intact(run: Path) -> bool:
    """Return whether the run's newest checkpoint has all its files, with the hashes of its manifest."""
    found = store.list_checkpoints(run)
    return bool(found) and next(store.find_faults(found[-1][1]), None) is None
