"""A bad step (NaN, infinity or a spike) never updates the weights, and the guard decides the same after any stop."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from regpt.base.errors import DataError, NumericsError
from regpt.checkpoint import store
from regpt.data.tokenizer import GPT2_TOKENIZER
from regpt.recipe.recipe import Recipe
from regpt.recipe.sections import GuardRecipe
from regpt.tracking.events import Event, Rollback
from regpt.tracking.journal import RunState, read_history
from regpt.tracking.layout import RunPaths
from regpt.tracking.rejections import Rejection, RejectionKind
from regpt.training.evidence import texts_of
from regpt.training.guard import Guard, Verdict, spike_limit
from regpt.training.start import resume, train
from regpt.training.trainer import Trainer
from tests.conftest import tiny_recipe

NAN, INFINITY = float("nan"), float("inf")


def poison(monkeypatch: pytest.MonkeyPatch, batches: set[int], kind: str, value: float) -> None:
    """Make the loss, or one gradient, of these batches `value` from now on."""
    real = Trainer.train_step

    def train_step(self: Trainer, step, batch):  # type: ignore[no-untyped-def]
        if self.state.guard.batch_of(step) not in batches:
            return real(self, step, batch)
        with pytest.MonkeyPatch.context() as patched:
            if kind == "loss":
                forward = self.model.forward
                patched.setattr(self.model, "forward", lambda *args: forward(*args) * value)
                return real(self, step, batch)
            hook = self.model.blocks[0].mlp.down.weight.register_hook(spoilt(value))
            try:
                return real(self, step, batch)
            finally:
                hook.remove()

    monkeypatch.setattr(Trainer, "train_step", train_step)


def spoilt(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[0, 0] = value
        return gradient

    return spoil


@pytest.fixture
def longer(tmp_path: Path, texts: Path) -> Recipe:
    return tiny_recipe(tmp_path, run={"max_steps": 12}, evaluation={"sample_every": 0})


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = RunPaths(run).checkpoint(step)
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "optimizer.safetensors")}


def digests(run: Path) -> list[str]:
    return [step.batch for step in read_history(run).steps]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_one_bad_step_is_skipped_and_the_next_is_not(
    longer: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, value: float
) -> None:
    train(longer, tmp_path / "clean")
    poison(monkeypatch, {5}, kind, value)
    assert train(longer, tmp_path / "a").history.status is RunState.FINISHED
    history = read_history(tmp_path / "a")
    assert [record.step for record in history.skipped] == [6]
    assert [record.step for record in history.steps] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert digests(tmp_path / "a") == [d for n, d in enumerate(digests(tmp_path / "clean")) if n != 5]
    assert all(math.isfinite(step.loss) and math.isfinite(step.gradient_norm) for step in history.steps)
    for step in (3, 6, 9, 12):
        assert all(torch.isfinite(tensor).all() for tensor in tensors(tmp_path / "a", step).values())


def test_weights_do_not_change_in_a_skipped_step(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, run={"max_steps": 4}, checkpoint={"every": 1})
    poison(monkeypatch, {2}, "loss", NAN)
    train(recipe, tmp_path / "a")
    before, after = tensors(tmp_path / "a", 2), tensors(tmp_path / "a", 3)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_rollback_excludes_the_bad_batches(longer: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny_recipe(tmp_path, run={"max_steps": 16}, evaluation={"sample_every": 0}), tmp_path / "clean")
    poison(monkeypatch, {4, 5, 6, 7}, "gradient", NAN)
    assert train(longer, tmp_path / "a").history.status is RunState.FINISHED
    history = read_history(tmp_path / "a")
    assert [event.event for event in history.events] == [Event.STARTED, Event.ROLLBACK, Event.FINISHED]
    assert history.events[1].step == 3 and history.events[1].detail == Rollback(
        from_step=7, excluded_batches=[4, 5, 6, 7]
    )
    assert [step.step for step in history.steps] == list(range(1, 13)) and history.skipped == []
    clean = digests(tmp_path / "clean")
    assert digests(tmp_path / "a") == [d for n, d in enumerate(clean) if n not in (4, 5, 6, 7)]
    assert all(torch.isfinite(tensor).all() for tensor in tensors(tmp_path / "a", 12).values())


def test_rollback_without_a_checkpoint_returns_to_the_start(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, guard={"max_skips": 0}, checkpoint={"every": 0}, run={"max_steps": 5})
    train(recipe, tmp_path / "clean")
    poison(monkeypatch, {2}, "loss", NAN)
    assert train(recipe, tmp_path / "a").history.status is RunState.FINISHED
    history = read_history(tmp_path / "a")
    assert history.events[1].event is Event.ROLLBACK and history.events[1].step == 0
    assert digests(tmp_path / "a")[:2] == digests(tmp_path / "clean")[:2]
    assert [step.loss for step in history.steps][:2] == [step.loss for step in read_history(tmp_path / "clean").steps][
        :2
    ]


def test_rollback_to_the_same_step_keeps_the_batches_excluded_before(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard that is restored was stored before the first rollback and does not know of it."""
    guard = {"max_skips": 0, "max_rollbacks": 2}
    recipe = tiny_recipe(tmp_path, guard=guard, checkpoint={"every": 1}, run={"max_steps": 3})
    poison(monkeypatch, {2, 3}, "loss", NAN)
    assert train(recipe, tmp_path / "a").history.status is RunState.FINISHED
    rollbacks = [event for event in read_history(tmp_path / "a").events if event.event is Event.ROLLBACK]
    assert [event.step for event in rollbacks] == [2, 2]
    assert [event.detail.excluded_batches for event in rollbacks] == [[2], [2, 3]]


def test_endless_bad_steps_end_with_code_5_and_a_good_checkpoint(
    longer: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(4, 1000)), "loss", NAN)
    with pytest.raises(NumericsError, match=r"step 8: .*nan.* 4 steps") as caught:
        train(longer, tmp_path / "a")
    assert caught.value.code == 5
    history = read_history(tmp_path / "a")
    assert [event.event for event in history.events] == [Event.STARTED, Event.ROLLBACK, Event.FAILED]
    newest = store.newest_valid(tmp_path / "a")
    assert all(torch.isfinite(tensor).all() for tensor in load_file(newest / "model.safetensors").values())


def test_evidence_has_windows_text_and_gradient_norms(
    longer: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {5}, "gradient", NAN)
    train(longer, tmp_path / "a")
    folder = tmp_path / "a" / "evidence" / "step_000006"
    about = json.loads((folder / "step.json").read_text())
    assert about["gradient_norms"]["blocks.0.mlp.down.weight"] == "nan"
    assert float(about["gradient_norms"]["token_embedding.weight"]) > 0
    assert len(about["windows"]) == 4 and about["reason"]["kind"] == RejectionKind.GRADIENT_NORM_NAN
    text = (folder / "text.txt").read_text(encoding="utf-8")
    assert all(f"=== window {window}\n" in text for window in about["windows"]) and len(text) > 200


def test_evidence_has_token_ids_without_a_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(ids: object) -> str:
        raise DataError("no vocabulary", "")

    rows = np.array([[1, 2], [3, 50_256]], dtype=np.uint16)
    assert texts_of(rows, GPT2_TOKENIZER) == ['"#', "$<|endoftext|>"]
    monkeypatch.setattr("regpt.data.tokenizer.decode", refuse)
    assert texts_of(rows, GPT2_TOKENIZER) == ["1 2", "3 50256"]


@pytest.mark.slow
def test_guard_decides_the_same_after_a_stop_and_a_resume(
    longer: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {3, 5, 6, 7, 8}, "gradient", INFINITY)
    assert train(longer, tmp_path / "whole").history.status is RunState.FINISHED
    # at a constant rate, so that a run of 8 steps is the beginning of one of 12: it ends amid the bad steps
    monkeypatch.setattr("regpt.training.trainer.learning_rate", lambda step, recipe: 1e-3)
    first = tiny_recipe(tmp_path, run={"max_steps": 8}, evaluation={"sample_every": 0})
    assert train(longer, tmp_path / "whole-2").history.status is RunState.FINISHED
    assert train(first, tmp_path / "a").history.status is RunState.FINISHED
    assert resume(tmp_path / "a", ["run.max_steps=12"]).history.status is RunState.FINISHED
    assert digests(tmp_path / "whole-2") == digests(tmp_path / "a") == digests(tmp_path / "whole")
    one, other = tensors(tmp_path / "whole-2", 12), tensors(tmp_path / "a", 12)
    assert all(torch.equal(one[name], other[name]) for name in one)


# What is usual


def test_spike_limit_follows_the_median() -> None:
    guard = Guard(GuardRecipe(window=64, loss_deviations=10.0, norm_deviations=10.0))
    for number in range(64):
        assert guard.rejection(3.0 + 0.01 * (number % 5), 1.0) is None
        guard.accept(3.0 + 0.01 * (number % 5), 1.0)
    loss_limit, norm_limit = (spike_limit(recent, 10.0, 64) for recent in (guard.losses, guard.norms))
    assert guard.rejection(3.5, 1.0) == Rejection(
        kind=RejectionKind.LOSS_SPIKE, value=3.5, limit=loss_limit, deviations=10.0
    )
    assert guard.rejection(3.0, 4.0) == Rejection(
        kind=RejectionKind.GRADIENT_NORM_SPIKE, value=4.0, limit=norm_limit, deviations=10.0
    )
    assert 3.02 < loss_limit < 3.5 and 1.0 < norm_limit < 4.0
    assert guard.rejection(2.0, 0.1) is None  # better than usual is no spike


@pytest.mark.parametrize(
    ("loss", "norm", "kind"),
    [
        (NAN, 1.0, RejectionKind.LOSS_NAN),
        (INFINITY, NAN, RejectionKind.LOSS_INFINITE),
        (3.0, NAN, RejectionKind.GRADIENT_NORM_NAN),
        (3.0, INFINITY, RejectionKind.GRADIENT_NORM_INFINITE),
    ],
)
def test_nan_and_infinity_are_told_apart_by_kind(loss: float, norm: float, kind: RejectionKind) -> None:
    assert Guard(GuardRecipe()).rejection(loss, norm) == Rejection(kind=kind)


def test_rejected_steps_do_not_change_what_is_normal() -> None:
    guard = Guard(GuardRecipe(window=16, max_skips=1000))
    for _ in range(16):
        guard.accept(3.0, 1.0)
    for batch in range(100):
        for loss in (NAN, 50.0):
            assert guard.rejection(loss, 1.0)
            guard.reject(batch, batch)
    assert guard.losses == [3.0] * 16 and guard.rejection(3.0, 1.0) is None and guard.rejection(50.0, 1.0)


def test_spike_limit_is_infinite_without_enough_steps() -> None:
    assert spike_limit([3.0] * 15, 10.0, 64) == math.inf
    assert spike_limit([3.0] * 16, 10.0, 64) == pytest.approx(3.03)
    assert spike_limit([3.0] * 64, 0.0, 64) == math.inf


def test_guard_reads_the_names_of_version_0_1() -> None:
    """The fixture of test_compatibility.py resumes from a checkpoint with these names."""
    old = {"losses": [3.0], "norms": [1.0], "bad_batches": [7], "bad_since": 6, "left_out": [2, 4], "returns": 1}
    guard = Guard.from_json(GuardRecipe(), old)
    assert (guard.last_good_step, guard.excluded_batches, guard.rollbacks) == (6, [2, 4], 1)
    assert Guard.from_json(GuardRecipe(), guard.to_json()) == guard


def test_verdicts_follow_the_number_of_bad_steps_and_rollbacks() -> None:
    guard = Guard(GuardRecipe(max_skips=1, max_rollbacks=1))
    assert [guard.reject(5, 5), guard.reject(6, 6)] == [Verdict.SKIP, Verdict.ROLLBACK]
    assert guard.last_good_step == 5 and guard.bad_batches == [5, 6]
    guard.exclude([5, 6], rollbacks=1)
    assert [guard.batch_of(step) for step in range(4, 7)] == [4, 7, 8]
    assert [guard.reject(5, 7), guard.reject(6, 8)] == [Verdict.SKIP, Verdict.STOP]


@given(left_out=st.sets(st.integers(0, 60)))
def test_batches_are_all_numbers_but_the_excluded_ones(left_out: set[int]) -> None:
    guard = Guard(GuardRecipe())
    guard.exclude(sorted(left_out), 1)
    assert [guard.batch_of(step) for step in range(40)] == [n for n in range(200) if n not in left_out][:40]
