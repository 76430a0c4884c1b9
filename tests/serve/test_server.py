"""The command: it starts at an address, says where, ends on a signal, and words what it cannot use."""

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
from tests.helpers.forked import fork_command
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
STEPS = 60


@pytest.fixture
def train(tmp_path: Path, real_text: str) -> Trained:
    """Return a function that trains a run, kills it after its first checkpoint, and resumes it."""
    from regpt.recipe.settings import to_toml
    from regpt.tracking.journal import read_history

    write_texts(tmp_path / "texts", real_text)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(to_toml(tiny_recipe(tmp_path, run={"max_steps": STEPS})), encoding="utf-8")

    def trained(name: str) -> Path:
        run = tmp_path / "runs" / name
        run.parent.mkdir(exist_ok=True)
        words = ["train", str(recipe), "--name", name, "--runs", str(run.parent)]
        first = fork_command(words, tmp_path / f"{name}-1")
        wait_until(lambda: bool(read_history(run).checkpoints), 60)
        first.send(signal.SIGKILL)
        first.outcome(20)
        assert read_history(run).step < STEPS
        words = ["resume", name, "--runs", str(run.parent)]
        assert fork_command(words, tmp_path / f"{name}-2").outcome(60).code == DONE
        return run

    return trained


@pytest.mark.slow
def test_run_that_is_watched_killed_and_resumed_equals_one_without_a_reader(train: Trained, tmp_path: Path) -> None:
    from threading import Event, Thread

    from regpt.tracking.journal import read_history

    alone = train("alone")
    stop, cursors = Event(), [""]

    def read() -> None:
        while not stop.is_set():
            ask(port, "/api/runs")
            ask(port, "/api/runs/watched/files")
            status, found = ask(port, f"/api/runs/watched?cursor={cursors[-1]}")
            if status == 200 and found["cursor"] != cursors[-1]:
                cursors.append(found["cursor"])

    with served(alone.parent) as (_, port):
        reader = Thread(target=read)
        reader.start()
        watched = train("watched")
        stop.set()
        reader.join()
    assert len(cursors) > 3  # it was read while it grew
    without, with_reader = read_history(alone), read_history(watched)
    assert [(one.step, one.loss) for one in without.steps] == [(one.step, one.loss) for one in with_reader.steps]
    assert [one.loss for one in without.validations] == [one.loss for one in with_reader.validations]
    weights = f"checkpoints/step_{STEPS:06}/model.safetensors"
    assert (alone / weights).read_bytes() == (watched / weights).read_bytes()
    assert sorted(path.name for path in alone.iterdir()) == sorted(path.name for path in watched.iterdir())
