"""Replay and reproduce a run: show the exact batch of a step, and train the first steps again."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from regpt.base.errors import DataError, UserError
from regpt.console.training import Console
from regpt.data.batches import BatchLoader
from regpt.data.shards import TokenWindows, read_manifest
from regpt.data.tokenizer import Tokenizer
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import apply_override, as_tables, build_recipe, load_resolved_recipe, toml_value
from regpt.tokenization.opening import tokenizer_in
from regpt.tracking.events import OutOfMemory, Resumed, Rollback
from regpt.tracking.journal import EventRecord, History, SkippedRecord, StepRecord, read_history
from regpt.tracking.layout import RunPaths
from regpt.training.guard import Guard
from regpt.training.start import check_same_on_all_ranks, open_session
from regpt.training.trainer import Trainer


def records_by_step(history: History) -> dict[int, StepRecord | SkippedRecord]:
    """Return the record of each step, skipped steps included."""
    records: list[StepRecord | SkippedRecord] = [*history.steps, *history.skipped]
    return {record.step: record for record in records}


def excluded_batches(history: History) -> list[int]:
    """Return the batches that rollbacks excluded. The last rollback lists all; later ones do not move earlier steps."""
    rollbacks = history.details(Rollback)
    return rollbacks[-1].excluded_batches if rollbacks else []


def batch_number(history: History, recipe: Recipe, step: int) -> int:
    """Return the number of the batch that step `step`, counted from 1, trained on."""
    guard = Guard(recipe.guard)
    guard.exclude(excluded_batches(history), rollbacks=0)
    return guard.batch_of(step - 1)


# The batch of a step


def replay(run: Path, step: int, as_text: bool) -> Iterator[str]:
    """Yield lines that describe the batch of step `step`, counted from 1: windows, documents, offsets, text.

    `as_text` yields all of the text instead of its beginning. Raises UserError where the journal has no such step,
    DataError where the dataset gives another batch than the one in the journal.
    """
    recipe, history = load_resolved_recipe(RunPaths(run).recipe), read_history(run)
    logged = records_by_step(history).get(step)
    if logged is None:
        raise UserError(f"{run}: the journal has no step {step:,}", f"choose one from 1 to {history.step:,}")
    directory = recipe.data.directory
    manifest = read_manifest(directory)
    windows = TokenWindows(directory, manifest, "train", recipe.model.block_size)
    tokenizer = tokenizer_in(directory, manifest.tokenizer)
    number = batch_number(history, recipe, step)
    with batch_loader(recipe, windows) as batches:
        batch = batches.read(number, step - 1)
    if batch.digest != logged.batch:
        raise DataError(
            f"step {step:,}: the batch from {directory} has digest {batch.digest}, the journal has {logged.batch}",
            "check the shards: regpt data verify",
        )
    what = f"skipped: {logged.reason}" if isinstance(logged, SkippedRecord) else f"loss {logged.loss:.6f}"
    yield f"step {step:,} · batch {number:,} · {len(batch.windows):,} windows · {what}"
    yield f"digest {batch.digest}, as in the journal"
    for window in batch.windows.tolist():
        yield from describe(windows, window, as_text, tokenizer)


def batch_loader(recipe: Recipe, windows: TokenWindows) -> BatchLoader:
    """Return the loader of whole batches, as one rank trains on them."""
    return BatchLoader(
        windows,
        positions=recipe.batch_positions,
        micro_batch=recipe.data.micro_batch,
        seed=recipe.run.seed,
        shuffled=recipe.data.order == "shuffled",
    )


def describe(windows: TokenWindows, window: int, as_text: bool, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield lines that describe a window and its documents, each with its number and position in the shard."""
    shard, first = windows.place(window)
    row = windows.rows([window])[0][:-1]
    document = windows.documents_before(window)
    end_of_text = windows.vocabulary.end_of_text
    ends = np.flatnonzero(row == end_of_text)
    edges = [0, *(int(place) for place in ends if place > 0), len(row)]
    yield f"window {window:,}: {shard.name}, tokens {first:,} to {first + len(row):,}"
    for begin, end in pairwise(edges):
        starts = bool(row[begin] == end_of_text)
        document += starts
        text = tokenizer.decode(row[begin + starts : end])
        shown = text if as_text else shortened(text)
        where = "from its beginning" if starts else "continued"
        yield f"  document {document:,} {where}, tokens {first + begin:,} to {first + end:,}: {shown!r}"


def shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[:length] + "…"


# Reproduction

SCHEDULE_SETTINGS = {
    "run.max_steps",
    *(f"optimizer.{key}" for key in ("cooldown_steps", "cooldown_shape", "adam_cooldown_steps")),
}


@dataclass(frozen=True)
class Divergence:
    """The first step that differs from the journal, and how."""

    step: int
    field: str  # the name of the record's field, or "kind"
    expected: object  # in the journal
    actual: object


def reproduce(
    run: Path,
    steps: int,
    print_line: Callable[[str], None],
    *,
    console: Console | None = None,
    handle_signals: bool = False,
) -> Divergence | None:
    """Train the first steps of a run again, and return the first divergence from its journal, or None.

    Steps are trained with the run's own recipe and data, into a temporary directory, and compared to the bit. A
    rollback and a resume with another schedule end the comparison. `print_line` receives a line per step. Raises
    UserError for a run without steps.
    """
    history = read_history(run)
    recipe = first_recipe(load_resolved_recipe(RunPaths(run).recipe), history)
    known = records_by_step(history)
    count = min(steps, history.step)
    if count == 0:
        raise UserError(f"{run}: the journal has no step", "train it first")
    count = min([count, *(event.step for event in history.events if ends_reproduction(event))])
    with open_session(recipe, console) as (device, ranks, console), tempfile.TemporaryDirectory() as folder:
        manifest = check_same_on_all_ranks(recipe, device, ranks)
        training = Trainer(recipe, Path(folder), device, ranks, manifest, console, handle_signals)
        training.restore(0, of_run=run)
        with (
            closing(training.train_windows),
            closing(training.evaluation.windows),
            training.stopping,
            training.batches() as batches,
        ):
            for step in range(count):
                record = training.train_step(step, batches.at(step))
                if isinstance(record, SkippedRecord):
                    training.state.guard.reject(step, step)
                    training.optimizer.zero_grad()
                divergence = first_difference(known[step + 1], record)
                if divergence is not None:
                    return divergence
                if ranks.is_main:
                    print_line(f"step {step + 1:,} of {count:,}: identical")
    return None


def ends_reproduction(event: EventRecord) -> bool:
    """Return whether the steps after an event depend on more than the recipe that the run began with."""
    if isinstance(event.detail, Resumed):
        return event.step > 0 and not event.detail.changed.keys().isdisjoint(SCHEDULE_SETTINGS)
    return isinstance(event.detail, Rollback) and bool(event.detail.excluded_batches)


def first_difference(expected: StepRecord | SkippedRecord, actual: StepRecord | SkippedRecord) -> Divergence | None:
    """Return the first field that differs, or None."""
    if expected.kind != actual.kind:
        return Divergence(actual.step, "kind", expected.kind, actual.kind)
    if isinstance(expected, SkippedRecord) and isinstance(actual, SkippedRecord):
        is_old = expected.reason == expected.reason.rounded()  # from a journal of version 0.1
        actual = replace(actual, reason=actual.reason.rounded() if is_old else actual.reason)
    known, now = compared_values(expected), compared_values(actual)
    for name, value in known.items():
        if now[name] != value:
            return Divergence(actual.step, name, value, now[name])
    return None


def compared_values(record: StepRecord | SkippedRecord) -> dict[str, object]:
    """Return the values of a record that a reproduction must repeat."""
    if isinstance(record, StepRecord):
        return {name: getattr(record, name) for name in ("batch", "loss", "gradient_norm", "learning_rate")}
    return {"batch": record.batch, **{f"reason.{name}": value for name, value in asdict(record.reason).items()}}


def first_recipe(recipe: Recipe, history: History) -> Recipe:
    """Return the recipe that the run began with, without the changes of resumes and retries."""
    tables = as_tables(recipe)
    for event in reversed(history.events):
        before: dict[str, Any] = {}
        if isinstance(event.detail, Resumed):
            before = {setting: values[0] for setting, values in event.detail.changed.items()}
        if isinstance(event.detail, OutOfMemory) and event.step:  # earlier steps used the larger one
            before["data.micro_batch"] = event.detail.micro_batch_before
        for setting, value in before.items():
            assert not list(apply_override(tables, f"{setting}={toml_value(value)}"))
    first, problems = build_recipe(recipe.name, tables)
    assert first is not None, problems
    return replace(first, name=recipe.name)
