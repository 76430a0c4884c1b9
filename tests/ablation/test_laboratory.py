"""Whole ablations of tiny runs, from the command line."""

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from regpt.ablation.trials import discard_without_checkpoint, is_trained_elsewhere
from regpt.base.errors import TERMINATED
from regpt.filesystem.locks import locked
from regpt.recipe.settings import to_toml
from regpt.tracking.journal import read_history
from regpt.tracking.layout import RunPaths
from tests.conftest import tiny_recipe, wait_until

CHANGE = ["--change", "muon: optimizer.kind=muon"]


@pytest.fixture
def recipe(tmp_path: Path, texts: Path) -> Path:
    found = tiny_recipe(tmp_path, run={"max_steps": 15}, evaluation={"sample_count": 0})
    (tmp_path / "tiny.toml").write_text(to_toml(found), encoding="utf-8")
    return tmp_path / "tiny.toml"


def start(recipe: Path, folder: Path, *words: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "regpt",
        "ablate",
        str(recipe),
        *CHANGE,
        "--seeds",
        "1",
        "--into",
        str(folder),
        *words,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(child: "subprocess.Popen[str]") -> str:
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 0, output
    return output


def report(folder: Path) -> str:
    """Return the report without times and memory, which differ from run to run."""
    return re.sub(r"(× \d+\.\d+|—) \| × \d+\.\d+", "…", (folder / "ablation.md").read_text(encoding="utf-8"))


def kill(child: "subprocess.Popen[str]", with_children: bool) -> None:
    """Kill an ablation, and the runs that it trains or not; those are in sessions of their own."""
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    for process in family if with_children else family[:1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL


def disturbed(recipe: Path, folder: Path, happened: Callable[[], bool]) -> "subprocess.Popen[str]":
    """Start or continue an ablation, and return it once it has children and something has happened."""
    child = start(recipe, folder, "--jobs", "2")
    wait_until(lambda: happened() and bool(psutil.Process(child.pid).children()), seconds=120)
    return child


def killed_once(recipe: Path, folder: Path, first_run: Path) -> None:
    """Kill it together with its runs, after their first checkpoint."""
    kill(disturbed(recipe, folder, (first_run / "checkpoints" / "step_000003").exists), with_children=True)


def stopped_and_killed_three_times(recipe: Path, folder: Path, first_run: Path) -> None:
    """Kill it with its runs, before and after their first checkpoint; stop it; and kill it alone."""
    kill(disturbed(recipe, folder, (first_run / "journal.jsonl").exists), with_children=True)
    killed_once(recipe, folder, first_run)
    child = disturbed(recipe, folder, lambda: True)
    child.terminate()
    output, _ = child.communicate()
    assert child.returncode == TERMINATED and "the same command continues" in output
    kill(disturbed(recipe, folder, (first_run / "checkpoints" / "step_000006").exists), with_children=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "disturb", [killed_once, pytest.param(stopped_and_killed_three_times, marks=pytest.mark.nightly)]
)
def test_ablation_that_was_disturbed_writes_the_report_of_an_undisturbed_one(
    recipe: Path, tmp_path: Path, disturb: Callable[[Path, Path, Path], None]
) -> None:
    """Disturbed with two runs at a time, undisturbed with one after another."""
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    disturb(recipe, folder, folder / "runs" / "base-1337")
    output = finish(start(recipe, folder, "--jobs", "2"))
    assert "muon" in output and "report:" in output
    finish(start(recipe, whole, "--jobs", "1"))
    names = sorted(path.name for path in (whole / "runs").iterdir())
    assert names == ["base-1337", "muon-1337"]
    for name in names:
        ours, theirs = (read_history(where / "runs" / name) for where in (folder, whole))
        assert [step.loss for step in ours.steps] == [step.loss for step in theirs.steps]
    assert report(folder) == report(whole)


def test_run_without_a_checkpoint_is_discarded_unless_a_process_trains_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "journal.jsonl").touch()
    with locked(RunPaths(path).lock):
        discard_without_checkpoint(path)
        assert path.exists() and is_trained_elsewhere(path)
    RunPaths(path).checkpoint(3).mkdir(parents=True)
    discard_without_checkpoint(path)
    assert path.exists() and not is_trained_elsewhere(path)
    RunPaths(path).checkpoint(3).rmdir()
    discard_without_checkpoint(path)
    assert not path.exists()


@pytest.mark.nightly
def test_run_that_fails_ends_the_ablation_with_its_own_error(recipe: Path, tmp_path: Path) -> None:
    first = start(recipe, tmp_path / "a", "--jobs", "1")
    finish(first)
    damaged = tmp_path / "a" / "runs" / "base-1337"
    for weights in (damaged / "checkpoints").rglob("*.safetensors"):  # a run without any is trained again
        weights.write_bytes(b"")
    journal = damaged / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))  # not finished any more
    child = start(recipe, tmp_path / "a", "--jobs", "1")
    output, _ = child.communicate(timeout=60)
    assert child.returncode != 0 and "base-1337" in output and "Traceback" not in output
