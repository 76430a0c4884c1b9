"""A copy of a run, and a run made twice, are called identical, in words; one digit of one loss, and they are not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regpt.cli.main import main
from regpt.stats.describe import identity_text
from regpt.stats.identical import Identity, identical
from regpt.tracking.run import open_run

TRIALS = Path(__file__).parent.parent / "fixtures" / "runs"
COPY = Identity(training_losses=4, validation_losses=3, is_copy=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("run", "copy"):
        shutil.copytree(TRIALS / "trial-050226", tmp_path / name)
    return tmp_path


def edit(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    journal = run / "journal.jsonl"
    records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    for record in records:
        change(record)
    journal.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def later(record: dict[str, Any]) -> None:
    """As if it had been run again, to the same bits."""
    for moment in ("seconds", "at"):
        if moment in record:
            record[moment] += 1


def test_copy_of_a_run_is_identical_in_report_and_comparison(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runs", str(root)]
    assert main(["report", "run", "--against", "copy", *where]) == 0
    report = (root / "run" / "report.md").read_text(encoding="utf-8")
    says = identity_text(COPY)
    assert f"\n\nCompared with **copy**: the two runs are identical: {says}.\n\n" in report.split("## Model")[0]
    assert f"The two runs are identical: {says}." in report.split("## Performance Analysis")[1]
    capsys.readouterr()
    assert main(["compare", "run", "copy", "--into", str(root / "page"), *where]) == 0
    for text in (capsys.readouterr().out, (root / "page" / "comparison.md").read_text(encoding="utf-8")):
        assert f": {says}\n" in text and "are identical" in text


def test_run_made_twice_is_identical_but_no_copy(root: Path) -> None:
    edit(root / "copy", later)
    recipe = root / "copy" / "recipe.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("threads = 0", "threads = 1"), encoding="utf-8")
    assert identical(open_run(root / "run"), open_run(root / "copy")) == replace(COPY, is_copy=False)


@pytest.mark.parametrize("kind", ["step", "validation"])
def test_last_digit_of_one_loss_makes_runs_differ(root: Path, kind: str) -> None:
    def nudge(record: dict[str, Any]) -> None:
        if (record["kind"], record["step"]) == (kind, 4):
            record["loss"] += 2e-15

    edit(root / "copy", nudge)
    assert identical(open_run(root / "run"), open_run(root / "copy")) is None


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("recipe.toml", "seed = 1337", "seed = 1338"), ("environment.json", '"digest": "', '"digest": "0')],
)
def test_other_recipe_or_data_makes_runs_differ(root: Path, file: str, old: str, new: str) -> None:
    path = root / "copy" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert identical(open_run(root / "run"), open_run(root / "copy")) is None


def test_runs_without_a_loss_are_not_identical(root: Path) -> None:
    for name in ("run", "copy"):
        (root / name / "journal.jsonl").write_text("", encoding="utf-8")
    assert identical(open_run(root / "run"), open_run(root / "copy")) is None


def test_other_scores_make_runs_differ(root: Path) -> None:
    def other_answers(record: dict[str, Any]) -> None:
        if record["kind"] == "task":
            record["accuracy"] = dict.fromkeys(record["accuracy"], 0.9)

    edit(root / "copy", other_answers)
    assert not identical(open_run(root / "run"), open_run(root / "copy"))
