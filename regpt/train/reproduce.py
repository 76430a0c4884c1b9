"""A run again: the exact batch of a step, and the first steps trained anew and held against the journal."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from regpt.base.errors import DataError, UserError
from regpt.base.recipe import Recipe
from regpt.base.settings import apply_override, as_tables, build_recipe, load_recipe, toml_value
from regpt.data.batches import BatchLoader
from regpt.data.shards import TokenWindows, read_manifest
from regpt.data.tokenizer import END_OF_TEXT, decode
from regpt.tracking.events import OutOfMemory, Resumed, Rollback
from regpt.tracking.journal import History, SkippedRecord, StepRecord, read_history
from regpt.tracking.layout import RunPaths
from regpt.train.console import Console
from regpt.train.guard import Guard
from regpt.train.start import check_same_on_all_ranks, open_session
from regpt.train.trainer import Trainer


def records_by_step(history: History) -> dict[int, StepRecord | SkippedRecord]:
    """Each step's record, those included that were passed over."""
    records: list[StepRecord | SkippedRecord] = [*history.steps, *history.skipped]
    return {record.step: record for record in records}


def left_out_batches(history: History) -> list[int]:
    """The batches that the run left out after going back; those that it left out later lie behind all steps before."""
    rollbacks = history.details(Rollback)
    return rollbacks[-1].excluded_batches if rollbacks else []


def batch_number(history: History, recipe: Recipe, step: int) -> int:
    """The batch that step number `step`, counted from 1, trained on."""
    guard = Guard(recipe.guard)
    guard.leave_out(left_out_batches(history), 0)
    return guard.batch_of(step - 1)


# The batch of a step


def replay(run: Path, step: int, as_text: bool) -> Iterator[str]:
    """Lines that say what step number `step`, counted from 1, trained on: windows, documents, offsets, text.

    Raises UserError where the journal knows no such step, DataError where the batch is not the one that it logged.
    """
    recipe, history = load_recipe(RunPaths(run).recipe), read_history(run)
    logged = records_by_step(history).get(step)
    if logged is None:
        raise UserError(f"{run}: its journal knows no step {step:,}", f"name one from 1 to {history.step:,}")
    directory = recipe.data.directory
    windows = TokenWindows(directory, read_manifest(directory), "train", recipe.model.block_size)
    number = batch_number(history, recipe, step)
    with batch_loader(recipe, windows) as batches:
        batch = batches.read(number)
    if batch.digest != logged.batch:
        raise DataError(
            f"step {step:,}: the batch that {directory} gives has digest {batch.digest}, the journal {logged.batch}",
            "`regpt data verify` tells whether the shards have changed",
        )
    what = "was passed over: " + logged.reason if isinstance(logged, SkippedRecord) else f"loss {logged.loss:.6f}"
    yield f"step {step:,} · batch {number:,} · {len(batch.windows):,} windows · {what}"
    yield f"digest {batch.digest}, as the journal has it"
    for window in batch.windows.tolist():
        yield from describe(windows, window, as_text)


def batch_loader(recipe: Recipe, windows: TokenWindows) -> BatchLoader:
    return BatchLoader(
        windows,
        batch_windows=recipe.batch_windows,
        micro_batch=recipe.data.micro_batch,
        seed=recipe.run.seed,
        shuffled=recipe.data.order == "shuffled",
    )


def describe(windows: TokenWindows, window: int, as_text: bool) -> Iterator[str]:
    """A window and the documents in it, each with its number in the shard and its place there."""
    shard, first = windows.place(window)
    row = windows.rows([window])[0][:-1]
    document = windows.documents_before(window)
    ends = np.flatnonzero(row == END_OF_TEXT)
    edges = [0, *(int(place) for place in ends if place > 0), len(row)]
    yield f"window {window:,}: {shard.name}, tokens {first:,} to {first + len(row):,}"
    for begin, end in pairwise(edges):
        starts = bool(row[begin] == END_OF_TEXT)
        document += starts
        text = decode(row[begin + starts : end])
        shown = text if as_text else shortened(text)
        where = "from its beginning" if starts else "continued"
        yield f"  document {document:,} {where}, tokens {first + begin:,} to {first + end:,}: {shown!r}"


def shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[:length] + "…"


# The first steps again


@dataclass(frozen=True)
class Divergence:
    """The first step that came out otherwise, and how."""

    step: int
    what: str
    then: object
    now: object


def reproduce(
    run: Path,
    steps: int,
    told: Callable[[str], None],
    *,
    console: Console | None = None,
    handle_signals: bool = False,
) -> Divergence | None:
    """Train a run's first steps again, from its own recipe and data, and return the first that differs, or None."""
    history = read_history(run)
    recipe = first_recipe(load_recipe(RunPaths(run).recipe), history)
    known = records_by_step(history)
    count = min(steps, history.step)
    if count == 0:
        raise UserError(f"{run}: its journal holds no step", "train it first")
    if left_out_batches(history):
        count = min(count, min(event.step for event in history.events if isinstance(event.detail, Rollback)))
    with open_session(recipe, console) as (device, ranks, console), tempfile.TemporaryDirectory() as folder:
        manifest = check_same_on_all_ranks(recipe, device, ranks)
        training = Trainer(recipe, Path(folder), device, ranks, manifest, console, handle_signals)
        training.parallel.initialize(recipe.run.seed)
        with training.stopping, training.batches() as batches:
            for step in range(count):
                record = training.train_step(step, batches.at(step))
                if isinstance(record, SkippedRecord):
                    training.guard.reject(step, step)
                    training.optimizer.zero_grad(set_to_none=True)
                parting = first_difference(known[step + 1], record)
                if parting is not None:
                    return parting
                if ranks.is_main:
                    told(f"step {step + 1:,} of {count:,}: the same")
    return None


def first_difference(then: StepRecord | SkippedRecord, now: StepRecord | SkippedRecord) -> Divergence | None:
    if then.kind != now.kind:
        return Divergence(now.step, "kind of record", then.kind, now.kind)
    names = ("batch", "loss", "gradient_norm", "learning_rate") if isinstance(now, StepRecord) else ("batch", "reason")
    for name in names:
        one, other = getattr(then, name), getattr(now, name)
        if one != other:
            return Divergence(now.step, name, one, other)
    return None


def first_recipe(recipe: Recipe, history: History) -> Recipe:
    """The recipe that the run began with: what resumes have changed is put back."""
    tables = as_tables(recipe)
    for event in reversed(history.events):
        before: dict[str, Any] = {}
        if isinstance(event.detail, Resumed):
            before = {setting: values[0] for setting, values in event.detail.changed.items()}
        if isinstance(event.detail, OutOfMemory) and event.step:  # before it, the steps were taken with the larger one
            before["data.micro_batch"] = event.detail.micro_batch_before
        for setting, value in before.items():
            assert not list(apply_override(tables, f"{setting}={toml_value(value)}"))
    first, problems = build_recipe(recipe.name, tables)
    assert first is not None, problems
    return replace(first, name=recipe.name)
