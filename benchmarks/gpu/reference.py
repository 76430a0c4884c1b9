"""Losses and gradient norms of a CPU in float32, stored, and the same on this device.

python -m benchmarks.gpu --make-reference
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from benchmarks.gpu.bench import FULL, RECIPES, Bench, Training, relative
from benchmarks.gpu.data import synthetic_batches
from benchmarks.gpu.results import Bound, Measured
from regpt.base.files import write_text
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe

FILE = Path(__file__).with_name("reference.json")
SMALL_MODEL = ("model.n_layer=2", "model.n_head=2", "model.n_embd=128", "model.block_size=256")
SCHEDULE = ("run.max_steps=100", "optimizer.warmup_steps=3")
WINDOWS = 4  # of a step of the small models, in two micro-batches
WHOLE = "124M"  # the name of the model in full


@dataclass(frozen=True)
class Arithmetic:
    """A precision of matrix products, and the relative differences that it may cause."""

    matmul_precision: Literal["highest", "high"]  # of float32 products: "high" allows TF32 on a card
    dtype: torch.dtype
    loss: float
    norm: float


# CPUs with other instructions and PyTorch 2.11 and 2.13 differed by up to 1e-7 in float32; in bfloat16 by 1e-5 in the
# losses and by 1e-3 in the norms, over six steps. A card may round a little more.
ARITHMETICS = {
    "float32": Arithmetic("highest", torch.float32, 5e-6, 1e-4),
    "TF32": Arithmetic("high", torch.float32, 5e-4, 1e-2),
    "bfloat16": Arithmetic("high", torch.bfloat16, 1e-3, 2e-2),
}


def reference_recipe(name: str, kind: str, whole: bool = False) -> Recipe:
    """Return a recipe with its parts, in small, or in full for one window; the same for every size of a bench."""
    hidden = {"gpt2-modern": 344, "gpt2-classic": 512}[name]
    shape = () if whole else (*SMALL_MODEL, f"model.mlp_hidden={hidden}")
    size, T = (1, 1024) if whole else (WINDOWS // 2, 256)
    batch = (f"data.micro_batch={size}", f"data.total_batch_tokens={T * (1 if whole else WINDOWS)}")
    return load_recipe(name, [f"run.device={kind}", "run.precision=float32", *SCHEDULE, *shape, *batch])


def run_steps(bench: Bench, recipe: Recipe, arithmetic: Arithmetic, steps: int) -> list[tuple[float, float]]:
    """Return (loss, gradient norm) of the first steps."""
    recipe = replace(recipe, run=replace(recipe.run, matmul_precision=arithmetic.matmul_precision))
    training = Training(bench, recipe, bench.device(recipe, False, arithmetic.dtype))
    count = recipe.batch_windows // recipe.data.micro_batch
    batches = synthetic_batches(recipe, FULL.reference_steps, count, seed=5)  # also where fewer steps are done
    return [training.step(batch) for batch in batches[:steps]]


def make_reference() -> dict[str, list[tuple[float, float]]]:
    """Compute the reference on this CPU and write it."""
    bench = Bench("cpu", FULL, Path())
    exact = ARITHMETICS["float32"]
    found = {name: run_steps(bench, reference_recipe(name, "cpu"), exact, FULL.reference_steps) for name in RECIPES}
    found[WHOLE] = run_steps(bench, reference_recipe(RECIPES[0], "cpu", whole=True), exact, 1)
    about = {"torch": torch.__version__, "steps": {name: list(map(list, steps)) for name, steps in found.items()}}
    write_text(FILE, json.dumps(about, indent=1) + "\n")
    return found


def stored_steps() -> dict[str, list[tuple[float, float]]]:
    steps = json.loads(FILE.read_text(encoding="utf-8"))["steps"]
    return {name: [(loss, norm) for loss, norm in pairs] for name, pairs in steps.items()}


def same_losses_as_cpu(bench: Bench) -> Iterator[Measured]:
    """Compare losses and gradient norms with the stored ones, in three precisions."""
    stored = stored_steps()
    for arithmetic_name, arithmetic in ARITHMETICS.items():
        if not bench.on_card and arithmetic_name != "float32":
            continue  # the stored figures are a CPU's
        for name in RECIPES:
            steps = run_steps(bench, reference_recipe(name, bench.kind), arithmetic, bench.sizes.reference_steps)
            yield from differences(f"{name}, {arithmetic_name}", steps, stored[name], arithmetic)
        if bench.on_card:
            (found,) = run_steps(bench, reference_recipe(RECIPES[0], bench.kind, whole=True), arithmetic, 1)
            (expected,) = stored[WHOLE]
            yield Measured(f"{WHOLE}, {arithmetic_name}: loss", found[0], "nats", around(expected[0], 0.02))
            yield from differences(f"{WHOLE}, {arithmetic_name}", [found], [expected], arithmetic)


def around(value: float, distance: float) -> Bound:
    return Bound(least=value - distance, most=value + distance)


def differences(
    name: str, ours: list[tuple[float, float]], stored: list[tuple[float, float]], arithmetic: Arithmetic
) -> Iterator[Measured]:
    """Yield the largest relative differences of losses and of gradient norms."""
    pairs = list(zip(ours, stored, strict=False))
    for number, what, most in ((0, "losses", arithmetic.loss), (1, "gradient norms", arithmetic.norm)):
        largest = max(relative(mine[number], theirs[number]) for mine, theirs in pairs)
        yield Measured(f"{name}: {what}, largest relative difference", largest, "", Bound(most=most))
