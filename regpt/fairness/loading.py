"""Load the models of a comparison: runs, folders of `regpt evaluate`, recipes with published figures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError, UserError
from regpt.fairness.models import ComparedModel, TaskScore, align_on_shared_data
from regpt.recipe.aliases import current_device
from regpt.recipe.settings import load_recipe, shipped_recipe
from regpt.stats.losses import MeasuredLoss, loss_at
from regpt.tracking.environment import TokenizerInfo, build
from regpt.tracking.events import Started
from regpt.tracking.journal import TaskRecord
from regpt.tracking.layout import RESULTS_FILE, VALIDATION, RunPaths, step_directories
from regpt.tracking.predictions import Predictions, read_predictions
from regpt.tracking.run import NoSuchRun, Run, find_run, open_run
from regpt.tracking.window_losses import window_losses_file


def load_models(names: Sequence[str], root: Path) -> list[ComparedModel]:
    """Load the models that a user names. Raises UserError for fewer than two, duplicates and unknown names."""
    if len(names) < 2:
        raise UserError(f"only one model is named: {names[0]}", "name at least two")
    models = [load_model(name, root) for name in names]
    for number, model in enumerate(models):
        for name, earlier in zip(names, models[:number], strict=False):
            if earlier.path.resolve() == model.path.resolve():
                raise UserError(f"'{name}' and '{names[number]}' are the same model, {model.path}", "name two models")
    shown = [model.name for model in models]
    return align_on_shared_data(
        [replace(m, name=f"{m.name} ({m.command_name})") if shown.count(m.name) > 1 else m for m in models]
    )


def load_model(name: str, root: Path) -> ComparedModel:
    """Load a run by name or path, a folder of `regpt evaluate`, or a recipe by its .toml file or shipped name."""
    if name.endswith(".toml") or is_shipped_only(name, root):
        recipe = load_recipe(name)
        return ComparedModel(
            name=f"{recipe.name} (published)",
            command_name=name,
            path=Path(name),
            tokens=recipe.total_tokens,
            recipe=recipe,
            published=recipe.published,
        )
    if (Path(name) / RESULTS_FILE).is_file():
        return load_evaluations(Path(name), root)
    try:
        path = find_run(name, root)
    except UserError as error:
        raise UserError(f"'{name}' is neither a run in {root} nor a folder with {RESULTS_FILE}", error.fix) from None
    return load_run(open_run(path), name if root == Path("runs") else str(path))


def is_shipped_only(name: str, root: Path) -> bool:
    """Return whether a name is that of a shipped recipe, and neither of a run nor of a folder."""
    if shipped_recipe(name) is None or Path(name).exists():
        return False
    try:
        find_run(name, root)
    except NoSuchRun:
        return True
    return False


def load_run(run: Run, command_name: str) -> ComparedModel:
    """Load a run at its last step, with the latest results of `regpt evaluate`."""
    last_step = run.history.step
    latest: dict[str, tuple[int, Path]] = {}
    for step, folder in step_directories(run.paths.evaluations):
        if step <= last_step:  # a later step was undone by a rollback or resume
            latest |= {file.stem: (step, file) for file in folder.glob("*.parquet")}
    scores, problems = read_scores(latest.values())
    for record in run.history.tasks:
        if not any(is_same_score(record, score) for score in scores):
            scores.append(score_from_record(record))
    losses = [loss_at(run, record) for record in run.history.validations[-1:]]
    evaluated = run.paths.evaluation(last_step)
    if (evaluated / RESULTS_FILE).is_file():  # possibly on other data than the run's own
        try:
            losses += load_evaluations(evaluated, Path()).losses
        except UserError as error:
            problems.append(error.problem)
    return ComparedModel(
        name=run.id,
        command_name=command_name,
        path=run.path,
        step=last_step,
        tokens=run.tokens,
        losses=losses,
        scores=latest_first(scores),
        problems=problems,
        tokenizer=run.environment.data.tokenizer.label,
        device=devices_text(run),
        precision=run.environment.device.precision,
        compiled=run.environment.device.compiled,
        recipe=run.recipe,
        run=run,
    )


def load_evaluations(folder: Path, root: Path) -> ComparedModel:
    """Load the results of `regpt evaluate` for one model, which may be a checkpoint of a run.

    Raises UserError if the results file is damaged.
    """
    try:
        results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        name, tokens, step, tasks = str(results["model"]), results["tokens"], results["step"], results["tasks"]
        losses = [read_loss(folder, tasks[VALIDATION], step)] if VALIDATION in tasks else []
        lm_eval = [
            score_from_lm_eval(task, score, step) for task, score in tasks.items() if task.startswith("lm_eval_")
        ]
        measured = list(tasks.values())[-1] if tasks else {}
        device, precision = current_device(measured.get("device", "")), measured.get("precision", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{folder / RESULTS_FILE} is not a results file of `regpt evaluate`", "evaluate again"
        ) from None
    files = [folder / f"{task}.parquet" for task in tasks]
    scores, problems = read_scores((step, file) for file in files if file.is_file())
    run = find_run_of_checkpoint(folder, name, step, tokens, root)
    return ComparedModel(
        name=name,
        command_name=str(folder),
        path=folder,
        step=step,
        tokens=tokens,
        losses=losses,
        scores=latest_first([*scores, *lm_eval]),
        problems=problems,
        tokenizer=build(TokenizerInfo, results.get("tokenizer")).label,
        device=devices_text(run) if run else device,
        precision=precision,
        recipe=run.recipe if run else None,
        run=run,
    )


def read_loss(folder: Path, found: Mapping[str, Any], step: int | None) -> MeasuredLoss:
    return MeasuredLoss(
        loss=found["loss"],
        standard_error=found["standard_error"],
        bits_per_byte=found["bits_per_byte"],
        data=found["data"],
        block_size=found["block_size"],
        windows=found["windows"],
        step=step,
        window_losses_file=folder / window_losses_file(found["data"], found["windows"]),
    )


def find_run_of_checkpoint(folder: Path, name: str, step: int | None, tokens: int | None, root: Path) -> Run | None:
    """Return the run whose checkpoint was evaluated: the run around the folder, or the run with the stored name."""
    if step is None:
        return None
    for path in (folder.resolve().parent.parent, root / name.rpartition(" at step ")[0]):
        try:
            if name.startswith(f"{path.name} at step ") and RunPaths(path).recipe.is_file():
                run = open_run(path)
                return run if run.recipe.tokens_after(step) == tokens and step <= run.history.step else None
        except UserError:
            continue
    return None


def devices_text(run: Run) -> str:
    """Describe the devices of all attempts: '4 × NVIDIA H100, then 8 × NVIDIA H100'."""
    found = [(start.ranks, current_device(start.device)) for start in run.history.details(Started)]
    first = run.device_name
    if first not in [name for _, name in found]:
        found = [(run.environment.ranks, first), *found]
    return ", then ".join(f"{ranks} × {name}" if ranks > 1 else name for (ranks, name), _ in groupby(found))


def read_scores(files: Iterable[tuple[int | None, Path]]) -> tuple[list[TaskScore], list[str]]:
    """Score the stored predictions after each step; return the scores and the problems of unreadable files."""
    scores, problems = [], []
    for step, file in files:
        try:
            scores.append(score_from_predictions(read_predictions(file), step))
        except DataError as error:
            problems.append(error.problem)
    return scores, problems


def score_from_predictions(predictions: Predictions, step: int | None) -> TaskScore:
    accuracies = {metric.name: predictions.accuracy(metric) for metric in predictions.metrics}
    return TaskScore(
        task=predictions.task,
        items=predictions.description,
        digest=predictions.digest,
        n_items=predictions.n_items,
        by_metric={name: (accuracy.value, accuracy.error) for name, accuracy in accuracies.items()},
        truncated=predictions.truncated,
        step=step,
        predictions=predictions,
        is_subset=predictions.is_subset,
    )


def score_from_record(record: TaskRecord) -> TaskScore:
    """Return the score in the journal, for a run whose predictions are gone."""
    return TaskScore(
        task=record.task,
        items=record.items,
        digest=record.digest,
        n_items=record.count,
        by_metric={name: (value, record.standard_errors.get(name, 0.0)) for name, value in record.accuracy.items()},
        truncated=record.cut,
        step=record.step,
        is_subset=record.is_subset,
    )


def score_from_lm_eval(task: str, found: Mapping[str, Any], step: int | None) -> TaskScore:
    errors = found["standard_error"]
    by_metric = {name: (value, errors.get(name, 0.0)) for name, value in found["accuracy"].items()}
    items = str(found["items"])
    return TaskScore(task=task, items=items, digest="", n_items=0, by_metric=by_metric, truncated=0, step=step)


def is_same_score(record: TaskRecord, score: TaskScore) -> bool:
    """Whether a score on the same items is at least as recent as the journal's."""
    return (record.task, record.digest) == (score.task, score.digest) and (score.step or 0) >= record.step


def latest_first(scores: Sequence[TaskScore]) -> list[TaskScore]:
    """Sort by step, then by the number of items, the largest first."""
    return sorted(scores, key=lambda score: (score.step or 0, score.n_items), reverse=True)
