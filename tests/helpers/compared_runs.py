"""Run `regpt compare`, and edit the files of a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regpt.base.errors import DONE
from regpt.cli.main import main


def run_command(capsys: pytest.CaptureFixture[str], *words: str, code: int = DONE) -> str:
    """Run a regpt command, check its exit code, and return its output."""
    capsys.readouterr()
    assert main(list(words)) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out + err


def read_page(out: str) -> str:
    """Read the comparison.md that the last line of the output names."""
    last = out.splitlines()[-1]
    assert last.startswith("comparison: ")
    return Path(last.removeprefix("comparison: ")).read_text(encoding="utf-8")


def edit_journal(run: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Replace each record by change(record); None deletes it."""
    path = run / "journal.jsonl"
    records = [change(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records if record is not None), encoding="utf-8")


def edit_environment(run: Path, section: str, **values: Any) -> None:
    path = run / "environment.json"
    environment = json.loads(path.read_text(encoding="utf-8"))
    environment[section] |= values
    path.write_text(json.dumps(environment), encoding="utf-8")


def edit_recipe(run: Path, old: str, new: str) -> None:
    path = run / "recipe.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def replace_values(kind: str, **values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {**record, **values} if record["kind"] == kind else record


def with_load(record: dict[str, Any], share: float) -> dict[str, Any]:
    """Set the share of the processors that other programs used, in the record of an attempt's end."""
    if record["kind"] != "event" or "other_cpu_share" not in record["detail"]:
        return record
    return {**record, "detail": {**record["detail"], "other_cpu_share": share}}


def edit_tasks(run: Path, **values: Any) -> None:
    """Change the scores in the journal and delete the predictions."""
    edit_journal(run, replace_values("task", **values))
    shutil.rmtree(run / "evaluations")
