"""A run trains, can be stopped anywhere, and resumes to the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regpt.base.errors import INTERRUPTED, TERMINATED, CheckpointError, DataError, LockedError, UserError
from regpt.distributed.signals import TIME_LIMIT, GracefulStop
from regpt.filesystem.locks import locked
from regpt.machine.cpu_attention import multiplies_bfloat16
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import to_toml
from regpt.tracking.events import Event, Started
from regpt.tracking.journal import RunState, read_history
from regpt.training.start import TrainResult, resume, start_training, train
from tests.conftest import tiny_recipe


def losses(run: Path) -> list[float]:
    return [step.loss for step in read_history(run).steps]


def tensors(run: Path, step: int, file: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:06d}" / f"{file}.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stop_before(monkeypatch: pytest.MonkeyPatch, check: int) -> None:
    """Send this process SIGINT just before check number `check` of the signals."""
    seen = 0
    real = GracefulStop.stop_reason

    def counted(self: GracefulStop) -> str:
        nonlocal seen
        seen += 1
        if seen == check:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)  # the handler runs in this thread between two bytecodes
        return real(self)

    monkeypatch.setattr(GracefulStop, "stop_reason", counted)


def test_run_learns_and_records_everything(tiny: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    assert train(tiny, run).history.status is RunState.FINISHED
    history = read_history(run)
    assert [step.step for step in history.steps] == [1, 2, 3, 4, 5, 6]
    assert [v.step for v in history.validations] == [0, 3, 6]
    assert [s.step for s in history.samples] == [3, 6]
    assert [c.step for c in history.checkpoints] == [3, 6]
    assert [e.event for e in history.events] == [Event.STARTED, Event.FINISHED]
    assert history.validations[-1].loss < history.validations[0].loss - 0.2
    assert history.steps[0].loss == pytest.approx(10.8, abs=0.3)
    assert all(len(sample.texts) == 2 and sample.texts[0].startswith(sample.prompt) for sample in history.samples)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["data"]["digest"] and environment["device"]["precision"] == "float32"


def test_two_runs_are_equal_to_the_bit(tiny: Recipe, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(tiny, tmp_path / name)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert same(tensors(tmp_path / "a", 6), tensors(tmp_path / "b", 6))


@pytest.mark.parametrize("check", [1, 4, 6, 9, 13, 26])
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, check: int
) -> None:
    """With dropout on; stops fall into evaluation, between micro-batches, and into sampling."""
    recipe = tiny_recipe(tmp_path, model={"dropout": 0.1})
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_before(patched, check)
        assert start_training(recipe, tmp_path / "stopped", handle_signals=True).exit_code == INTERRUPTED
    assert read_history(tmp_path / "stopped").events[-1].event is Event.STOPPED
    assert resume(tmp_path / "stopped").history.status is RunState.FINISHED
    whole, stopped = read_history(tmp_path / "whole"), read_history(tmp_path / "stopped")
    assert [(s.step, s.loss, s.gradient_norm, s.batch) for s in whole.steps] == [
        (s.step, s.loss, s.gradient_norm, s.batch) for s in stopped.steps
    ]
    assert [(v.step, v.loss) for v in whole.validations] == [(v.step, v.loss) for v in stopped.validations]
    assert [(s.step, s.texts) for s in whole.samples] == [(s.step, s.texts) for s in stopped.samples]
    for file in ("model", "optimizer"):
        assert same(tensors(tmp_path / "whole", 6, file), tensors(tmp_path / "stopped", 6, file))


@pytest.mark.parametrize("check", [7, 9, 10, 15])
def test_run_stopped_between_two_epochs_resumes_to_the_bit(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, check: int
) -> None:
    """Ten windows an epoch and four a step: the third step reads from two epochs."""
    tokens = prepare(tiny_recipe(tmp_path, data={"path": str(tmp_path / "all")})).statistics["tokens"]
    small = {"validation_tokens": tokens - 330, "shard_tokens": tokens}
    recipe = tiny_recipe(tmp_path, data=small, evaluation={"validation_every": 0, "sample_every": 0})
    train(recipe, tmp_path / "whole")
    environment = json.loads((tmp_path / "whole" / "environment.json").read_text())
    assert (environment["data"]["train_tokens"] - 1) // 32 == 10
    with monkeypatch.context() as patched:
        stop_before(patched, check)
        assert start_training(recipe, tmp_path / "stopped", handle_signals=True).exit_code == INTERRUPTED
    assert resume(tmp_path / "stopped").history.status is RunState.FINISHED
    whole, stopped = (read_history(tmp_path / name).steps for name in ("whole", "stopped"))
    assert [(s.loss, s.batch) for s in whole] == [(s.loss, s.batch) for s in stopped]
    assert same(tensors(tmp_path / "whole", 6), tensors(tmp_path / "stopped", 6))


def test_library_training_returns_the_run_prints_nothing_and_keeps_signal_handlers(
    tiny: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install, installed = signal.signal, []
    monkeypatch.setattr(signal, "signal", lambda *given: (installed.append(given), install(*given))[1])
    run = train(tiny, tmp_path / "a")
    assert run is not None and run.path == tmp_path / "a" and run.history.step == 6
    more = resume(run.path, ["run.max_steps=7"])
    assert more is not None and more.history.step == 7
    assert installed == []
    assert capfd.readouterr() == ("", "")


def test_journal_names_the_attention_backend(tmp_path: Path, texts: Path) -> None:
    """Flash attention, which PyTorch has for CPUs too, but not with dropout; blocks in bfloat16."""
    in_bfloat16 = "blocks" if multiplies_bfloat16() else "flash"
    cases = (("a", 0.0, "float32", "flash"), ("b", 0.1, "float32", "math"), ("c", 0.0, "bfloat16", in_bfloat16))
    for name, dropout, precision, expected in cases:
        recipe = tiny_recipe(tmp_path, run={"max_steps": 1, "precision": precision}, model={"dropout": dropout})
        start_training(recipe, tmp_path / name)
        (started,) = read_history(tmp_path / name).details(Started)
        assert started.attention == expected


def test_library_training_is_stopped_by_the_time_limit_and_by_nothing_else(tmp_path: Path, texts: Path) -> None:
    endless = {"max_steps": 100_000, "time_limit": "0:00:07"}
    result = start_training(tiny_recipe(tmp_path, run=endless), tmp_path / "a")
    assert (result.run_dir, result.stopped_by, result.exit_code) == (tmp_path / "a", TIME_LIMIT, TERMINATED)
    run = result.open()
    assert run is not None and run.history.step > 0


def test_train_result_opens_nothing_on_ranks_that_may_not_see_the_run(tmp_path: Path) -> None:
    assert TrainResult(tmp_path / "not there", is_main=False).open() is None


def test_planted_resume_without_moments_is_seen(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault for the test above."""
    train(tiny, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_before(patched, 9)
        start_training(tiny, tmp_path / "stopped", handle_signals=True)
        patched.setattr("regpt.parallel.model.load_moments", lambda *_: None)
        resume(tmp_path / "stopped")
    assert losses(tmp_path / "whole") != losses(tmp_path / "stopped")


def test_accumulation_changes_the_sum_by_rounding_only(tmp_path: Path, texts: Path) -> None:
    for name, micro_batch in (("a", 1), ("b", 4)):
        train(tiny_recipe(tmp_path, data={"micro_batch": micro_batch}), tmp_path / name)
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-5)
    assert [s.batch for s in read_history(tmp_path / "a").steps] == [
        s.batch for s in read_history(tmp_path / "b").steps
    ]


def test_validation_is_independent_of_micro_batch_and_training(tmp_path: Path, texts: Path) -> None:
    train(tiny_recipe(tmp_path, model={"dropout": 0.1}), tmp_path / "often")
    seldom = tiny_recipe(tmp_path, model={"dropout": 0.1}, evaluation={"validation_every": 0, "sample_every": 0})
    train(seldom, tmp_path / "seldom")
    assert losses(tmp_path / "often") == losses(tmp_path / "seldom")
    train(tiny_recipe(tmp_path, data={"micro_batch": 1}), tmp_path / "one")
    train(tiny_recipe(tmp_path, data={"micro_batch": 4}), tmp_path / "four")
    first, same_first = (read_history(tmp_path / name).validations[0].loss for name in ("one", "four"))
    assert first == pytest.approx(same_first, rel=1e-6)


def test_golden_losses(tiny: Recipe, tmp_path: Path) -> None:
    """Changes only when the model, the loss, the optimizer or the data order changes, and then with a note why.

    Argparse's source differs between Python versions, so the text is made here.
    """
    (tmp_path / "texts").joinpath("a.py").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / "texts" / name).unlink()
    train(tiny_recipe(tmp_path, data={"validation_tokens": 1000}), tmp_path / "a")
    assert losses(tmp_path / "a") == pytest.approx(GOLDEN, abs=2e-5)


GOLDEN = [10.87129, 10.715875, 10.425443, 10.187176, 9.956501, 9.804338]


def test_bfloat16_losses_are_close_to_float32(tmp_path: Path, texts: Path) -> None:
    recipe = tiny_recipe(tmp_path, run={"precision": "bfloat16", "max_steps": 3})
    train(recipe, tmp_path / "half")
    train(tiny_recipe(tmp_path, run={"max_steps": 3}), tmp_path / "full")
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "full"), rel=5e-3)


def test_existing_run_is_refused_and_not_changed(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny, tmp_path / "a")
    before = (tmp_path / "a" / "journal.jsonl").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        train(tiny, tmp_path / "a")
    assert (tmp_path / "a" / "journal.jsonl").read_bytes() == before


def test_finished_run_is_not_trained_further(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny, tmp_path / "a")
    before = (tmp_path / "a" / "journal.jsonl").read_bytes()
    assert resume(tmp_path / "a").history.status is RunState.FINISHED
    assert (tmp_path / "a" / "journal.jsonl").read_bytes() == before


def test_data_smaller_than_a_batch_is_refused_first(tmp_path: Path, texts: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="a batch takes"):
        train(tiny_recipe(tmp_path, data={"total_batch_tokens": 2_097_152}), tmp_path / "a")
    assert sorted(tmp_path.iterdir()) == before


def test_resume_refuses_another_recipe(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_before(monkeypatch, 9)
    start_training(tiny, tmp_path / "a", handle_signals=True)
    other = tiny_recipe(tmp_path, run={"seed": 5})
    (tmp_path / "a" / "recipe.toml").write_text(to_toml(other))
    with pytest.raises(CheckpointError, match="another recipe"):
        resume(tmp_path / "a")


def test_run_directory_has_one_writer(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny, tmp_path / "a")
    with locked(tmp_path / "a" / "lock"), pytest.raises(LockedError, match="is being written"):
        resume(tmp_path / "a")


def test_resume_repeats_evaluations_after_its_checkpoint(tiny: Recipe, tmp_path: Path) -> None:
    """Killed after the evaluations of step 6 but before its checkpoint, the run resumes from step 3."""
    train(tiny, tmp_path / "whole")
    train(tiny, tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step_000006")
    journal = tmp_path / "killed" / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-2]))  # no checkpoint, no end
    assert resume(tmp_path / "killed").history.status is RunState.FINISHED
    whole, killed = read_history(tmp_path / "whole"), read_history(tmp_path / "killed")
    assert [(v.step, v.loss) for v in whole.validations] == [(v.step, v.loss) for v in killed.validations]
    assert [s.texts for s in whole.samples] == [s.texts for s in killed.samples]
    assert [s.loss for s in whole.steps] == [s.loss for s in killed.steps]


def test_damaged_last_checkpoint_is_written_again(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny, tmp_path / "a")
    path = tmp_path / "a" / "checkpoints" / "step_000006" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert resume(tmp_path / "a").history.status is RunState.FINISHED
    assert path.read_bytes() == whole


def test_data_may_move_before_a_resume_but_not_change(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_before(patched, 9)
        start_training(tiny, tmp_path / "a", handle_signals=True)
    (tmp_path / "data").rename(tmp_path / "moved")
    prepare(tiny_recipe(tmp_path, data={"validation_tokens": 5_000}))
    with pytest.raises(CheckpointError, match="another data"):
        resume(tmp_path / "a")
    assert resume(tmp_path / "a", [f"data.path={tmp_path / 'moved'}"]).history.status is RunState.FINISHED


def test_data_made_from_other_text_is_refused(tiny: Recipe, tmp_path: Path) -> None:
    prepare(tiny)
    other = tiny_recipe(tmp_path, data={"source": str(tmp_path / "texts" / "a.jsonl")})
    with pytest.raises(UserError, match=f"data.source = '{tiny.data.source}'.*data.source = '{other.data.source}'"):
        train(other, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_recipe_without_samples_draws_none(tmp_path: Path, texts: Path) -> None:
    assert (
        train(tiny_recipe(tmp_path, evaluation={"sample_count": 0}), tmp_path / "a").history.status is RunState.FINISHED
    )
    assert read_history(tmp_path / "a").samples == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
def test_sigterm_saves_and_exits_with_143(tmp_path: Path, texts: Path) -> None:
    """The real program in a process of its own."""
    recipe = tiny_recipe(tmp_path, run={"max_steps": 100_000}, evaluation={"validation_every": 0, "sample_every": 0})
    (tmp_path / "long.toml").write_text(to_toml(recipe))
    process = subprocess.Popen(
        [sys.executable, "-m", "regpt", "train", "long.toml"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    run = tmp_path / "runs" / "long"
    while read_history(run).step < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "regpt resume runs/long" in output.splitlines()[-1]
    history = read_history(run)
    assert history.checkpoints[-1].step == history.step
