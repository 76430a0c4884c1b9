"""`regpt checkpoints --prune`: what is kept, what is removed, and what is refused."""

import math
import shutil
from pathlib import Path

import pytest

from regpt.base.errors import CHECKPOINT, DONE, LOCKED, USAGE
from regpt.checkpoint import store
from regpt.checkpoint.retention import best_step, kept_steps
from regpt.cli.main import main
from regpt.filesystem.locks import locked
from regpt.recipe.sections import CheckpointRecipe
from regpt.tracking.layout import RunPaths
from regpt.training.start import resume, train
from tests.conftest import tiny_recipe

STEPS = [2, 4, 6, 8, 10]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """A run with five checkpoints; the last one has the lowest validation loss."""
    folder = tmp_path_factory.mktemp("pruning")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(real_text, encoding="utf-8")
    evaluation: dict[str, object] = {"validation_every": 5, "validation_batches": 1, "sample_count": 0}
    recipe = tiny_recipe(folder, run={"max_steps": 10}, checkpoint={"every": 2}, evaluation=evaluation)
    train(recipe, folder / "runs" / "a")
    return folder / "runs" / "a"


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run in runs/a."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "runs" / "a"))


def saved(run: Path) -> list[int]:
    return [step for step, _ in store.list_checkpoints(run)]


def damage(run: Path, step: int) -> None:
    file = RunPaths(run).checkpoint(step) / "state.json"
    file.write_text(file.read_text() + " ")


def test_prune_shows_first_and_removes_only_with_yes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["checkpoints", "a", "--prune", "--keep-last", "1", "--keep-every", "4"]
    assert main(words) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:5]] == ["remove", "keep", "remove", "keep", "keep"]
    assert "2 of 5" in lines[5] and "--yes" in lines[5]
    assert saved(run) == STEPS
    assert main([*words, "--yes"]) == DONE
    assert saved(run) == [4, 8, 10]
    assert main([*words, "--yes"]) == DONE  # nothing is left to remove
    assert saved(run) == [4, 8, 10]
    assert resume(run, ["run.max_steps=11"]).history.step == 11


def test_prune_keeps_the_newest_intact_one_and_the_only_one(run: Path) -> None:
    for step in (8, 10):
        damage(run, step)
    assert main(["checkpoints", "a", "--prune", "--drop-best", "--yes"]) == DONE
    assert saved(run) == [6, 10]
    store.remove(RunPaths(run).checkpoint(10))
    assert main(["checkpoints", "a", "--prune", "--drop-best", "--yes"]) == DONE
    assert saved(run) == [6]


def test_prune_removes_nothing_where_none_is_intact(run: Path) -> None:
    for step in STEPS:
        damage(run, step)
    assert main(["checkpoints", "a", "--prune", "--yes"]) == CHECKPOINT
    assert saved(run) == STEPS


def test_prune_refuses_a_run_that_is_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(RunPaths(run).lock):
        for more in ([], ["--yes"]):
            assert main(["checkpoints", "a", "--prune", *more]) == LOCKED
            assert "runs/a" in capsys.readouterr().err
    assert saved(run) == STEPS


def test_options_of_prune_need_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--yes"], ["--keep-last", "2"], ["--keep-every", "5"], ["--drop-best"]):
        assert main(["checkpoints", run.name, *option]) == USAGE
        assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"keep_last": 2, "keep_best": False}, {8, 10}),
        ({"keep_last": 1, "keep_best": True}, {4, 10}),
        ({"keep_last": 1, "keep_every": 6, "keep_best": False}, {6, 10}),
        ({"keep_last": 9}, set(STEPS)),
        ({"keep_last": 0}, set(STEPS)),
    ],
)
def test_kept_steps_are_the_last_the_multiples_and_the_best(asked: dict[str, int], kept: set[int]) -> None:
    losses = {2: math.nan, 3: 0.5, 4: 2.0, 6: 3.0}  # step 3 has no checkpoint
    assert kept_steps(STEPS, CheckpointRecipe(**asked), losses) == kept


def test_best_step_is_a_validated_one_with_a_finite_loss() -> None:
    assert best_step(STEPS, {2: math.nan, 4: math.inf}) is None
    assert best_step(STEPS, {2: math.nan, 8: 3.0, 10: 2.0}) == 10
    assert best_step([], {2: 1.0}) is None
