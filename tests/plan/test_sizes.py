"""The number of checkpoints that a run keeps, their disk space, and that of the tokens during the preparation."""

from pathlib import Path

import pytest

from regpt.plan.sizes import checkpoints_kept, dataset_bytes, dataset_copies, disk_needed
from regpt.preparation.dataset import open_or_prepare
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe, override


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ([], 8),  # 5,000 to 35,000 and the last
        (["checkpoint.every=0"], 1),
        (["checkpoint.keep_last=2", "checkpoint.keep_best=false"], 2),
        (["checkpoint.keep_last=2"], 3),
        (["checkpoint.keep_last=2", "checkpoint.keep_every=10000"], 6),
        (["run.max_steps=5000"], 1),
    ],
)
def test_checkpoints_kept_are_counted(settings: list[str], kept: int) -> None:
    recipe = load_recipe("gpt2-modern", settings)
    assert checkpoints_kept(recipe) == kept
    assert disk_needed(recipe) == (kept + 1) * 12 * recipe.model.parameters


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        ([], 1),  # text from the hub keeps its first tokens
        (["data.validation=documents"], 2),
        (["data.source=texts", "data.validation=auto"], 2),
        (["data.source=texts", "data.validation=first_tokens"], 1),
    ],
)
def test_tokens_lie_on_the_disk_twice_while_they_are_divided(settings: list[str], copies: int, tmp_path: Path) -> None:
    assert dataset_copies(load_recipe("gpt2-modern", [*settings, f"data.path={tmp_path / 'data'}"])) == copies


def test_prepared_dataset_needs_no_further_copy(tiny: Recipe) -> None:
    assert dataset_copies(tiny) == 1
    assert dataset_bytes(tiny) is None
    manifest = open_or_prepare(tiny)
    assert dataset_copies(tiny) == 0
    stored = 2 * (manifest.tokens("train") + manifest.tokens("val"))
    assert dataset_bytes(override(tiny, ["data.validation_tokens=90000000"])) == stored  # not what the recipe asks
