"""Ranks that cannot train together are refused before anything is written, and one rank says why."""

import os
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest

from regpt.preparation.dataset import prepare
from regpt.recipe.settings import load_recipe
from regpt.tracking.journal import read_history
from tests.helpers.parallel_runs import STEPS, Workspace

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun")]


def test_batch_that_ranks_do_not_divide_is_refused_at_once(workspace: Workspace) -> None:
    ended = workspace.run("train", 3, "thirds")
    assert [outcome.code for outcome in ended] == [2, 2, 2], ended
    printed = [outcome.output for outcome in ended if outcome.output.strip()]
    assert len(printed) == 1 and "Traceback" not in printed[0]
    assert "= 1 x 32 x 3 ranks = 96; try 1 or 2 or 4 ranks" in " ".join(printed[0].split())
    assert not workspace.path("thirds").exists()


def test_misspelled_setting_is_reported_by_one_rank_only(workspace: Workspace) -> None:
    ended = workspace.run("train", 2, "misspelt", ["train.parallel=fsdp"])
    assert [outcome.code for outcome in ended] == [2, 2]
    assert "did you mean 'run.parallel'?" in ended[0].output and not ended[1].output.strip()


def change_data(faulty_rank: int, folder: str, rank: int) -> None:
    """Let one of the ranks read another dataset, in `folder`."""
    if rank == faulty_rank:
        from regpt.training import start

        real = start.read_manifest
        start.read_manifest = lambda path: real(Path(folder))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_ranks_with_different_datasets_refuse_to_train(workspace: Workspace, tmp_path: Path) -> None:
    recipe = load_recipe(
        workspace.folder / "tiny.toml", [f"data.path={tmp_path / 'other'}", "data.validation_tokens=3000"]
    )
    prepare(recipe)
    ended = workspace.run("train", 2, "apart", (), partial(change_data, 1, str(tmp_path / "other")))
    assert [outcome.code for outcome in ended] == [3, 3], ended
    assert (ended[0].output + ended[1].output).count("is not the same on all ranks") == 1
    assert not workspace.path("apart").exists()


def change_recipe(faulty_rank: int, rank: int) -> None:
    """Let one of the ranks have another recipe."""
    from regpt.training import start

    if rank == faulty_rank:
        real = start.recipe_digest
        start.recipe_digest = lambda recipe: real(recipe)[::-1]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_ranks_with_different_recipes_refuse_to_train(workspace: Workspace) -> None:
    ended = workspace.run("train", 2, "apart", (), partial(change_recipe, 1))
    assert [outcome.code for outcome in ended] == [2, 2], ended
    assert (ended[0].output + ended[1].output).count("is not the same on all ranks") == 1


def allow_one_restart(rank: int) -> None:
    """Set what torchrun sets with --max-restarts=1."""
    os.environ["TORCHELASTIC_MAX_RESTARTS"] = "1"


@pytest.mark.slow
def test_run_of_another_recipe_is_refused_after_a_restart(workspace: Workspace) -> None:
    workspace.train(1, "foreign", ["run.max_steps=2"])
    shutil.rmtree(workspace.path("foreign") / "checkpoints")
    before = (workspace.path("foreign") / "journal.jsonl").read_bytes()
    ended = workspace.run("train", 2, "foreign", ["model.n_embd=32"], allow_one_restart)
    assert [outcome.code for outcome in ended] == [4, 4], ended
    assert "model.n_embd was 16, is 32" in ended[0].output
    assert (workspace.path("foreign") / "journal.jsonl").read_bytes() == before
    ended = workspace.run("train", 2, "foreign", (), allow_one_restart)
    assert [outcome.code for outcome in ended] == [0, 0], ended
    history = read_history(workspace.path("foreign"))
    assert history.step == STEPS and load_recipe(workspace.path("foreign") / "recipe.toml").run.max_steps == STEPS
