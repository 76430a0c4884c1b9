"""What a resume finds, refuses, allows and writes down; what a stop and a lack of space leave behind."""

import errno
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from regpt.base import files
from regpt.base.errors import TERMINATED, CheckpointError, UserError
from regpt.checkpoint import retention, store
from regpt.checkpoint.snapshot import Snapshot
from regpt.cli.main import main
from regpt.console.training import Console
from regpt.distributed.signals import GracefulStop
from regpt.evaluation.validation import Validation
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import as_tables, load_recipe
from regpt.tracking.events import Event, Resumed, Stopped
from regpt.tracking.journal import Journal, RunState, read_history
from regpt.tracking.layout import RunPaths
from regpt.tracking.trackers import TRACKERS, TensorBoard
from regpt.training import checkpointing, periodic_eval
from regpt.training.start import resume, start_training, train
from regpt.training.trainer import Trainer
from tests.conftest import tiny_recipe
from tests.helpers import strange_disks


def losses(run: Path) -> list[float]:
    return [step.loss for step in read_history(run).steps]


def steps_saved(run: Path) -> list[int]:
    return [step for step, _ in store.list_checkpoints(run)]


@pytest.fixture
def twelve(tmp_path: Path, texts: Path) -> Recipe:
    return tiny_recipe(tmp_path, run={"max_steps": 12}, checkpoint={"every": 2}, evaluation={"sample_every": 0})


# Changes


def test_resume_may_change_steps_and_evaluations_and_records_it(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny, tmp_path / "a")
    assert (
        resume(tmp_path / "a", ["run.max_steps=9", "evaluation.validation_every=1"]).history.status is RunState.FINISHED
    )
    history = read_history(tmp_path / "a")
    assert [step.step for step in history.steps] == list(range(1, 10))
    assert [v.step for v in history.validations] == [0, 3, 6, 7, 8, 9]
    changed = history.details(Resumed)[0].changed
    assert changed == {"run.max_steps": [6, 9], "evaluation.validation_every": [3, 1]}
    assert load_recipe(tmp_path / "a" / "recipe.toml").run.max_steps == 9
    assert history.attempts == 2


@pytest.mark.parametrize(
    "setting",
    ["model.n_embd=32", "run.seed=5", "data.total_batch_tokens=256", "optimizer.max_lr=0.5", "data.order=sequential"],
)
def test_resume_refuses_other_settings_with_both_values(
    tiny: Recipe, tmp_path: Path, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny, tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert main(["resume", str(tmp_path / "a"), "run.max_steps=9", setting]) == 4
    name, value = setting.split("=")
    section, key = name.split(".")
    err = capsys.readouterr().err
    assert f"{name} was {as_tables(tiny)[section][key]}, is {value}" in err and len(err.strip().splitlines()) == 1
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}


def test_resume_refuses_fewer_steps_than_done(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"has 6 steps, more than run\.max_steps = 4"):
        resume(tmp_path / "a", ["run.max_steps=4"])


# Checkpoints: retention, damage, background writing


def test_retention_keeps_newest_multiples_and_best(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = {"every": 1, "keep_last": 2, "keep_every": 5, "keep_best": True}
    recipe = tiny_recipe(
        tmp_path,
        run={"max_steps": 12},
        checkpoint=keep,
        evaluation={"validation_every": 3, "sample_every": 0},
    )
    found = iter([9.0, 8.0, 6.0, 7.0, 7.5])
    monkeypatch.setattr(periodic_eval, "validation", lambda *_, **__: Validation(next(found), 0.1, 1.0, 8, np.zeros(8)))
    train(recipe, tmp_path / "a")
    assert steps_saved(tmp_path / "a") == [5, 6, 10, 11, 12]
    assert [path.name for path in (tmp_path / "a" / "checkpoints").glob(".*")] == []


def test_retention_removes_nothing_while_the_newest_is_damaged(twelve: Recipe, tmp_path: Path) -> None:
    train(twelve, tmp_path / "a")
    newest = RunPaths(tmp_path / "a").checkpoint(12) / "state.json"
    newest.write_text(newest.read_text() + " ")
    keep = tiny_recipe(tmp_path, checkpoint={"keep_last": 1}).checkpoint
    assert retention.prune(tmp_path / "a", keep, {}) == []
    assert steps_saved(tmp_path / "a") == [2, 4, 6, 8, 10, 12]


def test_damaged_newest_checkpoint_is_skipped_and_named(
    twelve: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(twelve, tmp_path / "whole")
    train(tiny_recipe(tmp_path, run={"max_steps": 12}, checkpoint={"every": 2}), tmp_path / "a")
    for step in (10, 12):
        path = RunPaths(tmp_path / "a").checkpoint(step) / "optimizer.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    capsys.readouterr()
    assert resume(tmp_path / "a", console=Console()).history.status is RunState.FINISHED
    out = capsys.readouterr().out
    assert "step_000012" in out and "step_000010" in out and "step_000008" in out
    assert losses(tmp_path / "a") == losses(tmp_path / "whole")
    assert len(read_history(tmp_path / "a").details(Resumed)[-1].skipped_checkpoints) == 2


def test_checkpoint_has_the_weights_of_the_moment_it_was_started(
    twelve: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write waits until three more steps are done; the file holds what was when it began."""
    go_on = threading.Event()
    write = store.write

    def slow(run: Path, taken: Snapshot, *how: Any, **else_: Any) -> store.SavedCheckpoint:
        if run.name == "a" and taken.step == 2:
            assert go_on.wait(20)
        return write(run, taken, *how, **else_)

    train(twelve, tmp_path / "whole")
    monkeypatch.setattr(store, "write", slow)
    real = Trainer.train_step

    def train_step(self: Trainer, step: int, batch):  # type: ignore[no-untyped-def]
        record = real(self, step, batch)
        if step == 2:
            go_on.set()
        return record

    monkeypatch.setattr(Trainer, "train_step", train_step)
    train(twelve, tmp_path / "a")
    one, other = (load_file(RunPaths(tmp_path / n).checkpoint(2) / "model.safetensors") for n in ("whole", "a"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("number", "names_free_bytes"), [(errno.ENOSPC, True), (errno.EDQUOT, False)])
def test_failed_checkpoint_is_recorded_and_training_continues(
    twelve: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    names_free_bytes: bool,
) -> None:
    """A quota that is used up says nothing about the free bytes of the disk."""
    write_tensors = store.write_tensors

    def full(path: Path, *what: Any) -> dict[str, int | str]:
        if "step_000004" in str(path):
            raise OSError(number, os.strerror(number))
        return write_tensors(path, *what)

    monkeypatch.setattr(store, "write_tensors", full)
    assert train(twelve, tmp_path / "a", console=Console()).history.status is RunState.FINISHED
    assert steps_saved(tmp_path / "a") == [2, 6, 8, 10, 12]
    out = " ".join(capsys.readouterr().out.split())
    assert "step_000004" in out and os.strerror(number) in out
    assert ("bytes are free" in out) is names_free_bytes
    assert Event.CHECKPOINT_FAILED in [event.event for event in read_history(tmp_path / "a").events]


def test_failed_last_checkpoint_ends_with_code_4(
    twelve: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        store,
        "check_space",
        lambda path, size, real=store.check_space: real(path, size if "12" not in path.name else 1 << 60),
    )
    with pytest.raises(CheckpointError, match=r"step_000012: needs [\d,]+ bytes, [\d,]+ are free") as caught:
        train(twelve, tmp_path / "a")
    assert caught.value.code == 4
    assert store.newest_valid(tmp_path / "a").name == "step_000010"
    assert [path.name for path in (tmp_path / "a" / "checkpoints").glob(".*")] == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes to set")
def test_partial_checkpoint_is_removed_when_a_file_cannot_grow(twelve: Recipe, tmp_path: Path) -> None:
    import resource

    train(tiny_recipe(tmp_path, run={"max_steps": 2}, checkpoint={"every": 2}), tmp_path / "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            resume(tmp_path / "a", ["run.max_steps=4"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert steps_saved(tmp_path / "a") == [2]
    assert next(store.find_faults(RunPaths(tmp_path / "a").checkpoint(2)), None) is None
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["step_000002"]


def test_checkpoint_is_flushed_to_disk_before_it_is_renamed(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    flush, rename = files.flush_file, Path.rename
    monkeypatch.setattr(files, "flush_file", lambda path: (order.append(f"flush {path.name}"), flush(path)))

    def renamed(self: Path, target: Path) -> Path:
        if self.name.startswith(".step_"):
            order.append("rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    train(tiny_recipe(tmp_path, run={"max_steps": 1}), tmp_path / "a")
    assert order[-1] == "rename"
    assert {"flush model.safetensors", "flush optimizer.safetensors", "flush state.json", "flush manifest.json"} <= set(
        order
    )


def test_newest_checkpoint_is_the_highest_step_for_any_clock(
    twelve: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(2_000_000_000, 0, -1_000_000))
    monkeypatch.setattr("time.time", lambda: float(next(now)))
    train(twelve, tmp_path / "a")
    for place, (_, path) in enumerate(store.list_checkpoints(tmp_path / "a")):
        os.utime(path, (10**9 - place, 10**9 - place))
    assert store.newest_valid(tmp_path / "a").name == "step_000012"
    assert all(step.seconds > 0 for step in read_history(tmp_path / "a").steps)


# Signals and time


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGUSR1")
def test_sigusr1_saves_a_checkpoint_and_stops(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = GracefulStop.stop_reason, 0

    def counted(self: GracefulStop) -> str:
        nonlocal seen
        seen += 1
        if seen == 9:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(self)

    monkeypatch.setattr(GracefulStop, "stop_reason", counted)
    assert start_training(tiny, tmp_path / "a", handle_signals=True).exit_code == TERMINATED
    assert read_history(tmp_path / "a").details(Stopped)[-1].signal == "SIGUSR1"
    assert steps_saved(tmp_path / "a") == [read_history(tmp_path / "a").step]


def test_time_limit_leaves_time_for_the_last_checkpoint(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "SAVING_RESERVE_SECONDS", 0.1)
    recipe = tiny_recipe(tmp_path, run={"max_steps": 100_000, "time_limit": "0:00:03"}, checkpoint={"every": 5})
    assert start_training(recipe, tmp_path / "a", handle_signals=True).exit_code == TERMINATED
    history = read_history(tmp_path / "a")
    assert history.details(Stopped)[-1].signal == "run.time_limit" and history.step > 0
    assert steps_saved(tmp_path / "a")[-1] == history.step


def test_time_is_reserved_before_the_first_checkpoint(tmp_path: Path, texts: Path) -> None:
    """For two checkpoints of 12 bytes a parameter at 200 MB/s, and five seconds; two steps more after the second."""
    recipe = tiny_recipe(tmp_path, run={"time_limit": "1:00:00"}, checkpoint={"every": 100})
    reserves, slowest = [], []

    def reserve_time(self: checkpointing.Checkpointing) -> None:
        original(self)
        reserves.append(self.stopping.reserve)
        slowest.append(self.state.slowest_step_seconds)

    with pytest.MonkeyPatch.context() as patch:
        original = checkpointing.Checkpointing.reserve_time
        patch.setattr(checkpointing.Checkpointing, "reserve_time", reserve_time)
        start_training(recipe, tmp_path / "a")
    saving = 12 * recipe.model.parameters / 200e6
    assert slowest[0] == 0 and reserves[0] == pytest.approx(5 + 2 * saving)  # the first step may compile
    assert slowest[1] > 0 and reserves[1] == pytest.approx(5 + 2 * saving + 2 * slowest[1])


def test_short_time_limit_leaves_half_of_it_for_training() -> None:
    stopping = GracefulStop(time_limit=100.0)
    stopping.reserve = 1000.0
    assert stopping.stop_reason() == ""
    stopping.ends_at -= 50.1
    assert stopping.stop_reason() == "run.time_limit"


# The journal and the sinks


def test_journal_loses_nothing_while_it_cannot_be_written(
    twelve: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(twelve, tmp_path / "whole")
    append = files.append_line
    calls = 0

    def sometimes(path: Path, line: str) -> None:
        nonlocal calls
        calls += 1
        if path.parent.name == "a" and 8 <= calls <= 14:
            if calls == 8:
                with path.open("ab") as file:
                    file.write(line[:20].encode())  # a part of it was written
            raise OSError(28, "No space left on device")
        append(path, line)

    calls = 0
    monkeypatch.setattr("regpt.tracking.journal.append_line", sometimes)
    capsys.readouterr()
    assert train(twelve, tmp_path / "a", console=Console()).history.status is RunState.FINISHED
    assert losses(tmp_path / "a") == losses(tmp_path / "whole")
    assert [s.step for s in read_history(tmp_path / "a").steps] == list(range(1, 13))
    assert capsys.readouterr().out.count("cannot be written") == 1


class Failing:
    def __init__(self, run: Path, settings: dict[str, object], resumed_at: int | None) -> None:
        self.left = 3

    def log(self, figures: dict[str, float], step: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise ConnectionError("the server has gone")

    def went_back(self, step: int) -> None:
        pass

    def close(self) -> None:
        raise AssertionError("it was let go")


def test_failing_tracker_is_dropped_with_one_note(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe(tmp_path), tmp_path / "whole")
    monkeypatch.setitem(TRACKERS, "wandb", ("regpt", Failing))
    capsys.readouterr()
    train(tiny_recipe(tmp_path, run={"sinks": "wandb, tensorboard"}), tmp_path / "a", console=Console())
    assert capsys.readouterr().out.count("the sink 'wandb' failed and is let go") == 1
    assert losses(tmp_path / "a") == losses(tmp_path / "whole")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses(tmp_path / "a"))
    assert TRACKERS["tensorboard"][1] is TensorBoard


def test_tracker_that_is_not_installed_is_refused_before_the_run(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TRACKERS, "trackio", ("no_such_package", Failing))
    from regpt.recipe.settings import to_toml

    (tmp_path / "x.toml").write_text(to_toml(tiny_recipe(tmp_path, run={"sinks": "trackio"})))
    assert main(["train", str(tmp_path / "x.toml"), "--runs", str(tmp_path / "runs")]) == 2
    assert "pip install 'regpt[trackio]'" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "x").exists()


# Again


def test_replay_shows_the_batch_and_refuses_another_one(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny, tmp_path / "a")
    assert main(["replay", str(tmp_path / "a"), "--step", "4"]) == 0
    out = capsys.readouterr().out
    logged = read_history(tmp_path / "a").steps[3]
    assert logged.batch in out and out.count("\nwindow ") == 4 and "continued, tokens" in out
    (tmp_path / "data" / "train_000000.npy").write_bytes((tmp_path / "data" / "train_000001.npy").read_bytes())
    codes = [main(["replay", str(tmp_path / "a"), "--step", str(step)]) for step in range(1, 7)]
    assert 3 in codes and "the journal" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "a"), "--step", "7"]) == 2


def test_reproduce_is_identical_or_names_the_first_difference(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny, tmp_path / "a")
    resume(tmp_path / "a", ["run.max_steps=8"])
    assert main(["reproduce", str(tmp_path / "a"), "--steps", "6"]) == 0
    assert "identical to the bit" in capsys.readouterr().out
    journal = Journal(tmp_path / "a").path
    third = read_history(tmp_path / "a").steps[2]
    journal.write_text(journal.read_text().replace(f'"loss": {third.loss}', f'"loss": {third.loss + 1e-6}', 1))
    assert main(["reproduce", str(tmp_path / "a")]) == 5
    assert "step 3: loss" in capsys.readouterr().out


def test_planted_data_position_off_by_one_is_seen(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: after a resume, every step reads the batch of the next."""
    train(tiny, tmp_path / "whole")
    train(tiny_recipe(tmp_path, run={"max_steps": 3}), tmp_path / "a")
    monkeypatch.setattr("regpt.training.guard.Guard.batch_of", lambda self, step: step + 1)
    resume(tmp_path / "a", ["run.max_steps=6"])
    whole, off = (read_history(tmp_path / name).steps[3].batch for name in ("whole", "a"))
    assert whole != off


def test_planted_missing_hash_check_is_seen(twelve: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: a flipped bit is loaded in silence, and the losses differ."""
    train(twelve, tmp_path / "whole")
    first = tiny_recipe(tmp_path, run={"max_steps": 12}, checkpoint={"every": 2}, evaluation={"sample_every": 0})
    train(first, tmp_path / "a")
    for step in (10, 12):
        shutil.rmtree(RunPaths(tmp_path / "a").checkpoint(step))
    path = RunPaths(tmp_path / "a").checkpoint(8) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 8 * 4 + 3] ^= 64  # of an exponent
    path.write_bytes(bytes(content))
    monkeypatch.setattr(store, "find_faults", lambda path: iter(()))
    resume(tmp_path / "a")
    assert losses(tmp_path / "a") != losses(tmp_path / "whole")


# Shares and buckets


@pytest.mark.slow
def test_run_on_a_share_without_locks_and_folder_flush_trains_and_resumes(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tmp_path, run={"max_steps": 2}, evaluation={"sample_count": 0, "validation_every": 0})
    expected = [step.loss for step in train(recipe, tmp_path / "local").history.steps]
    strange_disks.without_locks(monkeypatch, errno.ENOLCK)
    strange_disks.without_folder_flush(monkeypatch)
    train(recipe, tmp_path / "share", console=Console())
    assert losses(tmp_path / "share") == expected
    assert "lock.marker is the lock" in "".join(capsys.readouterr().out.split("\n"))
    resume(tmp_path / "share", ["run.max_steps=3"])
    assert steps_saved(tmp_path / "share") == [2, 3]
    assert not (tmp_path / "share" / "lock.marker").exists()


def test_run_on_a_bucket_without_folder_renames_is_refused_before_anything_is_written(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())
    strange_disks.without_folder_rename(monkeypatch)
    with pytest.raises(UserError, match="cannot rename a folder") as caught:
        train(tiny, tmp_path / "a")
    assert "--runs" in caught.value.fix
    assert sorted(tmp_path.iterdir()) == before
