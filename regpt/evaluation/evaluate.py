"""Evaluate a trained model: validation loss and multiple-choice tasks, with the predictions for every item.

`regpt evaluate` writes TASK.parquet for each task and results.json, into RUN/evaluations/step_N for a run and into
evaluations/NAME for any other model. A task is written as soon as it is finished, so a stop loses only the current one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from regpt.base.errors import UserError
from regpt.data.shards import MANIFEST_FILE, Manifest, TokenWindows, read_manifest
from regpt.data.tokenizer import describe_tokenizer
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.results import Result, add_result, create_results
from regpt.evaluation.scoring import PackedTask, choice_losses, make_predictions, max_batch_tokens
from regpt.evaluation.sharding import ReportProgress
from regpt.evaluation.text_losses import text_losses
from regpt.evaluation.validation import Validation, validation
from regpt.interop.open_model import LoadedModel, digest_of_weights
from regpt.machine.device import Device
from regpt.model.gpt import GPT
from regpt.tasks.catalog import HELLASWAG_FILE, TASKS
from regpt.tasks.items import Items, open_items
from regpt.tracking.layout import VALIDATION
from regpt.tracking.predictions import Predictions
from regpt.tracking.window_losses import (
    text_losses_file,
    window_losses_file,
    write_text_losses,
    write_window_losses,
)

ReportTaskProgress = Callable[[str, int, int], None]  # (task, done, total); may raise to stop the evaluation


def ignore_task_progress(task: str, done: int, total: int) -> None:
    """Report nothing and never stop."""


def parse_tasks(text: str) -> list[str]:
    """Return the tasks in a list separated by commas. Raises UserError for an unknown one, or for none."""
    names = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [name for name in names if name not in TASKS and name != VALIDATION]
    if unknown or not names:
        problem = f"unknown task {', '.join(unknown)}" if unknown else "names no task"
        raise UserError(f"--tasks {text}: {problem}", f"choose from {', '.join([VALIDATION, *TASKS])}")
    return list(dict.fromkeys(names))


def default_tasks(loaded: LoadedModel) -> list[str]:
    """Return validation, where the model's recipe has a prepared dataset, and HellaSwag."""
    directory = loaded.recipe.data.directory
    is_readable = (directory / MANIFEST_FILE).is_file() and has_same_ids(read_manifest(directory), loaded)
    return [*([VALIDATION] if is_readable else []), "hellaswag"]


def has_same_ids(manifest: Manifest, loaded: LoadedModel) -> bool:
    """Return whether a dataset has the ids of a model's tokenizer.

    The token that ends a text may differ: a model's config.json can name another one than its tokenizer does.
    """
    key = "vocabulary_sha256"
    return bool(manifest.tokenizer[key] == loaded.tokenizer.record[key])


def evaluate(
    loaded: LoadedModel,
    names: Sequence[str],
    into: Path,
    device: Device,
    ranks: RankGroup,
    items: int = 0,
    progress: ReportTaskProgress = ignore_task_progress,
) -> list[Result]:
    """Evaluate a model on tasks and write the results into the directory `into`.

    Returns the rows of a table on rank 0, and nothing on other ranks. `items` limits each task to a stratified subset;
    0: all items. `progress(task, done, total)` is called between two groups of items. Raises UserError, before
    anything is computed, where a dataset is missing or `into` belongs to another model.
    """
    evaluation = Evaluation(loaded, into, device, ranks)
    inputs = {
        name: evaluation.open_windows() if name == VALIDATION else open_task(name, loaded, items) for name in names
    }
    model = evaluation.move_model()
    weights = digest_of_weights(model)
    ranks.on_main(lambda: create_results(into, loaded, weights))
    for name, opened in inputs.items():
        if isinstance(opened, TokenWindows):
            evaluation.validate(opened, partial(progress, name))
        else:
            evaluation.score(opened, partial(progress, name))
    return evaluation.results


@dataclass
class Evaluation:
    """One model under evaluation. `results` grow on rank 0, which also writes the files."""

    loaded: LoadedModel
    into: Path
    device: Device
    ranks: RankGroup
    results: list[Result] = field(default_factory=list)

    def move_model(self) -> GPT:
        """Move the model to the device and compile its blocks if the device asks for it."""
        model = self.loaded.model.to(self.device.torch_device)
        if self.device.compiled:
            for block in model.blocks:
                block.compile(dynamic=True)
        return model

    def open_windows(self) -> TokenWindows:
        """Open the validation split of the recipe's dataset."""
        loaded = self.loaded
        directory, block_size = loaded.recipe.data.directory, loaded.recipe.model.block_size
        manifest = read_manifest(directory)
        if not has_same_ids(manifest, loaded):
            raise UserError(
                f"{loaded.name}: its tokenizer is {describe_tokenizer(loaded.tokenizer.record)}, but {directory}"
                f" contains tokens of {describe_tokenizer(manifest.tokenizer)}",
                f"leave '{VALIDATION}' out of --tasks, or name a dataset of its tokens: data.path=…",
            )
        windows = TokenWindows(directory, manifest, "val", block_size)
        if not len(windows):
            raise UserError(
                f"{directory}: the validation split is shorter than one window of {block_size} tokens",
                "name another dataset with data.path=…",
            )
        return windows

    def validate(self, windows: TokenWindows, progress: ReportProgress) -> None:
        """Compute the validation loss."""
        started_at = time.perf_counter()
        model, recipe = self.loaded.model, self.loaded.recipe
        tokenizer = self.loaded.tokenizer
        found = validation(model, windows, recipe, self.device, progress, self.ranks, tokenizer, keep_tokens=True)
        if not self.ranks.is_main:
            return
        data = read_manifest(recipe.data.directory).digest
        path = self.into / window_losses_file(data, found.windows)
        write_window_losses(path, found.by_window)
        of_text = None if found.by_token is None else text_losses(windows, found.by_token, tokenizer)
        if of_text is not None:
            write_text_losses(text_losses_file(path), of_text)
        summary = {
            "loss": found.loss,
            "standard_error": found.standard_error,
            "bits_per_byte": found.bits_per_byte,
            "windows": found.windows,
            "block_size": windows.block_size,
            "data": data,
            "seconds": time.perf_counter() - started_at,
        }
        add_result(self.into, self.device, VALIDATION, summary)
        self.results += validation_results(found, windows)

    def score(self, items: Items, progress: ReportProgress) -> None:
        """Score a multiple-choice task."""
        started_at = time.perf_counter()
        model = self.loaded.model
        max_tokens = max_batch_tokens(self.loaded.recipe, self.device)
        task = PackedTask(items, model.recipe.block_size, max_tokens, self.loaded.tokenizer)
        predictions = make_predictions(task, choice_losses(model, task, self.device, progress, self.ranks))
        if not self.ranks.is_main:
            return
        predictions.write(self.into / predictions.file_name)
        summary = {**summarize(predictions), "seconds": time.perf_counter() - started_at}
        add_result(self.into, self.device, Path(predictions.file_name).stem, summary)
        self.results += task_results(predictions)


def open_task(name: str, loaded: LoadedModel, count: int) -> Items:
    """Open the items of a task: all, or a stratified subset of `count`."""
    task = TASKS[name]
    file = loaded.recipe.evaluation.hellaswag_file if task.file == HELLASWAG_FILE else ""
    return open_items(task, file, count)


def summarize(predictions: Predictions) -> dict[str, Any]:
    """Return what results.json says about a task."""
    by_metric = {metric.name: predictions.accuracy(metric) for metric in predictions.metrics}
    return {
        "items": predictions.description,
        "digest": predictions.digest,
        "accuracy": {name: accuracy.value for name, accuracy in by_metric.items()},
        "standard_error": {name: accuracy.error for name, accuracy in by_metric.items()},
        "cut": predictions.truncated,
    }


def task_results(predictions: Predictions) -> list[Result]:
    """Return the rows of a task, one for each of its metrics."""
    return [
        Result(
            task=predictions.task,
            metric=metric.description,
            name_elsewhere=metric.name_elsewhere,
            value=accuracy.value,
            error=accuracy.error,
            dataset=describe_items(predictions),
        )
        for metric in predictions.metrics
        for accuracy in [predictions.accuracy(metric)]
    ]


def describe_items(predictions: Predictions) -> str:
    """Describe the items of a task, such as '10,042 items; 3 truncated to the block'."""
    notes = [predictions.description]
    if predictions.truncated:
        notes.append(f"{predictions.truncated:,} truncated to the block")
    if predictions.non_finite:
        notes.append(f"{predictions.non_finite:,} with a NaN loss, counted as wrong")
    return "; ".join(notes)


def validation_results(found: Validation, windows: TokenWindows) -> list[Result]:
    """Return the rows of a validation: nats per token, and bits per byte where they are known."""
    dataset = f"first {found.windows:,} of {len(windows):,} windows of {windows.block_size:,} tokens"
    rows = [Result(VALIDATION, "nats per token", "loss", found.loss, found.standard_error, dataset)]
    if found.bits_per_byte:
        rows.append(Result(VALIDATION, "bits per byte", "bpb", found.bits_per_byte, None, dataset))
    return rows
