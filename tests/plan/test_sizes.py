"""The number of checkpoints that a run keeps, and their disk space."""

import pytest

from regpt.base.settings import load_recipe
from regpt.plan.sizes import checkpoints_kept, disk_needed


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
