"""A loss or gradient that is NaN or infinite on one rank is handled by all ranks alike."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch

from regpt.checkpoint import store
from regpt.data.batches import Batch
from regpt.model.gpt import GPT
from regpt.parallel.model import Parallel
from regpt.recipe.settings import load_recipe
from regpt.tracking.journal import SkippedRecord, StepRecord, read_history
from regpt.tracking.rejections import RejectionKind
from regpt.training import trainer
from tests.helpers.parallel_runs import MODES, STEPS, Workspace

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun")]


def poison(faulty_rank: int, what: str, steps: tuple[int, ...], rank: int) -> None:
    """Make the loss infinite, or a reduced gradient NaN, on one of the ranks at these steps."""
    if rank != faulty_rank:
        return
    real_step, real_square = trainer.Trainer.train_step, Parallel.squared_norm

    def train_step(self: trainer.Trainer, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        bad = self.state.guard.batch_of(step) in steps
        forward = self.model.forward

        def squared_norm(parallel: Parallel) -> float:
            if bad and what == "gradient":
                parallel.gradients()[3].view(-1)[0] = float("nan")
            return real_square(parallel)

        Parallel.squared_norm = squared_norm  # type: ignore[method-assign]
        if bad and what == "loss":
            self.model.__dict__["forward"] = lambda *given: forward(*given) * float("inf")
        try:
            return real_step(self, step, batch)
        finally:
            self.model.__dict__.pop("forward", None)

    trainer.Trainer.train_step = train_step  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "mode"), [("loss", "ddp"), ("gradient", "ddp"), ("loss", "fsdp"), ("gradient", "fsdp")]
)
def test_nan_or_inf_on_one_rank_is_skipped_by_all_ranks(workspace: Workspace, what: str, mode: str) -> None:
    name = f"poisoned-{what}-{mode}"
    ended = workspace.run("train", 2, name, MODES[mode], partial(poison, 1, what, (4, 5)))
    assert [outcome.code for outcome in ended] == [0, 0], ended
    history = read_history(workspace.path(name))
    assert [record.step for record in history.skipped] == [5, 6]
    kind = RejectionKind.LOSS_INFINITE if what == "loss" else RejectionKind.GRADIENT_NORM_NAN
    assert {record.reason.kind for record in history.skipped} == {kind}
    before, after = (history.validations[number].loss for number in (1, 2))
    assert [step.step for step in history.steps] == [*range(1, 5), *range(7, STEPS + 1)]
    assert np.isfinite(before) and np.isfinite(after)
    evidence = json.loads((workspace.path(name) / "evidence" / "step_000005" / "step.json").read_text())
    text = (workspace.path(name) / "evidence" / "step_000005" / "text.txt").read_text()
    assert all(f"=== window {window}\n" in text for window in evidence["windows"]) and len(evidence["windows"]) == 4


@pytest.mark.slow
def test_endless_inf_losses_end_all_ranks_with_exit_code_5(workspace: Workspace) -> None:
    ended = workspace.run("train", 2, "hopeless", (), partial(poison, 1, "loss", tuple(range(8, 100))))
    assert [outcome.code for outcome in ended] == [5, 5], ended
    assert (ended[0].output + ended[1].output).count("error: ") == 1
    for _, path in store.list_checkpoints(workspace.path("hopeless")):
        model = GPT(load_recipe(workspace.folder / "tiny.toml").model)
        store.load_weights(path, model)
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
