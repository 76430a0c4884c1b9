"""torch.compile with several ranks: the losses of eager training, and nothing compiled again after the second step."""

import sys
from functools import partial

import pytest
import torch

from regpt.tracking.journal import History, read_history
from regpt.training.gradients import Gradients
from tests.helpers.parallel_runs import Workspace, losses

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.compile,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun"),
]


def forbid_recompilation(after: int, rank: int) -> None:
    """Make every rank fail if a step after the first `after` steps compiles."""
    compute = Gradients.compute

    def strict(self, step, batch):  # type: ignore[no-untyped-def]
        with torch.compiler.set_stance("fail_on_recompile" if step >= after else "default"):
            return compute(self, step, batch)

    Gradients.compute = strict  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("parallel", "checkpointing"),
    [
        ("ddp", "false"),
        pytest.param("fsdp", "true", marks=pytest.mark.nightly),
        pytest.param("ddp", "true", marks=pytest.mark.nightly),
        pytest.param("fsdp", "false", marks=pytest.mark.nightly),
    ],
)
def test_compiled_ranks_have_the_losses_of_eager_ones(
    workspace: Workspace, one_rank: History, parallel: str, checkpointing: str
) -> None:
    """With validation, samples and checkpoints in between."""
    name = f"compiled-{parallel}-{checkpointing}"
    settings = [f"run.parallel={parallel}", f"run.activation_checkpointing={checkpointing}", "run.compile=on"]
    ended = workspace.run("train", 2, name, settings, partial(forbid_recompilation, 2))
    assert [outcome.code for outcome in ended] == [0, 0], ended
    history = read_history(workspace.path(name))
    assert losses(history) != losses(one_rank)  # other kernels round otherwise
    assert losses(history) == pytest.approx(losses(one_rank), abs=1e-5)
