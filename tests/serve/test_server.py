"""The command: it starts at an address, says where, ends on a signal, and words what it cannot use."""

import contextlib
import http.client
import json
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regpt.base.errors import DONE, TERMINATED, USAGE
from regpt.cli.main import main
from tests.conftest import tiny_recipe, wait_until, write_texts
from tests.helpers.browser import Browser, Page
from tests.helpers.forked import Program, fork_command
from tests.helpers.served_runs import served
from tests.serve.conftest import MadeRun


def ask(port: int, path: str, **headers: str) -> tuple[int, Any]:
    """Send a GET with the path as it is, which clients for the web would shorten."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, json.loads(body) if "json" in answer.headers["content-type"] else body


@pytest.mark.slow
def test_server_answers_and_a_path_upwards_is_not_found(root: Path, made: MadeRun) -> None:
    made.train(1, 3)
    MadeRun(root.parent, "secret")
    with served(root) as (program, port):
        status, found = ask(port, "/api/runs/a")
        assert (status, found["status"]["step"]) == (200, 3)
        for name in ("..", "../secret", "./../secret", "%2e%2e/secret", "..%2fsecret", "a/../../secret"):
            for path in (f"/api/runs/{name}", f"/api/runs/{name}/files", f"/runs/{name}/report.html"):
                assert ask(port, path)[0] == 404, path
        assert ask(port, "/api/runs", Host="evil.example")[0] == 403
        program.send(signal.SIGTERM)
        ended = program.outcome(20)
    assert ended.code == TERMINATED and "Traceback" not in ended.output
    assert len(ended.output.splitlines()) == 1


@pytest.mark.slow
def test_ctrl_c_ends_the_server_while_a_connection_is_open(root: Path) -> None:
    with served(root) as (program, port), socket.create_connection(("127.0.0.1", port)) as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")  # never ends
        program.send(signal.SIGINT)
        ended = program.outcome(20)
    assert ended.code == DONE and "Traceback" not in ended.output


def test_port_in_use_is_named_with_the_remedy(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--runs", str(root), "--port", str(port)]) == USAGE
    printed = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in printed and f"--port {port + 1 if port < 65_535 else 8000}" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--host", "0.0.0.0"], ["0.0.0.0", "--token"]),
        (["--token", "short"], ["--token", "5 characters"]),
        (["--port", "70000"], ["--port 70000", "65,535"]),
        (["--host", "no.such.host.invalid"], ["no.such.host.invalid", "127.0.0.1"]),
        (["--host", "192.0.2.1", "--token", "x" * 16], ["192.0.2.1", "--host"]),
        (["--runs", "nowhere"], ["nowhere", "--runs"]),
    ],
)
def test_argument_that_cannot_be_used_is_named(
    root: Path, capsys: pytest.CaptureFixture[str], words: list[str], names: list[str]
) -> None:
    assert main(["serve", "--runs", str(root), *words]) == USAGE
    printed = capsys.readouterr().err
    assert all(name in printed for name in names) and printed.count("\n") == 1, printed


def test_missing_package_is_named_with_the_command_that_installs_it(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "regpt.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--runs", str(root)]) == USAGE
    printed = capsys.readouterr().err
    assert "uvicorn" in printed and "pip install 'regpt[serve]'" in printed


# A run that is being written

Trained = Callable[[str], Path]
TinyRun = Callable[[str, str], Program]
STEPS, CHECKPOINTED = 24, 4  # the last step, and steps between checkpoints


@pytest.fixture
def tiny_run(tmp_path: Path, real_text: str) -> TinyRun:
    """Return a function that starts the command `train` or `resume` for a run with a name."""
    from regpt.recipe.settings import to_toml

    write_texts(tmp_path / "texts", real_text)
    root = tmp_path / "runs"
    root.mkdir(exist_ok=True)

    recipe = tmp_path / "tiny.toml"
    every = {"validation_every": CHECKPOINTED, "sample_every": STEPS}
    settings = tiny_recipe(tmp_path, run={"max_steps": STEPS}, checkpoint={"every": CHECKPOINTED}, evaluation=every)
    recipe.write_text(to_toml(settings), encoding="utf-8")

    def started(command: str, name: str) -> Program:
        words = [command, str(recipe), "--name", name] if command == "train" else [command, name]
        return fork_command([*words, "--runs", str(root)], tmp_path / f"{name}-{command}")

    return started


@pytest.fixture
def train(tiny_run: TinyRun, tmp_path: Path) -> Trained:
    """Return a function that trains a run, kills it after its first checkpoint, and resumes it."""
    from regpt.tracking.journal import read_history

    def trained(name: str) -> Path:
        run = tmp_path / "runs" / name
        first = tiny_run("train", name)
        wait_until(lambda: bool(read_history(run).checkpoints), 60)
        first.send(signal.SIGKILL)
        first.outcome(20)
        assert read_history(run).step < STEPS
        assert tiny_run("resume", name).outcome(120).code == DONE
        return run

    return trained


@pytest.mark.slow
@pytest.mark.browser
def test_run_that_grows_in_an_open_page_killed_and_resumed_equals_one_without(
    chromium: Page, tiny_run: TinyRun, train: Trained, tmp_path: Path
) -> None:
    from regpt.tracking.journal import History, read_history

    alone, root = train("alone").rename(tmp_path / "alone"), tmp_path / "runs"  # the server never sees `alone`
    shown = root / "shown"
    step = "Number(document.querySelector('.figures dd span').innerText)"

    def train_until(program: Program, reached: Callable[[History], bool]) -> int:
        """Let the stopped program train until its journal has what is asked for, and stop it; return its last step."""
        program.send(signal.SIGCONT)
        wait_until(lambda: shown.is_dir() and reached(read_history(shown)), 60)
        program.send(signal.SIGSTOP)
        return read_history(shown).step

    with served(root) as (_, port), contextlib.ExitStack() as stack:
        browser = Browser(chromium, f"http://127.0.0.1:{port}", root)
        program = tiny_run("train", "shown")
        stack.callback(program.process.kill)  # a failed test leaves no stopped process
        first = train_until(program, lambda history: history.step > 0)
        browser.open("run/shown")
        browser.wait(f"document.querySelector('.large svg path.line') && {step} >= {first}")
        last = train_until(program, lambda history: history.step > first and bool(history.checkpoints))
        browser.wait(f"{step} >= {last}")
        assert last < STEPS
        program.send(signal.SIGKILL)
        program.outcome(20)
        assert tiny_run("resume", "shown").outcome(120).code == DONE
        browser.wait(f"{step} === {STEPS}")
        assert f"{read_history(shown).steps[-1].loss:.4f}" in browser.text(".figures")
        browser.check_requests()
    assert_same_training(alone, shown)


def assert_same_training(alone: Path, watched: Path) -> None:
    """Check that two runs have the same losses, the same weights after the last step, and the same files."""
    from regpt.tracking.journal import read_history

    without, with_reader = read_history(alone), read_history(watched)
    assert [(one.step, one.loss) for one in without.steps] == [(one.step, one.loss) for one in with_reader.steps]
    assert [one.loss for one in without.validations] == [one.loss for one in with_reader.validations]
    weights = f"checkpoints/step_{STEPS:06}/model.safetensors"
    assert (alone / weights).read_bytes() == (watched / weights).read_bytes()
    assert files_of(alone) == files_of(watched)


def files_of(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


@pytest.mark.slow
def test_run_that_is_watched_killed_and_resumed_equals_one_without_a_reader(train: Trained, tmp_path: Path) -> None:
    from threading import Event, Thread

    alone = train("alone").rename(tmp_path / "alone")  # the server never sees it
    stop, cursors = Event(), [""]

    def read() -> None:
        while not stop.is_set():
            ask(port, "/api/runs")
            ask(port, "/api/runs/watched/files")
            status, found = ask(port, f"/api/runs/watched?cursor={cursors[-1]}")
            if status == 200 and found["cursor"] != cursors[-1]:
                cursors.append(found["cursor"])

    with served(tmp_path / "runs") as (_, port):
        reader = Thread(target=read)
        reader.start()
        watched = train("watched")
        stop.set()
        reader.join()
    assert len(cursors) > 3  # it was read while it grew
    assert_same_training(alone, watched)
