"""`regpt watch` of a run that another process writes."""

import errno
import fcntl
import math
import multiprocessing
import os
import platform
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from rich.cells import cell_len

from regpt.base.files import write_json, write_text
from regpt.base.format import duration, percent, smoothed
from regpt.cli.main import main
from regpt.filesystem.locks import locked, process_start
from regpt.recipe.settings import to_toml
from regpt.tracking.events import CheckpointFailed, Detail, Failed, Finished, Resumed, Rollback, Started, Stopped
from regpt.tracking.journal import (
    CheckpointRecord,
    EventRecord,
    Journal,
    Record,
    SampleRecord,
    SkippedRecord,
    StepRecord,
    TaskRecord,
    ValidationRecord,
)
from regpt.tracking.rejections import Rejection, RejectionKind
from regpt.tracking.status import RunMonitor, RunStatus, State
from regpt.watch.describe import describe_state
from regpt.watch.terminal_plot import Curve, draw_curves
from regpt.watch.view import view
from tests.conftest import tiny_recipe, wait_until

SIZES = [(1, 1), (20, 5), (50, 15), (80, 24), (120, 40), (300, 100)]


def step(number: int, loss: float = 5.0, seconds: float = 2.0) -> StepRecord:
    return StepRecord(
        step=number, tokens=number * 128, loss=loss, gradient_norm=1.25, learning_rate=3e-4, seconds=seconds, batch="x"
    )


def validation(number: int, loss: float = 6.0) -> ValidationRecord:
    return ValidationRecord(
        step=number, tokens=number * 128, loss=loss, windows=4, seconds=7.0, standard_error=0.125, bits_per_byte=1.75
    )


def hellaswag(number: int) -> TaskRecord:
    return TaskRecord(
        step=number,
        tokens=number * 128,
        task="hellaswag",
        items="40 items",
        digest="d",
        accuracy={"by_token": 0.275},
        standard_errors={"by_token": 0.032},
        cut=0,
        path="x",
        seconds=11.0,
    )


def event(detail: Detail, number: int, at: float = 0.0) -> EventRecord:
    return EventRecord(step=number, detail=detail, at=at or time.time())


def a_run(folder: Path, records: list[Record], steps: int = 100) -> Path:
    """A run of the tiny recipe, with looks every 10 steps and a peak of 1 GFLOP/s, and its journal."""
    looks = {"validation_every": 10, "hellaswag_every": 10, "sample_every": 10}
    recipe = tiny_recipe(folder, run={"max_steps": steps}, evaluation=looks, checkpoint={"every": 20})
    path = folder / "runs" / "tiny"
    path.mkdir(parents=True)
    write_text(path / "recipe.toml", to_toml(recipe))
    write_json(
        path / "environment.json",
        {"device": {"place": "cuda:0", "name": "a card", "peak_flops": 1e9}, "recipe_name": "tiny"},
    )
    journal = Journal(path)
    for record in records:
        journal.write(record)
    return path


def rich_life(text: str = "Hello, there") -> list[Record]:
    records: list[Record] = [event(Started(device="a card", ranks=1), 0), validation(0, 9.0), hellaswag(0)]
    for number in range(1, 31):
        records.append(step(number, 9.0 - number / 10))
        if number % 10 == 0:
            records += [validation(number, 9.5 - number / 10), hellaswag(number)]
            records.append(SampleRecord(step=number, prompt="", texts=[text], seed=1, top_k=1))
            records.append(CheckpointRecord(step=number, path="x", bytes=1, seconds=0.1))
    records.append(
        SkippedRecord(step=31, tokens=0, reason=Rejection(kind=RejectionKind.LOSS_NAN), batch="x", seconds=2.0)
    )
    return [*records, event(CheckpointFailed(problem="no room"), 31), event(Rollback(from_step=31), 30)]


def seen(path: Path, width: int = 80, height: int = 24) -> str:
    return view(RunMonitor(path).update(), width, height).plain


# What it says


def test_figures_are_those_of_the_journal(tmp_path: Path) -> None:
    path = a_run(
        tmp_path,
        [
            *rich_life(),
            SkippedRecord(
                step=31, tokens=0, reason=Rejection(kind=RejectionKind.LOSS_INFINITE), batch="x", seconds=2.0
            ),
        ],
    )
    shown = seen(path, 120, 40)
    progress = RunMonitor(path).update()
    peak = 64 * progress.recipe.model.flops_per_token / 1e9
    for figure in (
        "step 31 of 100 · 31 %",
        "loss 6.0000 (mean of 10: 6.4500)",
        "validation 6.5000 ± 0.1250 (1.7500 bits per byte) at step 30",
        "HellaSwag 0.2750 ± 0.0320 at step 30",
        f"64 tokens/s, {percent(peak)} of peak",  # 128 tokens in 2 s
        "rate 3e-4",
        "gradient norm 1.25",
        "3,968 of 12,800 tokens",
        "saved at step 30",
        "skipped 1, the last at step 31: the loss is inf",
        "checkpoint at step 31 not written: no room",
        "rolled back from step 31 to 30",
        "sample at step 30: Hello, there",
    ):
        assert figure in shown, (figure, shown)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("records", [[], rich_life()[:1], rich_life()[:4], rich_life(), rich_life("好" * 500)])
def test_view_fits_into_any_terminal(tmp_path: Path, size: tuple[int, int], records: list[Record]) -> None:
    lines = seen(a_run(tmp_path, records), *size).split("\n")
    assert len(lines) <= size[1]
    assert max(map(cell_len, lines)) <= size[0]


def test_view_has_a_curve_in_a_low_terminal_and_events_in_a_high_one(tmp_path: Path) -> None:
    path = a_run(tmp_path, rich_life())
    assert "└─" in seen(path, 50, 15) and "rolled back" not in seen(path, 50, 15)
    assert "└─" in seen(path) and "rolled back" in seen(path)


def test_sample_text_cannot_control_the_terminal(tmp_path: Path) -> None:
    evil = "a\x1b[2J\x1b]0;title\x07\r\nb\t\u202ec\x9bd [bold]e"
    shown = seen(a_run(tmp_path, rich_life(evil)))
    assert "sample at step 30: a\\x1b[2J\\x1b]0;title\\x07\\x0d⏎b \\x202ec\\x9bd [bold]e" in shown
    assert all(one.isprintable() or one == "\n" for one in shown)


# Whether it lives


def hold(path: Path, held: Event) -> None:
    with locked(path):
        held.set()
        time.sleep(60)


def test_state_follows_from_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    path = a_run(tmp_path, [event(Started(), 0), step(1), CheckpointRecord(step=1, path="x", bytes=1, seconds=1)])
    watched = RunMonitor(path)

    def state() -> State:
        return watched.update().state

    def details() -> str:
        return "; ".join(describe_state(watched.update()))

    assert state() is State.EXITED  # the lock is free, and there is no final event
    fork = multiprocessing.get_context("fork")
    held = fork.Event()
    process = fork.Process(target=hold, args=(path / "lock", held))
    process.start()
    assert held.wait(20)
    assert state() is State.RUNNING and details() == f"process {process.pid}"
    os.utime(path / "journal.jsonl", (time.time() - 3600,) * 2)
    assert state() is State.IDLE and "1 h" in details()
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: state() is State.KILLED)  # before its parent has collected the exit code
    assert f"process {process.pid}" in details() and "regpt resume tiny" in details()
    process.join()
    assert state() is State.KILLED
    with locked(path / "lock"):  # watching has left the lock alone
        assert state() is State.IDLE
    Journal(path).write(event(Stopped(signal="SIGINT"), 1))
    assert state() is State.STOPPED and "SIGINT" in details() and "regpt resume tiny" in details()
    with locked(path / "lock"):
        assert state() is State.STARTING and "stopped" in details()
    Journal(path).write(event(Failed(reason=Rejection(kind=RejectionKind.LOSS_NAN)), 1))
    assert state() is State.FAILED and details() == "the loss is nan"


def test_run_without_events_is_starting(tmp_path: Path) -> None:
    path = a_run(tmp_path, [])
    assert RunMonitor(path).update().state is State.STARTING
    with locked(path / "lock"):
        assert RunMonitor(path).update().state is State.STARTING


def test_later_process_with_the_same_number_does_not_hold_the_lock(tmp_path: Path) -> None:
    path = a_run(tmp_path, [event(Started(), 0), step(1)])
    holder, own = path / "lock.holder", process_start(os.getpid())
    holder.write_text(f"process {os.getpid()} on {platform.node()}\nstarted {own}\n")
    assert RunMonitor(path).update().state is State.RUNNING
    holder.write_text(f"process {os.getpid()} on {platform.node()}\nstarted {own}1\n")
    assert RunMonitor(path).update().state is State.KILLED
    holder.write_text(f"process {os.getpid()}\n")  # as version 0.1 wrote it
    assert RunMonitor(path).update().state is State.RUNNING
    holder.write_text("process 1 on another machine\nstarted then\n")
    assert describe_state(RunMonitor(path).update()) == ["process 1 on another machine"]


@pytest.mark.parametrize(("seconds", "state"), [(200, State.RUNNING), (400, State.IDLE)])
def test_run_that_compiles_before_its_first_step_is_not_idle(tmp_path: Path, seconds: float, state: State) -> None:
    path = a_run(tmp_path, [event(Started(), 0), validation(0)])
    write_json(path / "environment.json", {"device": {"place": "cuda:0", "compiled": True}, "recipe_name": "tiny"})
    with locked(path / "lock"):
        os.utime(path / "journal.jsonl", (time.time() - seconds,) * 2)
        status = RunMonitor(path).update()
        assert status.is_compiling and status.state is state
        assert ("compiling" in describe_state(status)) is (state is State.RUNNING)
        Journal(path).write(step(1))
        assert not RunMonitor(path).update().is_compiling


@pytest.mark.parametrize("seconds", [-3_600, 3_600, -1e9, 1e9])
def test_running_run_stays_alive_however_the_clock_is_set(
    tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder's file and the journal have other dates than the clock shows."""
    path = a_run(tmp_path, [event(Started(), 0), step(1)])
    with locked(path / "lock"):
        written_at = time.time()
        os.utime(path / "lock.holder", (written_at - seconds,) * 2)
        monkeypatch.setattr("time.time", lambda: written_at + seconds)
        status = RunMonitor(path).update()
        assert status.process_alive is True
        assert status.state is (State.RUNNING if seconds < 0 else State.IDLE)  # no record for so long, as it seems
        assert "left, until" in seen(path, 120)
        (line,) = [line for line in seen(path, 120).splitlines() if "left, until" in line]
        assert duration(status.seconds_left or 0.0) in line or seconds > 0


@pytest.mark.parametrize(
    ("steps", "text"), [(10**6, " left, until "), (10**12, "time left: —"), (10**15, "time left: —")]
)
def test_time_left_of_a_run_without_end_is_a_dash(tmp_path: Path, steps: int, text: str) -> None:
    path = a_run(tmp_path, [event(Started(), 0), step(1)], steps=steps)
    with locked(path / "lock"):
        assert text in seen(path, 120)


@pytest.mark.parametrize(("earlier", "unrecorded"), [(56 * 365 * 86_400, 0), (40, 20), (-86_400, 0)])
def test_time_left_ignores_a_clock_that_was_set(tmp_path: Path, earlier: float, unrecorded: float) -> None:
    """A machine without a battery starts in 1970, until it asks the network."""
    records: list[Record] = [event(Started(), 0, time.time() - earlier), *(step(n) for n in range(1, 11))]
    path = a_run(tmp_path, records, steps=20)
    assert RunMonitor(path).update().seconds_left == pytest.approx(10 * 2 + unrecorded, abs=1)


def test_event_of_a_wrong_clock_is_shown_with_a_dash(tmp_path: Path) -> None:
    assert "—  started at step 0" in seen(a_run(tmp_path, [event(Started(), 0, 1e18), step(1)]), 120)


def test_state_in_the_list_of_runs_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = a_run(tmp_path, [event(Started(), 0), step(1)])
    environment = path / "environment.json"
    write_json(
        environment,
        {"recipe_name": "tiny", "ranks": 1, "device": {"place": "cuda:0", "name": "a card", "peak_flops": 1e9}},
    )

    def listed() -> str:
        assert main(["runs", "--runs", str(tmp_path / "runs")]) == 0
        return capsys.readouterr().out.splitlines()[-1].split()[1]

    assert listed() == "exited"  # the lock is free, and there is no final event
    with locked(path / "lock"):
        assert listed() == "running"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (path / "lock.holder").write_text(f"process {gone.pid} on {platform.node()}\n")
    assert listed() == "killed"
    Journal(path).write(event(Finished(), 1))
    assert listed() == "finished"


# How long it takes


def test_time_left_counts_steps_evaluations_and_unrecorded_time(tmp_path: Path) -> None:
    records = rich_life()[:-3]
    began_at = time.time() - 1000
    records[0] = event(Started(device="a card"), 0, began_at)
    path = a_run(tmp_path, records)
    # 30 steps of 2 s, validation 4 x 7 s and HellaSwag 4 x 11 s are counted; of 3 samples and checkpoints, 30 s are not
    os.utime(path / "journal.jsonl", (began_at + 60 + 28 + 44 + 30,) * 2)
    left = RunMonitor(path).update().seconds_left
    assert left == pytest.approx(70 * 2 + 7 * (7 + 11) + 7 * 10, abs=0.01)
    assert "with 7 x validation, 7 x HellaSwag" in seen(path, 120)


def test_time_left_excludes_the_pause_between_attempts(tmp_path: Path) -> None:
    now = time.time()
    records: list[Record] = [event(Started(), 0, now - 90_000), *(step(n) for n in range(1, 11))]
    records += [event(Resumed(), 5, now - 100), *(step(n) for n in range(6, 16))]
    path = a_run(tmp_path, records, steps=16)
    os.utime(path / "journal.jsonl", (now - 100 + 10 * 2 + 5,) * 2)  # half a second a step that no record counts
    assert RunMonitor(path).update().seconds_left == pytest.approx(2.5, abs=0.01)


def test_evaluations_left_are_those_that_the_run_will_do(tmp_path: Path) -> None:
    progress = RunMonitor(a_run(tmp_path, [event(Started(), 0), *(step(n) for n in range(1, 8))], steps=50)).update()
    for every in (0, 1, 3, 7, 10, 50, 60):
        assert progress.times_due(every) == sum(progress.recipe.is_due(step, every) for step in range(8, 51))


def test_view_shows_the_steps_after_a_resume_with_other_settings(tmp_path: Path) -> None:
    path = a_run(tmp_path, [event(Started(), 0), *(step(n) for n in range(1, 11)), event(Finished(), 10)], steps=10)
    watched = RunMonitor(path)
    assert watched.update().is_over and "step 10 of 10" in view(watched.update(), 80, 24).plain
    recipe = tiny_recipe(tmp_path, run={"max_steps": 20})
    write_text(path / "recipe.toml", to_toml(recipe))
    Journal(path).write(event(Resumed(), 8))
    assert not watched.update().is_over and "step 8 of 20" in view(watched.update(), 80, 24).plain


# The curve


def test_curve_goes_from_corner_to_corner() -> None:
    lines = [line.plain for line in draw_curves([Curve([(0, 2.0), (100, 1.0)])], 16, 6)]
    assert lines == [
        "2.00 │⠑⠤⡀       ",
        "     │  ⠈⠢⢄     ",
        "     │     ⠑⠢⡀  ",
        "1.00 │       ⠈⠒⢄",
        "     └──────────",
        "      0      100",
    ]


def test_marks_are_at_their_values_and_a_high_start_is_cut_off() -> None:
    line = [(x, 3.0 + (7.0 if x == 0 else 0.0) + x / 100) for x in range(101)]
    lines = [line.plain for line in draw_curves([Curve(line), Curve([(0, 10.0), (100, 3.01)], mark="o")], 40, 10)]
    assert lines[0].startswith("4.00 │") and lines[7].startswith("3.01 │")
    assert [row for row, text in enumerate(lines) if "o" in text] == [7] and lines[7].rstrip().endswith("o")


def test_smoothing_is_the_mean_of_the_values_so_far() -> None:
    assert smoothed([1, 2, 3, 4, 5], 3) == [1, 1.5, 2, 3, 4]


# The command


def test_watch_in_a_pipe_prints_one_view_without_escape_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run(tmp_path, rich_life())
    monkeypatch.setenv("FORCE_COLOR", "1")
    for words in ([], ["--once"]):
        assert main(["watch", "tiny", "--runs", str(tmp_path / "runs"), *words]) == 0
        shown = capsys.readouterr().out
        assert "\x1b" not in shown and "step 30 of 100" in shown and "└──" in shown


def test_missing_run_is_refused_with_the_existing_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path, [])
    assert main(["watch", "tinny", "--runs", str(tmp_path / "runs")]) == 2
    assert "no run 'tinny'" in (said := capsys.readouterr().err) and "there is tiny" in said


def test_watch_waits_for_a_run_if_requested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = a_run(tmp_path, rich_life())
    path.rename(tmp_path / "later")
    begin = threading.Timer(0.5, (tmp_path / "later").rename, (path,))
    begin.start()
    assert main(["watch", "tiny", "--runs", str(tmp_path / "runs"), "--wait", "--every", "0.1"]) == 0
    begin.join()
    shown = capsys.readouterr()
    assert "waiting for it" in shown.err and "step 30 of 100" in shown.out


class Seen:
    """`regpt watch` in a terminal of its own."""

    def __init__(self, folder: Path, width: int = 80, height: int = 24) -> None:
        self.terminal, theirs = pty.openpty()
        self.resize(width, height)
        command = [sys.executable, "-m", "regpt", "watch", "tiny", "--runs", str(folder / "runs"), "--every", "0.2"]
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell leaves it to a job in the background
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        signal.signal(signal.SIGINT, before)
        os.close(theirs)
        self.text = ""
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        while True:
            try:
                piece = os.read(self.terminal, 65_536)
            except OSError as error:
                assert error.errno == errno.EIO  # the other side is closed
                return
            if not piece:
                return
            self.text += piece.decode(errors="replace")

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def last_screen(self) -> list[str]:
        """Lines of the last whole drawing, without escape codes."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.text.rsplit("\x1b[H", 1)[-1]).replace("\r", "").split("\n")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[Path, Seen]]:
    """A run that this process writes, and `regpt watch` beside it."""
    path = a_run(tmp_path, [event(Started(device="a card"), 0), step(1, 7.25)])
    with locked(path / "lock"):
        seen = Seen(tmp_path)
        try:
            wait_until(lambda: "loss 7.2500" in seen.text)
            yield path, seen
        finally:
            seen.process.kill()
            seen.process.wait()
            os.close(seen.terminal)


def test_live_view_follows_the_run_and_the_terminal_size_until_q(live: tuple[Path, Seen]) -> None:
    path, seen = live
    assert "\x1b[?1049h" in seen.text and "running" in seen.text  # another screen
    Journal(path).write(step(2, 6.125))
    wait_until(lambda: "loss 6.1250" in seen.text)
    seen.resize(50, 12)
    wait_until(lambda: len(seen.last_screen()) == 12 and max(map(cell_len, seen.last_screen())) <= 50)
    os.write(seen.terminal, b"q")
    assert seen.process.wait(20) == 0
    wait_until(lambda: "\x1b[?1049l" in seen.text)
    assert "step 2 of 100" in seen.text.rsplit("\x1b[?1049l", 1)[1]


def test_live_view_ends_with_the_last_view_of_a_finished_run(live: tuple[Path, Seen]) -> None:
    path, seen = live
    Journal(path).write(event(Finished(), 1))
    (path / "lock.holder").unlink()
    assert seen.process.wait(20) == 0
    wait_until(lambda: "finished at step 1" in seen.text.rsplit("\x1b[?1049l", 1)[-1])
    assert "\x1b[?1049l" in seen.text


def test_live_view_ends_at_q_among_other_keys(live: tuple[Path, Seen]) -> None:
    _, seen = live
    os.write(seen.terminal, b"\x1b[Axq")
    assert seen.process.wait(20) == 0


def test_curve_leaves_out_nan_and_infinite_losses(tmp_path: Path) -> None:
    path = a_run(
        tmp_path, [event(Started(device="a card"), 0), *(step(n, 7.0) for n in range(1, 4)), step(4, math.nan)]
    )
    text = view(RunMonitor(path).update(), 80, 24).plain
    assert "step 4 of 100" in text and "7.00" in text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_live_view_restores_the_screen_after_a_signal(
    live: tuple[Path, Seen], number: signal.Signals, code: int
) -> None:
    _, seen = live
    seen.process.send_signal(number)
    assert seen.process.wait(20) == code
    wait_until(lambda: "\x1b[?1049l" in seen.text)
    assert "Traceback" not in seen.text


def test_watch_writes_nothing(tmp_path: Path) -> None:
    path = a_run(tmp_path, rich_life())

    def state() -> dict[str, tuple[int, int]]:
        return {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in [path, *path.iterdir()]}

    before = state()
    progress: RunStatus = RunMonitor(path).update()
    assert progress.step == 30 and state() == before
