"""Training tokens and epochs of a recipe, before and after its data is prepared."""

from pathlib import Path

import pytest

from regpt.data.shards import read_manifest
from regpt.data.sizes import TrainTokens, epochs, epochs_text, train_tokens
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe


def test_epochs_are_unknown_before_preparation(tiny: Recipe) -> None:
    assert train_tokens(tiny) is None and epochs(tiny) is None
    assert tiny.data.path in epochs_text(tiny)


def test_epochs_follow_from_the_prepared_tokens(tiny: Recipe) -> None:
    prepare(tiny)
    count = read_manifest(tiny.data.directory).tokens("train")
    assert train_tokens(tiny) == TrainTokens(count, prepared=True)
    assert epochs(tiny) == pytest.approx(tiny.total_tokens / count)
    assert f"{count:,}" in epochs_text(tiny)


def test_epochs_use_the_published_token_count(tmp_path: Path) -> None:
    recipe = load_recipe("gpt2-modern", [f"data.path={tmp_path}/none"])
    assert train_tokens(recipe) == TrainTokens(9_854_000_000, prepared=False)
    assert epochs(recipe) == pytest.approx(2.030, abs=0.001)
