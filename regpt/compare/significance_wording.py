"""Describe the significance tests of two models."""

from collections.abc import Sequence

from regpt.compare.markup import Markup
from regpt.compare.models import ComparedModel, TaskScore
from regpt.compare.significance import AccuracyTest, PairedTests
from regpt.stats.describe import accuracy_test_text, identity_text, values_text, verdict_text


def significance_lines(tests: PairedTests, markup: Markup) -> list[str]:
    """Return a title and one line for each test. An empty line ends them."""
    first, other = markup.text(tests.first.name), markup.text(tests.other.name)
    lines = [markup.bold(f"{first} compared with {other}"), ""]
    if tests.identity:
        lines.append(f"- {markup.bold('The runs are identical')}: {markup.text(identity_text(tests.identity))}")
    if tests.loss:
        lines.append(f"- Validation loss: {markup.text(verdict_text(tests.loss, tests.other.name))}")
    if tests.token_ratio is not None:
        lines.append(f"- Training tokens: {first} had {tests.token_ratio:.3g} times as many as {other}")
    if tests.speed:
        verdict = verdict_text(tests.speed, tests.other.name)
        lines.append(f"- Speed: {values_text(tests.speed)}, {markup.text(verdict)}")
    lines += [accuracy_line(found, tests.first, tests.other, markup) for found in tests.accuracies]
    if tests.untested_tasks:
        lines.append(f"- Not tested, because the models were not scored on the same items: {markup.text(', '.join(tests.untested_tasks))}")
    return [*lines, ""]


def accuracy_line(found: AccuracyTest, first: ComparedModel, other: ComparedModel, markup: Markup) -> str:
    names = name_at_step(first, found.first), name_at_step(other, found.other)
    test = accuracy_test_text(found.test, *names)
    title = f"{found.first.task} ({found.first.items}), by {found.metric.description}"
    return f"- {markup.text(title)}: {markup.text(test)}"


def name_at_step(model: ComparedModel, score: TaskScore) -> str:
    """Return the name of a run with the step of the score. A checkpoint's name has its step already."""
    return f"{model.name} at step {score.step:,}" if model.is_run and score.step is not None else model.name


def problem_lines(models: Sequence[ComparedModel], markup: Markup) -> list[str]:
    """Return what is missing from the tables, and why. An empty line ends the list."""
    lines = [f"- {markup.text(model.name)} has no steps yet" for model in models if model.is_run and not model.step] + [
        f"- Left out: {markup.text(problem)}" for model in models for problem in model.problems
    ]
    return [*lines, ""] if lines else []
