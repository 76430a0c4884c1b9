"""A run with Muon stops, resumes, rolls back, retries and is reproduced to the bit, as one with AdamW."""

from pathlib import Path

import pytest
import torch

from regpt.base.errors import INTERRUPTED
from regpt.tracking.events import OutOfMemory, Rollback
from regpt.tracking.journal import RunState, read_history
from regpt.training.reproduce import reproduce
from regpt.training.start import resume, start_training, train
from tests.conftest import tiny_recipe
from tests.training.test_guard import poison
from tests.training.test_oom import room_for
from tests.training.test_trainer import losses, same, stop_before, tensors

QUIET = {"validation_every": 0, "sample_every": 0}
MUON: dict[str, object] = {
    "kind": "muon",
    "normuon": True,
    "muon_weight_decay": 0.1,
    "cautious_weight_decay": True,
    "weight_decay_schedule": "lr",
    "muon_momentum_warmup_steps": 4,
    "embedding_lr": 0.02,
    "vector_lr": 0.005,
    "max_lr": 1e-2,
    "min_lr": 1e-3,
    "warmup_steps": 2,
}
SWITCHES: list[dict[str, object]] = [
    {"kind": "muon"},
    {"kind": "muon", "normuon": True},
    {"kind": "muon", "muon_scale": "match_rms_adamw", "muon_lr": 1e-3},
    {"kind": "adamw", "vector_lr": 0.02},
    {"kind": "adamw", "cautious_weight_decay": True},
    {"kind": "adamw", "weight_decay_schedule": "lr"},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [MUON, *(pytest.param(switch, marks=pytest.mark.nightly) for switch in SWITCHES)], ids=str
)
def test_stopped_and_resumed_run_with_muon_equals_an_uninterrupted_one(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    recipe = tiny_recipe(tmp_path, optimizer=settings, evaluation=QUIET)
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_before(patched, 9)
        assert start_training(recipe, tmp_path / "stopped", handle_signals=True).exit_code == INTERRUPTED
    assert 0 < read_history(tmp_path / "stopped").step < 6
    assert resume(tmp_path / "stopped").history.status is RunState.FINISHED
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0] - 0.1
    for file in ("model", "optimizer"):
        assert same(tensors(tmp_path / "whole", 6, file), tensors(tmp_path / "stopped", 6, file))


@pytest.mark.slow
def test_rollback_to_different_checkpoints_gives_the_same_run(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {4, 5, 6, 7}, "gradient", float("nan"))
    for name, every in (("start", 0), ("third", 3), ("fourth", 1)):
        run = {"max_steps": 8}
        recipe = tiny_recipe(tmp_path, run=run, optimizer=MUON, evaluation=QUIET, checkpoint={"every": every})
        train(recipe, tmp_path / name)
        assert [event.from_step for event in read_history(tmp_path / name).details(Rollback)] == [7]
    for name in ("third", "fourth"):
        assert losses(tmp_path / "start") == losses(tmp_path / name)
        assert same(tensors(tmp_path / "start", 8, "optimizer"), tensors(tmp_path / name, 8, "optimizer"))


@pytest.mark.slow
def test_retry_after_memory_ran_out_begins_with_empty_moments_and_is_reproduced(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, micro_batch in (("small", 2), ("halved", 4)):
        if name == "halved":
            room_for(monkeypatch, 2, from_pass=3)
        recipe = tiny_recipe(tmp_path, data={"micro_batch": micro_batch}, optimizer=MUON, evaluation=QUIET)
        train(recipe, tmp_path / name)
    assert len(read_history(tmp_path / "halved").details(OutOfMemory)) == 1
    assert losses(tmp_path / "small") == losses(tmp_path / "halved")
    lines: list[str] = []
    assert reproduce(tmp_path / "halved", 3, lines.append) is None and len(lines) == 3


@pytest.mark.compile
@pytest.mark.nightly
def test_compiled_run_with_muon_has_the_losses_of_an_eager_one(tmp_path: Path, texts: Path) -> None:
    for compiled in ("off", "on"):
        torch._dynamo.reset()
        recipe = tiny_recipe(tmp_path, run={"compile": compiled}, optimizer=MUON, evaluation=QUIET)
        train(recipe, tmp_path / compiled)
    assert losses(tmp_path / "on") == pytest.approx(losses(tmp_path / "off"), rel=1e-5)
