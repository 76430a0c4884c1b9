"""The wording of a comparison. `make golden` writes the files again."""

import shutil
from pathlib import Path

import pytest

from regpt.comparison.page import write_comparison
from regpt.fairness.loading import load_models
from tests.helpers.compared_runs import edit_environment, edit_journal, edit_recipe, replace_values
from tests.helpers.golden import assert_golden

FIXTURE = Path(__file__).parent.parent / "fixtures" / "version_0_1"


@pytest.fixture
def old_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the runs of version 0.1 and make their parent the working directory."""
    shutil.copytree(FIXTURE, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place" / "runs"


def test_page_of_two_old_runs(old_runs: Path) -> None:
    (path,) = write_comparison(load_models(["old-modern", "old-classic"], Path("runs")), Path("compared"))
    assert_golden("comparison-two-runs.md", path.read_text(encoding="utf-8"))


def test_page_with_many_caveats(old_runs: Path) -> None:
    """The second run has other windows, precision, device and items, and is not finished."""
    classic = old_runs / "old-classic"
    edit_environment(classic, "device", name="NVIDIA H100", precision="bfloat16", compiled=True)
    edit_journal(classic, replace_values("validation", windows=5))
    edit_journal(classic, replace_values("task", task="hellaswag_lm_eval", cut=3))
    shutil.rmtree(classic / "evaluations", ignore_errors=True)
    edit_recipe(classic, "max_steps = 12", "max_steps = 48")
    edit_journal(classic, lambda r: {**r, "event": "stopped"} if r.get("event") == "finished" else r)
    (path,) = write_comparison(load_models(["old-modern", "old-classic"], Path("runs")), Path("compared"))
    assert_golden("comparison-many-caveats.md", path.read_text(encoding="utf-8"))
