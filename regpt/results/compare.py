"""Models side by side: what each scored, and whether a difference is one. Markdown lines, for a terminal or a file."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError, UserError
from regpt.data.tasks import TASKS
from regpt.results.evaluation import FOLDER, RESULTS, VALIDATION
from regpt.results.paired import LEVEL, Paired, paired
from regpt.results.runs import find_run, open_run
from regpt.run.answers import Answers, read_answers


@dataclass(frozen=True)
class Compared:
    """A model, and what it was asked."""

    name: str
    tokens: int | None  # seen in training
    validation: dict[str, Any] | None  # loss, standard_error, and what it was measured on
    answers: list[tuple[int | None, Answers]] = field(default_factory=list)  # with the step; the latest of each task
    problems: list[str] = field(default_factory=list)  # of files that cannot be read

    def to(self, task: str) -> list[tuple[int | None, Answers]]:
        return [(step, answers) for step, answers in self.answers if answers.task == task]


def open_compared(where: str, root: Path) -> Compared:
    """A run, by name or folder; or a folder that `regpt evaluate` made."""
    if (Path(where) / RESULTS).is_file():
        return of_folder(Path(where))
    try:
        path = find_run(where, root)
    except UserError as error:
        raise UserError(f"'{where}' is no run in {root}, and holds no {RESULTS}", error.fix) from None
    run = open_run(path)
    latest: dict[str, tuple[int, Path]] = {}
    for folder in sorted((path / FOLDER).glob("step_*")):
        number = folder.name.removeprefix("step_")
        step = int(number) if number.isdecimal() else run.history.step + 1  # a copy that somebody made
        if step <= run.history.step:  # what a resume went back behind is another past
            latest |= {file.stem: (step, file) for file in folder.glob("*.parquet")}
    looks = run.history.validations
    validation = None
    if looks:
        validation = {
            "loss": looks[-1].loss,
            "standard_error": looks[-1].standard_error,
            "on": (run.environment["data"]["digest"], run.recipe.model.block_size, looks[-1].windows),
        }
    return Compared(run.id, run.tokens, validation, *answers_in(latest.values()))


def of_folder(folder: Path) -> Compared:
    try:
        known = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        name, tokens, step, found = known["model"], known["tokens"], known["step"], known["tasks"].get(VALIDATION)
        validation = found and {
            "loss": found["loss"],
            "standard_error": found["standard_error"],
            "on": (found["data"], found["block_size"], found["windows"]),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / RESULTS}: is not what `regpt evaluate` writes", "evaluate again") from None
    listed = [(step, folder / f"{task}.parquet") for task in known["tasks"]]
    return Compared(name, tokens, validation, *answers_in((step, file) for step, file in listed if file.is_file()))


def answers_in(files: Iterable[tuple[int | None, Path]]) -> tuple[list[tuple[int | None, Answers]], list[str]]:
    """(what is whole, with its step; what is wrong with the rest)"""
    found, problems = [], []
    for step, file in files:
        try:
            found.append((step, read_answers(file)))
        except DataError as error:
            problems.append(error.problem)
    return found, problems


def comparison(models: Sequence[Compared]) -> Iterator[str]:
    """What each scored; then the first against each other one, task by task."""
    yield f"| | {' | '.join(model.name for model in models)} |"
    yield f"|---|{'---|' * len(models)}"
    yield row("Tokens seen in training", [f"{m.tokens:,}" if m.tokens is not None else "not known" for m in models])
    yield row("Validation loss, last", [loss_of(model) for model in models])
    for task in tasks_of(models):
        rule = TASKS[task].rules[0]
        yield row(f"{task}, by {rule.words}", [score_of(model, task) for model in models])
    yield ""
    for problem in (problem for model in models for problem in model.problems):
        yield f"- left out: {problem}"
    for other in models[1:]:
        yield from against(models[0], other)


def row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def tasks_of(models: Sequence[Compared]) -> list[str]:
    asked = {answers.task for model in models for _, answers in model.answers}
    return [name for name in TASKS if name in asked]


def loss_of(model: Compared) -> str:
    if model.validation is None:
        return "not measured"
    error = model.validation["standard_error"]
    return f"{model.validation['loss']:.4f}" + (f" ± {error:.4f}" if error else "")


def score_of(model: Compared, task: str) -> str:
    """The latest on the most items, and what it was."""
    found = sorted(model.to(task), key=lambda pair: (pair[0] or 0, len(pair[1].labels)))
    if not found:
        return "not measured"
    step, answers = found[-1]
    after = f", step {step:,}" if step is not None else ""
    return f"{answers.accuracy(answers.rules[0])} ({answers.items}{after})"


def against(first: Compared, other: Compared) -> Iterator[str]:
    yield f"**{first.name} against {other.name}**"
    yield ""
    if first.validation and other.validation:
        if first.validation["on"] == other.validation["on"]:
            apart = first.validation["loss"] - other.validation["loss"]
            yield f"- validation loss: {apart:+.4f}, on the same windows of the same data"
        else:
            yield "- validation loss: taken on other data or other windows; the two do not compare"
    if first.tokens is not None and other.tokens is not None and first.tokens != other.tokens:
        yield f"- {first.name} saw {first.tokens / max(1, other.tokens):.3g} times as many tokens"
    alone = []
    for task in tasks_of([first, other]):
        same = [
            (one, two, after(first.name, step), after(other.name, its))
            for step, one in first.to(task)
            for its, two in other.to(task)
            if one.digest == two.digest and len(one.labels) == len(two.labels)
        ]
        if not same:
            alone.append(task)
            continue
        one, two, *names = max(same, key=lambda pair: len(pair[0].labels))
        for rule in one.rules:
            result = paired(one.right(rule), two.right(rule))
            yield f"- {task} ({one.items}), by {rule.words}: {verdict(result, *names)}"
    if alone:
        yield f"- not both were asked the same items, so no test: {', '.join(alone)}"
    yield ""


def after(name: str, step: int | None) -> str:
    return f"{name} after step {step:,}" if step is not None and "step" not in name else name


def verdict(result: Paired, first: str, other: str) -> str:
    """In words, and the figures that carry them."""
    low, high = result.interval()
    share = [right / result.items for right in result.right]
    figures = (
        f"{first} {share[0]:.4f}, {other} {share[1]:.4f}, {result.difference:+.4f}"
        f" (95 % of resamples {low:+.4f} to {high:+.4f}; only one was right on {result.only[0]:,} and"
        f" {result.only[1]:,} items, McNemar's p = {result.p_value:.2g})"
    )
    if not result.is_difference:
        return f"{figures}. No difference at the {LEVEL:.0%} level."
    return f"{figures}. {first if result.difference > 0 else other} is better."
