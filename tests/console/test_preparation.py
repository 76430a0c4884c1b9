"""The lines that a preparation prints: the time left of each long step."""

from io import StringIO

import pytest
from rich.console import Console as Terminal

from regpt.base.format import duration
from regpt.console.preparation import PreparationConsole, ReadingConsole
from regpt.console.training import Console


class Clock:
    now = 1_000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock.perf_counter)
    return clock


def in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> tuple[Console, StringIO]:
    """Return a console that prints each status, and what it prints."""
    text = StringIO()
    console = Console(Terminal(file=text, highlight=False, soft_wrap=True))
    monkeypatch.setattr(console, "print_throttled", console.print_line)
    return console, text


def test_division_shows_the_time_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    console, text = in_a_pipe(monkeypatch)
    shown = PreparationConsole(console)
    clock.now += 500  # of encoding, which says nothing about the division
    shown.splitting(0, 1_000)
    clock.now += 30
    shown.splitting(250, 1_000)
    clock.now += 30
    shown.splitting(500, 1_000)
    first, second, third = text.getvalue().splitlines()
    assert "left" not in first
    assert f"25 % · {duration(90)} left" in second and f"50 % · {duration(60)} left" in third


def test_reading_shows_the_time_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    console, text = in_a_pipe(monkeypatch)
    shown = ReadingConsole(console, "verify")
    clock.now += 20
    shown.update(400, 1_000)
    assert f"{duration(30)} left" in text.getvalue()
