"""Long evaluations show how far they are and how long they still take, under a clock of the test's own."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console as Terminal

from regpt.console.time_left import LongWork
from regpt.console.training import Console, EvaluationConsole, TrainingConsole
from regpt.machine.device import Device
from tests.conftest import tiny_recipe
from tests.helpers.golden import assert_golden

DEVICE = Device(torch.device("cpu"), "a processor", torch.float32, False, 0.0, "unknown")
Report = Callable[[str, int, int], None]


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TerminalFile(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    return clock


def evaluate(report: Report, clock: Clock, name: str, groups: int, seconds: float) -> None:
    """Report an evaluation of `groups` groups, each of which takes `seconds`."""
    for done in range(groups):
        report(name, done, groups)
        clock.now += seconds


def training_report(console: Console, folder: Path) -> Report:
    training = TrainingConsole(console, tiny_recipe(folder), DEVICE, 1)
    training.console.start_bar("train", 60, status="first step …")
    return training.evaluating


def in_a_pipe() -> tuple[Console, StringIO]:
    text = StringIO()
    return Console(Terminal(file=text, highlight=False, soft_wrap=True)), text


@pytest.mark.parametrize("in_training", [True, False])
def test_pipe_gets_the_time_left_early_and_then_every_minute(clock: Clock, tmp_path: Path, in_training: bool) -> None:
    console, text = in_a_pipe()
    report = training_report(console, tmp_path) if in_training else EvaluationConsole(console).evaluating
    evaluate(report, clock, "HellaSwag", 100, 2.5)  # 250 s
    lines = text.getvalue().splitlines()
    assert lines == [
        "HellaSwag 2 % · 4 min 5 s left",  # after two groups, 5 s
        "HellaSwag 27 % · 3 min 2 s left",  # a minute later
        "HellaSwag 52 % · 2 min left",
        "HellaSwag 77 % · 58 s left",
    ]


def test_pipe_gets_no_line_about_a_short_evaluation(clock: Clock, tmp_path: Path) -> None:
    console, text = in_a_pipe()
    evaluate(training_report(console, tmp_path), clock, "validation", 20, 2.0)
    assert text.getvalue() == ""


def test_each_long_evaluation_is_announced(clock: Clock, tmp_path: Path) -> None:
    console, text = in_a_pipe()
    report = training_report(console, tmp_path)
    for name in ("validation", "HellaSwag", "samples"):
        evaluate(report, clock, name, 10, 10.0)
        text.write("\n")
    assert_golden("long-evaluations-in-a-pipe.txt", text.getvalue())


@pytest.mark.parametrize("in_training", [True, False])
def test_terminal_shows_the_part_and_the_time_left(clock: Clock, tmp_path: Path, in_training: bool) -> None:
    with Console(Terminal(file=TerminalFile(), force_terminal=True, width=100)) as console:
        report = training_report(console, tmp_path) if in_training else EvaluationConsole(console).evaluating
        evaluate(report, clock, "HellaSwag", 3, 10.0)
        report("HellaSwag", 3, 8)
        assert console.progress is not None
        task = console.progress.tasks[0]
        shown = task.fields["status"] if in_training else f"{task.description} {task.fields['status']}"
        assert shown == "HellaSwag 38 % · 50 s left"
        report("HellaSwag", 0, 8)
        task = console.progress.tasks[-1]
        assert task.fields["status"].endswith("0 %")  # no speed is known yet


def test_time_left_follows_the_speed_so_far(clock: Clock) -> None:
    work = LongWork()
    clock.now += 30.0
    assert work.status(0, 4) == "0 %" and not work.must_be_announced(0, 4)
    assert work.status(1, 4) == "25 % · 1 min 30 s left" and work.must_be_announced(1, 4)
    assert not work.must_be_announced(1, 4)  # once
    clock.now += 10.0
    assert work.status(2, 4) == "50 % · 40 s left"
