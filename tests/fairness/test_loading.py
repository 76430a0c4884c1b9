"""Which models `regpt compare` accepts, and their names."""

import shutil
from pathlib import Path

import pytest

from regpt.base.errors import USAGE
from regpt.fairness.loading import is_shipped_only, load_model
from regpt.recipe.settings import load_recipe, to_toml
from tests.helpers.compared_runs import read_page, run_command


def test_run_named_twice_is_an_error(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_command(capsys, "compare", "a", "b", "runs/a", code=USAGE)
    assert "'a'" in out and "'runs/a'" in out and out.count("error:") == 1
    assert not Path("comparisons").exists()


def test_runs_with_the_same_name_are_shown_with_their_paths(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "b", "elsewhere/a")
    assert "| | a (a) | a (elsewhere/a) |" in read_page(run_command(capsys, "compare", "a", "elsewhere/a"))


def test_shipped_recipe_is_loaded_by_name_unless_a_run_has_it(tmp_path: Path) -> None:
    assert load_model("gpt2-classic", tmp_path).recipe == load_recipe("gpt2-classic")
    assert is_shipped_only("gpt2-classic", tmp_path) and not is_shipped_only("gpt2-unheard", tmp_path)
    (tmp_path / "gpt2-classic").mkdir()
    (tmp_path / "gpt2-classic" / "recipe.toml").write_text(to_toml(load_recipe("demo-modern")))
    assert not is_shipped_only("gpt2-classic", tmp_path)
