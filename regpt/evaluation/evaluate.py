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
from regpt.data.items import Items, open_items
from regpt.data.shards import TokenWindows, read_manifest
from regpt.data.tasks import HELLASWAG_FILE, TASKS
from regpt.model.gpt import GPT
from regpt.results.models import Opened
from regpt.run.answers import Answers
from regpt.run.devices import Device
from regpt.run.evaluate import file_of_losses, keep_losses, validation
from regpt.run.ranks import Ranks
from regpt.run.scoring import Exam, answered, ending_losses, tokens_at_a_time

FOLDER = "evaluations"
RESULTS = "results.json"
VALIDATION = "validation"

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


def default_tasks(opened: Opened) -> list[str]:
    """Validation where there is a data set for it, and HellaSwag."""
    has_data = opened.has_gpt2_tokens and (opened.recipe.data.directory / "manifest.json").is_file()
    return [*([VALIDATION] if has_data else []), "hellaswag"]


def folder_of(opened: Opened) -> Path:
    if opened.run is not None:
        return opened.run / FOLDER / f"step_{opened.step:06d}"
    return Path(FOLDER) / opened.name


def evaluate(
    opened: Opened,
    names: Sequence[str],
    into: Path,
    device: Device,
    ranks: Ranks,
    items: int = 0,
    busy: Busy = lambda what, done, of: None,
) -> list[Result]:
    """Ask every task; returns the lines of a table (on rank 0; nothing on others).

    `busy(task, done, of)` is called between two groups of items; it may raise to stop.
    """
    # what is missing is said before anything is computed
    sets = {name: items_of(name, opened, items) for name in names if name != VALIDATION}
    windows = validation_split(opened) if VALIDATION in names else None
    model = opened.model.to(device.place)
    if device.compiled:
        for block in model.blocks:
            block.compile(dynamic=True)
    weights = digest_of_weights(model)
    ranks.by_first(lambda: begin(into, opened, weights))
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
            if ranks.first:
                keep_losses(into / file_of_losses(data, found.windows), found.by_window)
        else:
            exam = Exam(sets[name], model.recipe.block_size, tokens_at_a_time(opened.recipe, device), opened.vocabulary)
            answers = answered(exam, ending_losses(model, exam, device, between, ranks))
            about, lines = summary(answers), lines_of(answers)
            name = Path(answers.file_name).stem
            if ranks.first:
                answers.write(into / answers.file_name)
        if ranks.first:
            about["seconds"] = time.perf_counter() - started_at
            add_result(into, device, name, about)
            results += lines
    return results if ranks.first else []


def items_of(name: str, opened: Opened, count: int) -> Items:
    task = TASKS[name]
    asked = opened.recipe.evaluation
    return open_items(task, asked.hellaswag_file if task.file == HELLASWAG_FILE else "", count)


def validation_split(opened: Opened) -> TokenWindows:
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


def summary(answers: Answers) -> dict[str, Any]:
    """What results.json says of a task."""
    by_rule = {rule.name: answers.accuracy(rule) for rule in answers.rules}
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


def begin(into: Path, opened: Opened, weights: str) -> None:
    """Make the folder and its results.json. Raises UserError where it holds the answers of another model.

    In a run's own folder these are what a resume went back behind, and give way.
    """
    path = into / RESULTS
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
    known = json.loads((into / RESULTS).read_text(encoding="utf-8"))
    known["tasks"][name] = {
        **about,
        "device": device.name,
        "precision": device.precision_name,
        "torch": torch.__version__,
    }
    write_json(into / RESULTS, known)


def lines_of(answers: Answers) -> list[Result]:
    return [
        Result(
            answers.task, rule.words, rule.elsewhere, f"{accuracy.value:.4f}", f"{accuracy.error:.4f}", of_what(answers)
        )
        for rule in answers.rules
        for accuracy in [answers.accuracy(rule)]
    ]


def of_what(answers: Answers) -> str:
    cut = f"; {answers.cut:,} cut to the block" if answers.cut else ""
    return answers.items + cut + (f"; {answers.lost:,} without a number, counted as wrong" if answers.lost else "")


def lines_of_validation(about: dict[str, Any]) -> list[Result]:
    of = f"{about['windows']:,} windows of {about['block_size']:,} tokens"
    lines = [Result(VALIDATION, "nats per token", "loss", f"{about['loss']:.4f}", f"{about['standard_error']:.4f}", of)]
    if about["bits_per_byte"]:
        lines.append(Result(VALIDATION, "bits per byte", "bpb", f"{about['bits_per_byte']:.4f}", "", of))
    return lines
