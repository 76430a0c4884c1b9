"""What each model of a comparison is and scored: a run, a folder of answers, or a recipe with recorded figures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError, UserError
from regpt.base.recipe import Recipe
from regpt.base.sections import PublishedRecipe
from regpt.base.settings import load_recipe
from regpt.stats.losses import MeasuredLoss, loss_at
from regpt.tasks.catalog import METRICS, TASKS
from regpt.tracking.environment import TokenizerInfo, build
from regpt.tracking.events import Started
from regpt.tracking.journal import TaskRecord
from regpt.tracking.layout import RESULTS_FILE, VALIDATION, RunPaths, step_directories
from regpt.tracking.predictions import Predictions, read_predictions
from regpt.tracking.run import Run, find_run, open_run
from regpt.tracking.window_losses import window_losses_file


@dataclass(frozen=True)
class TaskScore:
    """A task as it was answered after a step."""

    task: str
    items: str  # in words
    digest: str  # of the items; nothing where it is not known
    count: int  # 0: not known
    by_rule: dict[str, tuple[float, float]]  # accuracy and its standard error; the first is the one that is meant
    cut: int  # items that lost the beginning of their context
    step: int | None
    answers: Predictions | None = None  # None where they are not kept
    is_subset: bool = False


@dataclass(frozen=True)
class ComparedModel:
    """A model, what is known of it, and what it was asked."""

    name: str
    where: str  # as a command names it
    path: Path
    step: int | None = None
    tokens: int | None = None  # seen in training
    losses: list[MeasuredLoss] = field(default_factory=list)  # the first is the one that is shown
    asked: list[TaskScore] = field(default_factory=list)  # of each task the one that is shown first
    problems: list[str] = field(default_factory=list)  # of files that cannot be read
    tokenizer: str = ""  # name and digest; nothing where they are not known
    device: str = ""  # that it was trained on, else evaluated
    precision: str = ""
    compiled: bool | None = None
    recipe: Recipe | None = None
    run: Run | None = None  # that it is, or whose checkpoint it is
    recorded: PublishedRecipe | None = None  # figures of a written record, instead of measured ones

    @property
    def loss(self) -> MeasuredLoss | None:
        return self.losses[0] if self.losses else None

    @property
    def is_run(self) -> bool:
        return self.run is not None and self.run.path == self.path

    @property
    def is_last(self) -> bool:
        """Whether its figures are of the last step that its run has made."""
        return self.run is not None and self.step == self.run.history.step

    def to(self, task: str) -> list[TaskScore]:
        return [one for one in self.asked if one.task == task]


def open_all(words: Sequence[str], root: Path) -> list[ComparedModel]:
    """The models that a user names. Raises UserError for fewer than two, one named twice, and an unknown one."""
    if len(words) < 2:
        raise UserError(f"one model, {words[0]}, compares with nothing", "name another one")
    models = [open_compared(word, root) for word in words]
    for number, model in enumerate(models):
        for word, earlier in zip(words, models[:number], strict=False):
            if earlier.path.resolve() == model.path.resolve():
                raise UserError(f"'{word}' and '{words[number]}' are the same, {model.path}", "name two different ones")
    names = [model.name for model in models]
    return settled([replace(m, name=f"{m.name} ({m.where})") if names.count(m.name) > 1 else m for m in models])


def open_compared(where: str, root: Path) -> ComparedModel:
    """A run, by name or folder; a folder that `regpt evaluate` made; or a recipe by its .toml file."""
    if where.endswith(".toml"):
        recipe = load_recipe(where)
        return ComparedModel(
            f"{recipe.name} (recorded)", where, Path(where), recipe=recipe, recorded=recipe.published,
            tokens=recipe.total_tokens,
        )  # fmt: skip
    if (Path(where) / RESULTS_FILE).is_file():
        return of_folder(Path(where), root)
    try:
        path = find_run(where, root)
    except UserError as error:
        raise UserError(f"'{where}' is no run in {root}, and holds no {RESULTS_FILE}", error.fix) from None
    return of_run(open_run(path), where if root == Path("runs") else str(path))


def of_run(run: Run, where: str) -> ComparedModel:
    """Its last figures; of what `regpt evaluate` found, that of steps which the run has still behind it."""
    end = run.history.step
    latest: dict[str, tuple[int, Path]] = {}
    for step, folder in step_directories(run.paths.evaluations):
        if step <= end:  # what a resume went back behind is another past
            latest |= {file.stem: (step, file) for file in folder.glob("*.parquet")}
    asked, problems = answers_in(latest.values())
    for record in run.history.tasks:
        asked = [*asked, of_record(record)] if not any(same_items(record, one) for one in asked) else asked
    data, device = run.environment.data, run.environment.device
    losses = [loss_at(run, record) for record in run.history.validations[-1:]]
    evaluated = run.paths.evaluation(end)
    if (evaluated / RESULTS_FILE).is_file():  # perhaps on other data than the run's own
        try:
            losses += of_folder(evaluated, Path()).losses
        except UserError as error:
            problems.append(error.problem)
    return ComparedModel(
        run.id, where, run.path, end, run.tokens, losses, latest_first(asked), problems, data.tokenizer.label,
        ", then ".join(devices(run)), device.precision, device.compiled, run.recipe, run,
    )  # fmt: skip


def of_folder(folder: Path, root: Path) -> ComparedModel:
    """What `regpt evaluate` kept of a model that may be a run's checkpoint."""
    try:
        known = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        name, tokens, step, tasks = str(known["model"]), known["tokens"], known["step"], known["tasks"]
        losses = [
            MeasuredLoss(
                found["loss"],
                found["standard_error"],
                found["bits_per_byte"],
                found["data"],
                found["block_size"],
                found["windows"],
                step,
                folder / window_losses_file(found["data"], found["windows"]),
            )
            for found in ([tasks[VALIDATION]] if VALIDATION in tasks else [])
        ]
        elsewhere = [of_harness(task, about, step) for task, about in tasks.items() if task.startswith("lm_eval_")]
        measured = list(tasks.values())[-1] if tasks else {}
        device, precision = measured.get("device", ""), measured.get("precision", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / RESULTS_FILE}: is not what `regpt evaluate` writes", "evaluate again") from None
    listed = [(step, folder / f"{task}.parquet") for task in tasks]
    asked, problems = answers_in((step, file) for step, file in listed if file.is_file())
    run = run_of(folder, name, step, tokens, root)
    device = ", then ".join(devices(run)) if run else device
    return ComparedModel(
        name, str(folder), folder, step, tokens, losses, latest_first([*asked, *elsewhere]), problems,
        build(TokenizerInfo, known.get("tokenizer")).label, device, precision, None, run.recipe if run else None, run,
    )  # fmt: skip


def run_of(folder: Path, name: str, step: int | None, tokens: int | None, root: Path) -> Run | None:
    """The run whose checkpoint was evaluated into a folder: around it, or by the name that was written down."""
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


def devices(run: Run) -> list[str]:
    """On what it was trained, attempt by attempt where that changed: 'AMD EPYC, 2 threads' or '4 x NVIDIA …'."""
    found = [(start.ranks, start.device) for start in run.history.details(Started)]
    first = run.environment.device.name
    if first not in [name for _, name in found]:
        found = [(run.environment.ranks, first), *found]
    return [f"{ranks} × {name}" if ranks > 1 else name for (ranks, name), _ in groupby(found)]


def answers_in(files: Iterable[tuple[int | None, Path]]) -> tuple[list[TaskScore], list[str]]:
    """(what is whole; what is wrong with the rest)"""
    found, problems = [], []
    for step, file in files:
        try:
            found.append(of_answers(read_predictions(file), step))
        except DataError as error:
            problems.append(error.problem)
    return found, problems


def of_answers(answers: Predictions, step: int | None) -> TaskScore:
    shares = {rule.name: answers.accuracy(rule) for rule in answers.metrics}
    by_rule = {name: (accuracy.value, accuracy.error) for name, accuracy in shares.items()}
    count, truncated = answers.n_items, answers.truncated
    return TaskScore(
        answers.task, answers.description, answers.digest, count, by_rule, truncated, step, answers, answers.is_subset
    )  # fmt: skip


def of_record(record: TaskRecord) -> TaskScore:
    """What the journal says, where the answers are gone."""
    by_rule = {rule: (share, record.standard_error.get(rule, 0.0)) for rule, share in record.accuracy.items()}
    return TaskScore(
        record.task, record.items, record.digest, record.count, by_rule, record.cut, record.step,
        is_subset=record.is_subset,
    )  # fmt: skip


def same_items(record: TaskRecord, one: TaskScore) -> bool:
    return (record.task, record.digest) == (one.task, one.digest) and (one.step or 0) >= record.step


def of_harness(task: str, about: Mapping[str, Any], step: int | None) -> TaskScore:
    by_rule = {name: (value, about["standard_error"].get(name, 0.0)) for name, value in about["accuracy"].items()}
    return TaskScore(task, str(about["items"]), "", 0, by_rule, 0, step)


def latest_first(asked: Sequence[TaskScore]) -> list[TaskScore]:
    """The latest on the most items first."""
    return sorted(asked, key=lambda one: (one.step or 0, one.count), reverse=True)


def settled(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    """Show of each what all have alike, where there is such: the loss on the same windows, a task on the same items."""
    with_loss = [{loss.measured_on for loss in model.losses} for model in models if model.losses]
    alike = set.intersection(*with_loss) if with_loss else set()
    chosen = [replace(m, losses=sorted(m.losses, key=lambda loss: loss.measured_on not in alike)) for m in models]
    for task in tasks_of(models):
        sets = [{(one.count, one.digest) for one in model.to(task)} for model in models if model.to(task)]
        if shared := set.intersection(*sets):
            chosen = [replace(m, asked=to_the_front(m.asked, task, max(shared)[1])) for m in chosen]
    return chosen


def to_the_front(asked: Sequence[TaskScore], task: str, digest: str) -> list[TaskScore]:
    return sorted(asked, key=lambda one: one.task == task and one.digest != digest)


def tasks_of(models: Sequence[ComparedModel]) -> list[str]:
    """Ours in our order, then lm-eval's."""
    asked = {one.task: None for model in models for one in model.asked}
    return [*(name for name in TASKS if name in asked), *(name for name in asked if name not in TASKS)]


def rule_in_words(rule: str) -> str:
    return METRICS[rule].description if rule in METRICS else f"lm-eval's {rule}"
