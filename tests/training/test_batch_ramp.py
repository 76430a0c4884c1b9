"""A run whose steps grow: its tokens, a stop and a resume, a rollback, and everything that reads its journal."""

import shutil
from pathlib import Path

import pytest

from regpt.base.errors import DONE
from regpt.cli.main import main
from regpt.console.training import Console
from regpt.recipe.recipe import Recipe
from regpt.stats.throughput import throughput_of
from regpt.tracking.events import Rollback
from regpt.tracking.journal import read_history
from regpt.tracking.layout import RunPaths
from regpt.tracking.run import open_run
from regpt.tracking.status import RunMonitor
from regpt.training.start import resume, train
from tests.conftest import tiny_recipe, write_texts
from tests.helpers.parallel_runs import same_tensors
from tests.training.test_guard import poison

RAMP = "64 until 128, 128 until 384"  # two steps of 64 tokens, two of 128, then 256
TOKENS = [64, 128, 256, 384, 640, 896, 1152]


def growing(folder: Path, steps: int = 7, **sections: dict[str, object]) -> Recipe:
    return tiny_recipe(
        folder,
        run={"max_steps": steps},
        data={"batch_ramp": RAMP, "total_batch_tokens": 256, "micro_batch": 2, "validation_tokens": 4_000},
        optimizer={"schedule": "trapezoid", "max_lr": 1e-2, "warmup_steps": 1},
        evaluation={"sample_count": 0, "validation_every": 3},
        **sections,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """Run straight, and run stopped, which ended after three steps and was resumed."""
    folder = tmp_path_factory.mktemp("growing")
    write_texts(folder / "texts", real_text)
    train(growing(folder), folder / "runs" / "straight")
    train(growing(folder, 3), folder / "runs" / "stopped")
    resume(folder / "runs" / "stopped", ["run.max_steps=7"])
    return folder


def test_resumed_run_with_a_ramp_equals_an_undisturbed_one(folder: Path) -> None:
    straight, stopped = (read_history(folder / "runs" / name) for name in ("straight", "stopped"))
    assert [step.tokens for step in straight.steps] == TOKENS
    assert [(s.loss, s.tokens, s.batch) for s in stopped.steps] == [(s.loss, s.tokens, s.batch) for s in straight.steps]
    assert [v.tokens for v in straight.validations] == [0, 256, 896, 1152]
    assert same_tensors(*(RunPaths(folder / "runs" / name).checkpoint(7) for name in ("straight", "stopped")))


def test_speeds_and_tokens_of_a_ramp_count_the_tokens_of_each_step(folder: Path) -> None:
    run, status = open_run(folder / "runs" / "straight"), RunMonitor(folder / "runs" / "straight").update()
    sizes = [64, 64, 128, 128, 256, 256, 256]
    speeds = [size / step.seconds for size, step in zip(sizes, run.history.steps, strict=True)]
    assert run.tokens == status.tokens == TOKENS[-1] and run.speeds == speeds
    assert sorted(speeds)[3] == pytest.approx(run.tokens_per_second) == pytest.approx(status.tokens_per_second)
    assert (measured := throughput_of(run)) is None or measured.steps == 7
    assert status.seconds_left is not None and status.recipe.full_steps_left(2) == 4.0


def test_batches_of_a_ramp_are_replayed_and_reproduced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, windows in ((1, 2), (3, 4), (7, 8)):
        assert main(["replay", str(folder / "runs" / "straight"), "--step", str(step)]) == DONE
        assert f" {windows} windows" in capsys.readouterr().out
    assert main(["reproduce", str(folder / "runs" / "stopped"), "--steps", "7"]) == DONE


def test_report_and_plan_name_the_ramp(
    folder: Path, tmp_path: Path, undrawn_figures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folder / "runs" / "straight", tmp_path / "straight")
    assert main(["report", str(run)]) == DONE
    assert f"| Batch Size Ramp | {RAMP} tokens |" in (run / "report.md").read_text()
    assert main(["plan", str(run / "recipe.toml"), "--gpu", "H100"]) == DONE
    assert f"{RAMP}, then 256 tokens a step" in capsys.readouterr().out


def test_rollback_on_a_ramp_drops_its_batches_and_keeps_the_tokens(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batch 3, of 128 tokens, is dropped. Step 3 has 128 tokens too, the first half of batch 4."""
    poison(monkeypatch, {3}, "loss", float("nan"))
    train(growing(folder, guard={"max_skips": 0}), tmp_path / "a", console=Console())
    monkeypatch.undo()
    history = read_history(tmp_path / "a")
    assert [rollback.excluded_batches for rollback in history.details(Rollback)] == [[3]]
    assert [step.tokens for step in history.steps] == TOKENS
    assert [s.batch for s in history.steps[:3]] == [
        s.batch for s in read_history(folder / "runs" / "straight").steps[:3]
    ]
    for step in range(1, 8):
        assert main(["replay", str(tmp_path / "a"), "--step", str(step)]) == DONE
