"""Whole ablations of tiny runs, from the command line."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from regpt.base.errors import TERMINATED
from regpt.recipe.settings import to_toml
from regpt.tracking.journal import read_history
from tests.conftest import tiny_recipe, wait_until

CHANGE = ["--change", "muon: optimizer.kind=muon"]


@pytest.fixture
def recipe(tmp_path: Path, texts: Path) -> Path:
    found = tiny_recipe(tmp_path, evaluation={"sample_count": 0})
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


@pytest.mark.slow
def test_killed_ablation_continues_and_writes_the_report_of_an_undisturbed_one(recipe: Path, tmp_path: Path) -> None:
    """Two at a time, stopped and killed with its first runs under way, against one after another."""
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    for number in (signal.SIGTERM, signal.SIGKILL):
        child = start(recipe, folder, "--jobs", "2")
        wait_until(lambda: len(list(folder.glob("runs/*/journal.jsonl"))) >= 1, seconds=60)
        os.kill(child.pid, number)
        output, _ = child.communicate()
        assert child.returncode == (TERMINATED if number == signal.SIGTERM else -signal.SIGKILL)
        assert "the same command continues" in output or number == signal.SIGKILL
    output = finish(start(recipe, folder, "--jobs", "2"))
    assert "muon" in output and "report:" in output
    finish(start(recipe, whole, "--jobs", "1"))
    names = sorted(path.name for path in (whole / "runs").iterdir())
    assert names == ["base-1337", "muon-1337"]
    for name in names:
        ours, theirs = (read_history(where / "runs" / name) for where in (folder, whole))
        assert [step.loss for step in ours.steps] == [step.loss for step in theirs.steps]
    assert report(folder) == report(whole)


@pytest.mark.nightly
def test_run_that_fails_ends_the_ablation_with_its_own_error(recipe: Path, tmp_path: Path) -> None:
    first = start(recipe, tmp_path / "a", "--jobs", "1")
    finish(first)
    damaged = tmp_path / "a" / "runs" / "base-1337"
    shutil.rmtree(damaged / "checkpoints")
    journal = damaged / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))  # not finished any more
    child = start(recipe, tmp_path / "a", "--jobs", "1")
    output, _ = child.communicate(timeout=60)
    assert child.returncode != 0 and "base-1337" in output and "Traceback" not in output
