"""Old names of recipes and settings are still read."""

from pathlib import Path

import pytest

from regpt.base.errors import RecipeError, UserError
from regpt.cli.main import main
from regpt.recipe.aliases import RenamedSetting
from regpt.recipe.differences import changes
from regpt.recipe.settings import (
    as_tables,
    build_recipe,
    find_recipe,
    load_recipe,
    load_resolved_recipe,
    shipped_recipe,
)


@pytest.mark.parametrize(("old", "new"), [("gpt2-230126", "gpt2-classic"), ("gpt2-050226", "gpt2-modern")])
def test_recipe_is_found_by_its_old_name_and_path(old: str, new: str) -> None:
    assert load_recipe(old) == load_recipe(new)
    assert load_recipe(old).name == new
    recipes = find_recipe(new).parent
    assert find_recipe(recipes / f"{old}.toml") == recipes / f"{new}.toml"
    assert shipped_recipe(old) == shipped_recipe(new) != None  # noqa: E711


def test_recipe_file_of_the_old_name_wins_over_the_alias(tmp_path: Path) -> None:
    own = tmp_path / "gpt2-050226.toml"
    own.write_text("[run]\nseed = 5\n")
    assert load_recipe(own).run.seed == 5


def test_recipe_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="gpt2-modern"):
        load_recipe("gpt2-moder")


def test_old_setting_in_a_recipe_file_warns(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[guard]\nskips = 5\nreturns = 0\n")
    with pytest.warns(RenamedSetting) as caught:
        recipe = load_recipe(path)
    assert (recipe.guard.max_skips, recipe.guard.max_rollbacks) == (5, 0)
    assert [str(one.message) for one in caught] == [
        "guard.skips is now guard.max_skips",
        "guard.returns is now guard.max_rollbacks",
    ]


def test_old_setting_on_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[guard]\nmax_skips = 5\n")
    with pytest.warns(RenamedSetting):
        assert load_recipe(path, ["guard.skips=7"]).guard.max_skips == 7


def test_old_and_new_setting_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[guard]\nskips = 5\nmax_skips = 6\n")
    with pytest.warns(RenamedSetting), pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [problem.setting for problem in caught.value.problems] == ["guard.max_skips"]


def test_old_setting_in_a_run_is_read_silently(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[guard]\nskips = 5\n")
    assert load_resolved_recipe(path).guard.max_skips == 5


def test_old_setting_in_a_checkpoint_is_no_change() -> None:
    recipe = load_recipe("demo-modern")
    tables = as_tables(recipe)
    tables["guard"]["skips"] = tables["guard"].pop("max_skips")
    tables["guard"]["returns"] = tables["guard"].pop("max_rollbacks")
    assert changes(tables, recipe) == ({}, {})
    assert build_recipe("demo-modern", tables) == (recipe, [])
    tables["guard"]["skips"] = 99
    assert changes(tables, recipe)[0] == {"guard.max_skips": [99, recipe.guard.max_skips]}


def test_old_setting_is_noted_once_by_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", "demo-modern", "guard.skips=4", "guard.skips=5"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "note: guard.skips is now guard.max_skips\n"
    assert "max_skips = 5" in printed.out
