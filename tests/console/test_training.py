"""The lines that a training run prints."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console as Terminal

from regpt.base.format import duration
from regpt.console.training import Console, TrainingConsole
from regpt.machine.device import Device
from regpt.recipe.recipe import Recipe
from regpt.tracking.journal import History, SampleRecord, StepRecord, TaskRecord, ValidationRecord
from tests.conftest import tiny_recipe

DEVICE = Device(torch.device("cpu"), "a processor", torch.float32, False, 1e12, "a guess")


class TerminalFile(StringIO):
    """The text that a terminal receives."""

    def isatty(self) -> bool:
        return True


def make_console(recipe: Recipe, resumed: bool) -> tuple[TrainingConsole, StringIO]:
    """Return a console in a pipe after one evaluation, of this attempt or the last: 3 s validation, 7 s HellaSwag."""
    text = StringIO()
    console = TrainingConsole(Console(Terminal(file=text, highlight=False, soft_wrap=True)), recipe, DEVICE, 1)
    console.begin(Path("runs/it"), 0, "alone", "")
    answered = {"acc": 0.25}
    about = {"step": 0, "tokens": 0, "task": "hellaswag", "items": "8 items", "digest": "", "cut": 0, "path": ""}
    history = History(
        validations=[ValidationRecord(step=0, tokens=0, loss=5.0, windows=4, seconds=3.0)],
        tasks=[TaskRecord(accuracy=answered, standard_errors=answered, seconds=7.0, **about)],  # type: ignore[arg-type]
    )
    if resumed:
        console.restore_durations(history)
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
        (0, 20, 9 * 2 + 3 + 7),  # always due after the last step
        (5, 20, 9 * 2 + 2 * 3 + 7),
        (3, 5, 9 * 2 + 4 * 3 + 2 * 7),
        (0, 0, 9 * 2 + 3),  # HellaSwag never
        (1, 20, 9 * 2 + 9 * 3 + 7),
    ],
)
def test_time_left_counts_the_evaluations_that_are_due(
    tmp_path: Path, validation_every: int, hellaswag_every: int, left: int, resumed: bool
) -> None:
    recipe = tiny_recipe(tmp_path, run={"max_steps": 10})
    asked = replace(recipe.evaluation, validation_every=validation_every, hellaswag_every=hellaswag_every)
    console, text = make_console(replace(recipe, evaluation=asked), resumed)
    console.step(step(1))
    assert console.seconds_left(1) == left
    line = text.getvalue().splitlines()[-1]
    assert line.startswith("step 1/10 · loss 4.0000") and f" · {duration(left)} left · " in line


@pytest.mark.parametrize(
    ("bits", "averaged", "shown"),
    [
        (0.0, None, " loss 5.0000 · "),
        (1.75, None, " loss 5.0000 (1.7500 bits per byte) · "),
        (1.75, 4.9, " loss 5.0000 (1.7500 bits per byte), averaged weights 4.9000 · "),
    ],
)
def test_validation_line_has_bits_per_byte_where_known(
    tmp_path: Path, bits: float, averaged: float | None, shown: str
) -> None:
    console, text = make_console(tiny_recipe(tmp_path), resumed=True)
    record = ValidationRecord(
        step=1, tokens=64, loss=5.0, windows=4, seconds=3.0, bits_per_byte=bits, averaged_loss=averaged
    )
    console.validation(record)
    assert shown in text.getvalue().splitlines()[-1]


def test_times_due_equals_the_number_of_steps_that_are_due(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    for last in (1, 7, 12):
        recipe = replace(recipe, run=replace(recipe.run, max_steps=last))
        for every in (0, 1, 2, 3, 6, 7, 20):
            for after in range(last + 1):
                happens = [step for step in range(after + 1, last + 1) if recipe.is_due(step, every)]
                assert recipe.times_due(after, every) == len(happens), (last, every, after)


def pipe_lines(recipe: Recipe, steps: int) -> list[str]:
    """Return the lines with a loss that a fast run prints into a pipe."""
    text = StringIO()
    console = TrainingConsole(Console(Terminal(file=text, highlight=False, soft_wrap=True)), recipe, DEVICE, 1)
    for number in range(1, steps + 1):
        console.show_progress("micro-batch", 1, 2)
        console.step(step(number))
    return [line for line in text.getvalue().splitlines() if "loss" in line]


@pytest.mark.parametrize(("steps", "printed"), [(5, 5), (20, 11), (1000, 11), (1, 1)])
def test_pipe_gets_loss_lines_at_regular_steps_of_a_fast_run(tmp_path: Path, steps: int, printed: int) -> None:
    lines = pipe_lines(tiny_recipe(tmp_path, run={"max_steps": steps}), steps)
    assert len(lines) == printed
    assert lines[0].startswith(f"step 1/{steps:,} ") and lines[-1].startswith(f"step {steps:,}/{steps:,} ")


def test_pipe_gets_a_loss_line_a_minute_while_micro_batches_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(float(second) for second in range(0, 10_000, 7))
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    text = StringIO()
    recipe = tiny_recipe(tmp_path, run={"max_steps": 1000})
    console = TrainingConsole(Console(Terminal(file=text, highlight=False, soft_wrap=True)), recipe, DEVICE, 1)
    console.step(step(1))
    for turn in range(1, 100):
        console.show_progress("micro-batch", turn, 100)
    lines = text.getvalue().splitlines()
    assert len(lines) > 5
    assert all(line.startswith("step 1/1,000 · loss 4.0000") for line in lines)


def test_terminal_shows_the_loss_next_to_the_micro_batch(tmp_path: Path) -> None:
    terminal = Terminal(file=TerminalFile(), force_terminal=True, width=100)
    with Console(terminal) as live:
        console = TrainingConsole(live, tiny_recipe(tmp_path), DEVICE, 1)
        console.begin(Path("runs/it"), 0, "alone", "")
        console.show_progress("micro-batch", 1, 2)
        console.step(step(1))
        console.show_progress("micro-batch", 1, 2)
        assert live.progress is not None
        status = live.progress.tasks[0].fields["status"]
    assert status.index("loss 4.0000") < status.index("micro-batch 1/2") < status.index("tokens/s")


@pytest.mark.parametrize("in_terminal", [False, True])
def test_samples_are_printed_in_a_pipe_and_in_a_terminal(tmp_path: Path, in_terminal: bool) -> None:
    text = TerminalFile() if in_terminal else StringIO()
    terminal = Terminal(file=text, force_terminal=in_terminal, highlight=False, soft_wrap=True, width=100)
    console = TrainingConsole(Console(terminal), tiny_recipe(tmp_path), DEVICE, 1)
    console.sample(SampleRecord(step=3, prompt="a", texts=["a\nb", "a c"], seed=1, top_k=5))
    assert [line.strip() for line in text.getvalue().splitlines()] == ["a⏎b", "a c"]


@pytest.mark.parametrize(
    ("in_terminal", "variables", "is_live"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1", "CI": "true"}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {"TTY_COMPATIBLE": "0"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, False),
        (False, {"TTY_COMPATIBLE": "1", "CI": "true"}, False),
    ],
)
def test_bars_are_shown_in_terminals_alone(
    monkeypatch: pytest.MonkeyPatch, in_terminal: bool, variables: dict[str, str], is_live: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = TerminalFile() if in_terminal else StringIO()
    with Console(Terminal(file=text)) as console:
        console.start_bar("train", 10)
        console.update_bar("step 1", completed=1)
        assert (console.progress is not None) == console.is_live == is_live
    assert in_terminal or "\x1b" not in text.getvalue()


@pytest.mark.parametrize("steps", [10**12, 10**15, 2**63 - 1])
def test_step_of_a_run_without_end_has_a_dash_as_time_left(tmp_path: Path, steps: int) -> None:
    console, text = make_console(tiny_recipe(tmp_path, run={"max_steps": steps}), resumed=False)
    console.step(step(1))
    assert " · — left · " in text.getvalue().splitlines()[-1]


def test_time_left_is_estimated_without_the_step_that_compiles(tmp_path: Path) -> None:
    """Otherwise 90 s of compiling would promise weeks for the first forty steps."""
    text = StringIO()
    recipe = tiny_recipe(tmp_path, run={"max_steps": 102}, evaluation={"validation_every": 0, "hellaswag_every": 0})
    device = replace(DEVICE, compiled=True)
    console = TrainingConsole(Console(Terminal(file=text, highlight=False, soft_wrap=True)), recipe, device, 1)
    console.begin(Path("runs/it"), 0, "alone", "")
    console.step(replace(step(1), seconds=90.0))
    assert " left" not in text.getvalue() and "loss 4.0000" in text.getvalue()
    console.step(step(2))
    assert console.seconds_left(2) == 100 * 2.0
