"""The one place for names in a run directory."""

import re
from pathlib import Path

import pytest

import regpt
from regpt.tracking.layout import RunPaths, parse_step, step_directories, step_name

RUN = Path("runs/a")
PATHS = RunPaths(RUN)


def test_run_directory_has_the_names_that_version_0_1_wrote() -> None:
    assert PATHS.recipe == RUN / "recipe.toml"
    assert PATHS.environment == RUN / "environment.json"
    assert PATHS.journal == RUN / "journal.jsonl"
    assert PATHS.lock == RUN / "lock"
    assert PATHS.images == RUN / "img"
    assert PATHS.report == RUN / "report.md"
    assert PATHS.html_report == RUN / "report.html"
    assert PATHS.checkpoint(250) == RUN / "checkpoints" / "step_000250"
    assert PATHS.evaluation(250) == RUN / "evaluations" / "step_000250"
    assert PATHS.evidence(250) == RUN / "evidence" / "step_000250"


@pytest.mark.parametrize("step", [0, 7, 999_999, 1_000_000])
def test_step_is_read_back_from_its_directory_name(step: int) -> None:
    assert parse_step(step_name(step)) == step


@pytest.mark.parametrize("name", ["step_", "step_000006_backup", ".step_000006.partial", "000006", "step_-1"])
def test_other_directory_names_give_no_step(name: str) -> None:
    assert parse_step(name) is None


def test_step_directories_are_listed_in_order_of_steps(tmp_path: Path) -> None:
    for name in ("step_1000000", "step_999999", "step_000003", "step_000003_copy", ".step_000004.partial"):
        (tmp_path / name).mkdir()
    assert [step for step, _ in step_directories(tmp_path)] == [3, 999_999, 1_000_000]
    assert step_directories(tmp_path / "missing") == []


def test_names_of_a_run_directory_are_literals_in_layout_alone() -> None:
    literal = re.compile(
        r'"(recipe\.toml|environment\.json|journal\.jsonl|lock|evaluations|evidence|img)"|"step_(?!seconds")|/ f"step_'
    )
    package = Path(regpt.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if literal.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"tracking/layout.py"}
