"""Fixtures for tests of several ranks: a folder with prepared data, and the history of a run on one rank."""

import pytest

from regpt.preparation.dataset import prepare
from regpt.recipe.settings import to_toml
from regpt.tracking.journal import History
from tests.conftest import tiny_recipe
from tests.helpers.parallel_runs import STEPS, Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Workspace:
    """Return a folder with a tiny recipe of STEPS steps and its prepared data."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.py").write_text(real_text, encoding="utf-8")
    recipe = tiny_recipe(
        folder,
        run={"max_steps": STEPS, "rank_timeout": 60},
        data={"micro_batch": 1, "total_batch_tokens": 128},
        checkpoint={"every": 5},
        evaluation={"validation_every": 5, "validation_batches": 3, "validation_batch_size": 3, "sample_every": 10},
    )
    (folder / "tiny.toml").write_text(to_toml(recipe), encoding="utf-8")
    prepare(recipe)
    return Workspace(folder)


@pytest.fixture(scope="module")
def one_rank(workspace: Workspace) -> History:
    """Return the history of the recipe on one rank; the run is named "alone"."""
    return workspace.train(1, "alone")
