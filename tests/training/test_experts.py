"""A mixture of experts trains, resumes, evaluates and samples like a dense model; its balance follows the load."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regpt.data.batches import Batch
from regpt.export.directory import export
from regpt.interop.open_model import load_model
from regpt.interop.pretrained import load_pretrained
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe
from regpt.tracking.events import Rollback
from regpt.tracking.journal import History, RunState, SkippedRecord, StepRecord, read_history
from regpt.tracking.layout import RunPaths
from regpt.training.guard import Guard
from regpt.training.reproduce import reproduce
from regpt.training.start import resume, start_training, train
from regpt.training.trainer import Trainer
from tests.conftest import tiny_recipe, write_texts

EXPERTS = {"experts": 4, "mlp_hidden": 20, "expert_balance_rate": 0.01}  # as much per token as the dense tiny recipe
WITHOUT_EVALUATIONS = {"validation_every": 0, "sample_every": 0}


def mixture_recipe(folder: Path, **sections: dict[str, object]) -> Recipe:
    return tiny_recipe(folder, **{"model": EXPERTS, **sections})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """Return a run with experts of six steps, with a validation and a checkpoint after each."""
    folder = tmp_path_factory.mktemp("experts")
    write_texts(folder / "texts", real_text)
    evaluation = {"validation_every": 1, "sample_every": 6}
    return train(mixture_recipe(folder, evaluation=evaluation, checkpoint={"every": 1}), folder / "whole").path


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(RunPaths(run).checkpoint(step) / "model.safetensors")


def balance_of(run: Path, step: int) -> torch.Tensor:
    """Return the balance of every layer.  (layers, experts)"""
    return torch.stack([tensor for name, tensor in weights(run, step).items() if name.endswith(".balance")])


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Stop a run after a number of steps, as a signal would."""
    advance = Trainer.advance

    def stopping(self: Trainer, step: int, batches: object) -> int:
        done = advance(self, step, batches)  # type: ignore[arg-type]
        if done == steps:
            self.stopping.stop_reason = lambda: "SIGTERM"  # type: ignore[method-assign]
        return done

    monkeypatch.setattr(Trainer, "advance", stopping)


def losses(history: History) -> list[float]:
    return [step.loss for step in history.steps]


def test_mixture_learns_like_a_dense_model_of_equal_active_size(whole: Path, tmp_path: Path, texts: Path) -> None:
    dense, mixture = tiny_recipe(tmp_path), load_recipe(whole / "recipe.toml")
    assert mixture.model.active_parameters == dense.model.parameters + dense.model.n_layer * 4 * 16  # the router
    found = [read_history(run) for run in (train(dense, tmp_path / "dense").path, whole)]
    for history in found:
        assert history.status is RunState.FINISHED and history.samples[-1].step == 6
        assert history.validations[-1].loss < history.validations[0].loss - 0.15
    assert found[1].validations[-1].loss == pytest.approx(found[0].validations[-1].loss, abs=0.1)
    assert not found[0].expert_loads and not [name for name in weights(tmp_path / "dense", 6) if "balance" in name]


def test_mixture_stopped_between_checkpoints_resumes_to_the_bit(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, stopped = load_recipe(whole / "recipe.toml"), whole.with_name("stopped")
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        start_training(recipe, stopped, handle_signals=True)
    assert read_history(stopped).step == 4
    assert resume(stopped).history.status is RunState.FINISHED
    one, other = read_history(whole), read_history(stopped)
    assert losses(one) == losses(other)
    assert [v.loss for v in one.validations] == [v.loss for v in other.validations]
    assert [s.texts for s in one.samples] == [s.texts for s in other.samples]
    assert one.expert_loads == other.expert_loads
    ours, theirs = weights(whole, 6), weights(stopped, 6)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_journal_has_the_load_of_every_expert_with_each_validation(whole: Path) -> None:
    history = read_history(whole)
    assert [record.step for record in history.expert_loads] == [1, 2, 3, 4, 5, 6]
    for record in history.expert_loads:
        assert [len(load) for load in record.loads] == [4, 4]
        assert {sum(load) for load in record.loads} == {2 * 128}  # two experts for each token of the batch


def test_balance_follows_the_loads_of_whole_batches(whole: Path) -> None:
    """Of all micro-batches: with the loads of the last one alone some signs would differ."""
    expected = torch.zeros(2, 4)
    for record in read_history(whole).expert_loads:
        expected -= 0.01 * torch.sign(torch.tensor(record.loads) - 64)
        torch.testing.assert_close(balance_of(whole, record.step), expected, rtol=0, atol=1e-6)
    assert expected.any(dim=1).all()


def rejecting(steps: set[int]) -> Callable[..., StepRecord | SkippedRecord]:
    """Return a step whose loss is infinite where its batch is one of these."""
    train_step = Trainer.train_step

    def poisoned(self: Trainer, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        share = self.gradients.share_results
        if self.state.guard.batch_of(step) in steps:
            self.gradients.share_results = lambda *given: (float("inf"), *share(*given)[1:])  # type: ignore[method-assign]
        try:
            return train_step(self, step, batch)
        finally:
            self.gradients.share_results = share  # type: ignore[method-assign]

    return poisoned


def test_rejected_step_leaves_the_balance_as_it_was(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = mixture_recipe(tmp_path, checkpoint={"every": 1}, run={"max_steps": 3}, evaluation=WITHOUT_EVALUATIONS)
    monkeypatch.setattr(Trainer, "train_step", rejecting({1}))
    run = train(recipe, tmp_path / "a").path
    assert [record.step for record in read_history(run).skipped] == [2]
    first, second, third = (balance_of(run, step) for step in (1, 2, 3))
    assert torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.slow
def test_rollback_returns_to_the_balance_of_its_checkpoint(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that never saw the excluded batch ends with the same weights."""
    recipe = mixture_recipe(
        tmp_path, guard={"max_skips": 0}, checkpoint={"every": 2}, run={"max_steps": 4}, evaluation=WITHOUT_EVALUATIONS
    )
    monkeypatch.setattr(Trainer, "train_step", rejecting({3}))
    rolled_back = train(recipe, tmp_path / "a").path
    monkeypatch.undo()
    batch_of = Guard.batch_of
    monkeypatch.setattr(Guard, "batch_of", lambda self, step: batch_of(self, step) + (step >= 3))
    other = train(recipe, tmp_path / "b").path
    one, two = weights(rolled_back, 4), weights(other, 4)
    assert read_history(rolled_back).details(Rollback) and all(torch.equal(one[name], two[name]) for name in one)


def test_run_with_experts_is_reproduced_to_the_bit(whole: Path) -> None:
    assert reproduce(whole, 3, lambda line: None) is None


def test_run_with_experts_is_exported_with_a_class_of_its_own(whole: Path, tmp_path: Path) -> None:
    model = load_model(whole)
    export(model, tmp_path / "out")
    again = load_pretrained(tmp_path / "out")[0]
    assert torch.equal(again.blocks[0].mlp.balance, model.blocks[0].mlp.balance)
