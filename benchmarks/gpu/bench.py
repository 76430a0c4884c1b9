"""The bench: the device under test, the sizes of all sections, and what earlier sections found."""

import gc
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.gpu.data import synthetic_batches, synthetic_dataset
from benchmarks.gpu.results import Bound, Measured
from regpt.base.cards import Card
from regpt.console.training import quiet_console
from regpt.data.batches import Batch
from regpt.distributed.rank_group import RankGroup
from regpt.machine.device import Device, known_card, open_device
from regpt.machine.oom import is_out_of_memory
from regpt.parallel.model import Parallel
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe
from regpt.training.gradients import Gradients

T = TypeVar("T")
RECIPES = ("gpt2-modern", "gpt2-classic")


@dataclass(frozen=True)
class Sizes:
    """How much a section computes."""

    model: tuple[str, ...] = ()  # settings of the model whose speed is measured; empty: the recipe's, 124M
    short: tuple[str, ...] = ("model.n_layer=4",)  # of the model whose losses are compared
    vocabulary: int = 50_304  # of models that no recipe file describes
    micro_batch: int = 32
    accumulation: int = 4
    steps: int = 20  # that are timed
    loss_shape: tuple[int, int, int] = (32_768, 768, 50_304)  # N, C, V
    loss_rows: tuple[int, ...] = (2_048, 4_096, 8_192)  # of a chunk
    attention_shape: tuple[int, int, int, int] = (32, 12, 1024, 64)  # B, H, T, D
    square: int = 8_192  # side of the largest product
    copied_bytes: int = 1 << 31
    repeats: int = 20  # of a kernel
    reference_steps: int = 6
    questions: int = 10_042
    compared_questions: int = 200
    question_tokens: int = 150
    validation_windows: int = 640
    dataset_share: float = 1.0
    speed_bounds: bool = True


TINY_MODEL = (
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=32",
    "model.mlp_hidden=48",
)
FULL = Sizes()
SMALL = replace(  # of tests/gpu
    FULL,
    model=("model.n_layer=2",),
    short=("model.n_layer=2", "model.block_size=512"),
    micro_batch=16,
    accumulation=2,
    steps=3,
    loss_shape=(4_096, 768, 50_304),
    loss_rows=(2_048,),
    repeats=3,
    questions=256,
    compared_questions=64,
    validation_windows=16,
    dataset_share=0.2,
    speed_bounds=False,
)
TINY = Sizes(
    model=TINY_MODEL,
    short=TINY_MODEL,
    vocabulary=512,
    micro_batch=2,
    accumulation=2,
    steps=2,
    loss_shape=(128, 32, 512),
    loss_rows=(64,),
    attention_shape=(2, 2, 32, 16),
    square=64,
    copied_bytes=1 << 16,
    repeats=2,
    reference_steps=1,
    questions=12,
    compared_questions=6,
    question_tokens=24,
    validation_windows=4,
    dataset_share=0.02,
    speed_bounds=False,
)


@dataclass
class Bench:
    """What sections share."""

    kind: str  # "cuda" or "cpu"
    sizes: Sizes
    folder: Path  # for datasets and runs
    data: Path | None = None  # a prepared dataset; else a synthetic one is written
    compiles: bool = True  # whether sections use torch.compile
    found: dict[str, float] = field(default_factory=dict)  # figures of earlier sections, by name

    def recipe(self, name: str, *settings: str, short: bool = False) -> Recipe:
        """Return a recipe on this device, in the size of the section."""
        always = [f"run.device={self.kind}", f"data.micro_batch={self.sizes.micro_batch}"]
        if self.kind == "cpu":
            always += ["run.precision=float32", "run.matmul_precision=highest"]
        shape = self.sizes.short if short else self.sizes.model
        words = [*shape, *always, *settings]
        recipe = load_recipe(name, [*words, f"data.total_batch_tokens={self.batch_tokens(words)}"])
        return replace(recipe, model=replace(recipe.model, vocab_size=self.sizes.vocabulary))

    def batch_tokens(self, settings: list[str]) -> int:
        last = dict(word.split("=", 1) for word in settings)
        windows = int(last["data.micro_batch"]) * self.sizes.accumulation
        return windows * int(last.get("model.block_size", "1024"))

    def device(self, recipe: Recipe, compiled: bool, precision: torch.dtype | None = None) -> Device:
        """Return the device, compiled only where the bench compiles, in the recipe's precision or another."""
        device = open_device(replace(recipe.run, compile="off"))
        return replace(device, compiled=compiled and self.compiles, precision=precision or device.precision)

    @property
    def place(self) -> torch.device:
        return torch.device(self.kind)

    @property
    def on_card(self) -> bool:
        return self.kind == "cuda"

    @property
    def card(self) -> Card | None:
        """Return the data sheet of this card; None if it is not known."""
        return known_card(self.place)

    @property
    def product_type(self) -> torch.dtype:
        """Return the type of matrix products on a card."""
        return torch.bfloat16 if self.on_card else torch.float32

    def speed(self, bound: Bound) -> Bound | None:
        """Return a bound on speed, which holds in full size only."""
        return bound if self.sizes.speed_bounds else None

    def dataset(self) -> Path:
        """Return the folder of the dataset. Without --data, write a synthetic one on the first call."""
        if self.data is not None:
            return self.data
        folder = self.folder / "data"
        if not folder.exists():
            synthetic_dataset(folder, self.sizes.vocabulary, self.sizes.dataset_share)
        return folder

    def batches(self, recipe: Recipe, micro_batches: int | None = None) -> list[Batch]:
        """Return four batches that take turns."""
        return synthetic_batches(recipe, 4, micro_batches or self.sizes.accumulation)

    def synchronize(self) -> None:
        if self.on_card:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Return the median time of a piece of work, after three warm-ups: by CUDA events, on a CPU by the clock."""
        for _ in range(3):
            work()
        return median([self.one_time(work) for _ in range(self.sizes.repeats)])

    def one_time(self, work: Callable[[], object]) -> float:
        if not self.on_card:
            began_at = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - began_at)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds of one piece of work until the device has finished."""
        self.synchronize()
        began_at = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - began_at


class Training:
    """A model of regpt in training: the same parts and calls as in a run."""

    def __init__(self, bench: Bench, recipe: Recipe, device: Device, parallel: type[Parallel] = Parallel) -> None:
        self.bench, self.recipe, self.device = bench, recipe, device
        self.parallel = parallel(recipe, device, RankGroup())
        self.parallel.initialize(recipe.run.seed)
        console = quiet_console().training_console(recipe, device, 1)
        self.gradients = Gradients(recipe.run.seed, device, RankGroup(), self.parallel, lambda: None, console)
        self.steps = 0

    def step(self, batch: Batch) -> tuple[float, float]:
        """Do an optimizer step as `Trainer.train_step` does; return (mean loss, gradient norm)."""
        loss, norm, _ = self.gradients.compute(self.steps, batch)
        self.parallel.update(norm, self.steps)
        self.steps += 1
        return loss, norm


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def quartiles(name: str, values: list[float], unit: str) -> Iterator[Measured]:
    """Yield the first and third quartile of a list of values."""
    ordered = sorted(values)
    yield Measured(f"{name}, first quartile", ordered[len(ordered) // 4], unit)
    yield Measured(f"{name}, third quartile", ordered[3 * len(ordered) // 4], unit)


def relative(ours: float, theirs: float) -> float:
    """Return the relative difference of two numbers."""
    return abs(ours - theirs) / abs(theirs)


def relative_norm(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the norm of a difference relative to the norm of `theirs`."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def if_it_fits(name: str, values: Generator[Measured, None, T]) -> Generator[Measured, None, T | None]:
    """Yield the values of a measurement and return its result; if memory runs out, yield that and return None."""
    try:
        return (yield from values)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory()  # after the exception, which holds the tensors of its frames
    yield Measured(f"{name}: fits into memory", False)
    return None


def free_memory() -> None:
    """Discard what a section left: compiled graphs, cached memory, peaks of memory."""
    torch.compiler.reset()
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
