"""`regpt evaluate`: a finished model asked everything, its answers kept item by item beside a summary.

Into RUN/evaluations/step_N go TASK.parquet for each task and results.json; a model that is no run's has its folder in
evaluations/. What is finished is there at once, so a stop loses the task at hand only.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regpt.base.errors import UserError
from regpt.base.files import write_json
from regpt.data.shards import TokenWindows, read_manifest
from regpt.distributed.device import Device
from regpt.distributed.ranks import RankGroup
from regpt.evaluation.scoring import PackedTask, choice_losses, make_predictions, max_batch_tokens
from regpt.evaluation.validation import validation
from regpt.interop.open_model import LoadedModel
from regpt.model.gpt import GPT
from regpt.tasks.catalog import HELLASWAG_FILE, TASKS
from regpt.tasks.items import Items, open_items
from regpt.tracking.layout import EVALUATIONS_DIR, RESULTS_FILE, VALIDATION, RunPaths
from regpt.tracking.predictions import Predictions
from regpt.tracking.window_losses import window_losses_file, write_window_losses

Busy = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Result:
    """A line of the table: a task under one rule, or the validation loss."""

    task: str
    what: str
    elsewhere: str  # what others call it
    value: str
    error: str
    of: str


def known_tasks(words: str) -> list[str]:
    """The tasks of a list with commas. Raises UserError for one that is none."""
    names = [word.strip() for word in words.split(",") if word.strip()]
    unknown = [name for name in names if name not in TASKS and name != VALIDATION]
    if unknown or not names:
        choices = ", ".join([VALIDATION, *TASKS])
        raise UserError(f"--tasks {words}: {', '.join(unknown) or 'nothing'} is no task", f"choose of {choices}")
    return list(dict.fromkeys(names))


def default_tasks(opened: LoadedModel) -> list[str]:
    """Validation where there is a data set for it, and HellaSwag."""
    has_data = opened.has_gpt2_tokens and (opened.recipe.data.directory / "manifest.json").is_file()
    return [*([VALIDATION] if has_data else []), "hellaswag"]


def folder_of(opened: LoadedModel) -> Path:
    if opened.run is not None and opened.step is not None:
        return RunPaths(opened.run).evaluation(opened.step)
    return Path(EVALUATIONS_DIR) / opened.name


def evaluate(
    opened: LoadedModel,
    names: Sequence[str],
    into: Path,
    device: Device,
    ranks: RankGroup,
    items: int = 0,
    busy: Busy = lambda what, done, of: None,
) -> list[Result]:
    """Ask every task; returns the lines of a table (on rank 0; nothing on others).

    `busy(task, done, of)` is called between two groups of items; it may raise to stop.
    """
    # what is missing is said before anything is computed
    sets = {name: items_of(name, opened, items) for name in names if name != VALIDATION}
    windows = validation_split(opened) if VALIDATION in names else None
    model = opened.model.to(device.torch_device)
    if device.compiled:
        for block in model.blocks:
            block.compile(dynamic=True)
    weights = digest_of_weights(model)
    ranks.on_main(lambda: begin(into, opened, weights))
    results = []
    for name in names:
        started_at = time.perf_counter()

        def between(done: int, of: int, name: str = name) -> None:
            busy(name, done, of)

        if windows is not None and name == VALIDATION:
            found = validation(model, windows, opened.recipe, device, between, ranks)
            data = read_manifest(opened.recipe.data.directory).digest
            about = {
                "loss": found.loss,
                "standard_error": found.standard_error,
                "bits_per_byte": found.bits_per_byte,
                "windows": found.windows,
                "block_size": model.recipe.block_size,
                "data": data,
            }
            lines = lines_of_validation(about)
            if ranks.is_main:
                write_window_losses(into / window_losses_file(data, found.windows), found.by_window)
        else:
            exam = PackedTask(
                sets[name], model.recipe.block_size, max_batch_tokens(opened.recipe, device), opened.vocabulary
            )
            answers = make_predictions(exam, choice_losses(model, exam, device, between, ranks))
            about, lines = summary(answers), lines_of(answers)
            name = Path(answers.file_name).stem
            if ranks.is_main:
                answers.write(into / answers.file_name)
        if ranks.is_main:
            about["seconds"] = time.perf_counter() - started_at
            add_result(into, device, name, about)
            results += lines
    return results if ranks.is_main else []


def items_of(name: str, opened: LoadedModel, count: int) -> Items:
    task = TASKS[name]
    asked = opened.recipe.evaluation
    return open_items(task, asked.hellaswag_file if task.file == HELLASWAG_FILE else "", count)


def validation_split(opened: LoadedModel) -> TokenWindows:
    if not opened.has_gpt2_tokens:
        raise UserError(
            f"{opened.name}: has a tokenizer of its own, and data sets here hold GPT-2's tokens",
            "leave 'validation' out of --tasks",
        )
    directory = opened.recipe.data.directory
    windows = TokenWindows(directory, read_manifest(directory), "val", opened.recipe.model.block_size)
    if not len(windows):
        raise UserError(
            f"{directory}: its validation split holds no window of {opened.recipe.model.block_size} tokens",
            "name another with data.path=…",
        )
    return windows


def summary(answers: Predictions) -> dict[str, Any]:
    """What results.json says of a task."""
    by_rule = {rule.name: answers.accuracy(rule) for rule in answers.metrics}
    return {
        "items": answers.items,
        "digest": answers.digest,
        "accuracy": {name: accuracy.value for name, accuracy in by_rule.items()},
        "standard_error": {name: accuracy.error for name, accuracy in by_rule.items()},
        "cut": answers.cut,
    }


def digest_of_weights(model: GPT) -> str:
    """SHA-256 of all parameters: which model it is, wherever it lies."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def begin(into: Path, opened: LoadedModel, weights: str) -> None:
    """Make the folder and its results.json. Raises UserError where it holds the answers of another model.

    In a run's own folder these are what a resume went back behind, and give way.
    """
    path = into / RESULTS_FILE
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["weights"] == weights and isinstance(known["tasks"], dict):
            return
        if opened.run is None or into != folder_of(opened):
            raise UserError(
                f"{into}: holds the answers of another model, {known['model']}", "choose another with --into"
            )
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is not what `regpt evaluate` writes", "choose another folder with --into") from None
    into.mkdir(parents=True, exist_ok=True)
    about = {"model": opened.name, "weights": weights, "step": opened.step, "tokens": opened.tokens}
    write_json(path, {**about, "tokenizer": opened.tokenizer, "tasks": {}})


def add_result(into: Path, device: Device, name: str, about: dict[str, Any]) -> None:
    """Into the folder's results.json."""
    known = json.loads((into / RESULTS_FILE).read_text(encoding="utf-8"))
    known["tasks"][name] = {
        **about,
        "device": device.name,
        "precision": device.precision_name,
        "torch": torch.__version__,
    }
    write_json(into / RESULTS_FILE, known)


def lines_of(answers: Predictions) -> list[Result]:
    return [
        Result(
            answers.task,
            rule.description,
            rule.name_elsewhere,
            f"{accuracy.value:.4f}",
            f"{accuracy.error:.4f}",
            of_what(answers),
        )
        for rule in answers.metrics
        for accuracy in [answers.accuracy(rule)]
    ]


def of_what(answers: Predictions) -> str:
    cut = f"; {answers.cut:,} cut to the block" if answers.cut else ""
    return (
        answers.items
        + cut
        + (f"; {answers.non_finite:,} without a number, counted as wrong" if answers.non_finite else "")
    )


def lines_of_validation(about: dict[str, Any]) -> list[Result]:
    of = f"{about['windows']:,} windows of {about['block_size']:,} tokens"
    lines = [Result(VALIDATION, "nats per token", "loss", f"{about['loss']:.4f}", f"{about['standard_error']:.4f}", of)]
    if about["bits_per_byte"]:
        lines.append(Result(VALIDATION, "bits per byte", "bpb", f"{about['bits_per_byte']:.4f}", "", of))
    return lines
