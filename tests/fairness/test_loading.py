"""Which models `regpt compare` accepts, and their names."""

import shutil
from pathlib import Path

import pytest

from regpt.base.errors import USAGE
from tests.helpers.compared_runs import read_page, run_command


def test_run_named_twice_is_an_error(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_command(capsys, "compare", "a", "b", "runs/a", code=USAGE)
    assert "'a'" in out and "'runs/a'" in out and out.count("error:") == 1
    assert not Path("comparisons").exists()


def test_runs_with_the_same_name_are_shown_with_their_paths(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "b", "elsewhere/a")
    assert "| | a (a) | a (elsewhere/a) |" in read_page(run_command(capsys, "compare", "a", "elsewhere/a"))
