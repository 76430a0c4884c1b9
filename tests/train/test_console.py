"""What a person sees of a run, as text."""

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console as Terminal

from regpt.base.recipe import Recipe
from regpt.distributed.device import Device
from regpt.tracking.journal import History, StepRecord, TaskRecord, ValidationRecord
from regpt.train.console import Console
from tests.conftest import tiny_recipe

DEVICE = Device(torch.device("cpu"), "a processor", torch.float32, False, 1e12, "a guess")


def shown(recipe: Recipe, resumed: bool) -> tuple[Console, StringIO]:
    """A console in a pipe, whose run has looked once, now or before: 3 s of validation and 7 s of HellaSwag."""
    text = StringIO()
    console = Console(Terminal(file=text, highlight=False, soft_wrap=True))
    console.training(Path("runs/it"), recipe, 0, DEVICE, 1, "alone", "")
    answered = {"acc": 0.25}
    about = {"step": 0, "tokens": 0, "task": "hellaswag", "items": "8 items", "digest": "", "cut": 0, "path": ""}
    history = History(
        validations=[ValidationRecord(step=0, tokens=0, loss=5.0, windows=4, seconds=3.0)],
        tasks=[TaskRecord(accuracy=answered, standard_error=answered, seconds=7.0, **about)],  # type: ignore[arg-type]
    )
    if resumed:
        console.recall(history)
    else:
        console.validation(history.validations[0])
        console.task(history.tasks[0])
    return console, text


def step(number: int) -> StepRecord:
    return StepRecord(
        step=number, tokens=number, loss=4.0, gradient_norm=1.0, learning_rate=1e-3, seconds=2.0, batch=""
    )  # fmt: skip


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    ("validation_every", "hellaswag_every", "left"),
    [
        (0, 20, 9 * 2 + 3 + 7),  # after the last step they are due whatever the interval
        (5, 20, 9 * 2 + 2 * 3 + 7),
        (3, 5, 9 * 2 + 4 * 3 + 2 * 7),
        (0, 0, 9 * 2 + 3),  # but HellaSwag not at all, where it is not asked for
        (1, 20, 9 * 2 + 9 * 3 + 7),
    ],
)
def test_the_time_left_counts_the_looks_that_are_due(
    tmp_path: Path, validation_every: int, hellaswag_every: int, left: int, resumed: bool
) -> None:
    recipe = tiny_recipe(tmp_path, run={"max_steps": 10})
    asked = replace(recipe.evaluation, validation_every=validation_every, hellaswag_every=hellaswag_every)
    console, text = shown(replace(recipe, evaluation=asked), resumed)
    console.step(step(1))
    found = re.search(r"step 1/10 · .* · (\d+):(\d+):(\d+) left", text.getvalue())
    assert found, text.getvalue()
    hours, minutes, seconds = map(int, found.groups())
    assert 3600 * hours + 60 * minutes + seconds == left


def test_what_is_due_is_what_will_happen(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    for last in (1, 7, 12):
        recipe = replace(recipe, run=replace(recipe.run, max_steps=last))
        for every in (0, 1, 2, 3, 6, 7, 20):
            for after in range(last + 1):
                happens = [step for step in range(after + 1, last + 1) if recipe.is_due(step, every)]
                assert recipe.times_due(after, every) == len(happens), (last, every, after)
