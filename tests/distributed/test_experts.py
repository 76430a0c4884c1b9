"""A mixture of experts on several ranks: the loads of all ranks balance it, with DDP, FSDP and strict sums alike."""

import sys
from functools import partial

import pytest

from regpt.tracking.journal import History, read_history
from regpt.tracking.layout import RunPaths
from tests.distributed.test_parallel_training import stop_before
from tests.helpers.parallel_runs import MODES, STEPS, Workspace, evaluations, losses, same_tensors

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun"),
]
# Three experts do not divide among two ranks.
EXPERTS = ["model.experts=3", "model.shared_experts=1", "model.expert_balance_rate=0.01"]


@pytest.fixture(scope="module")
def alone(workspace: Workspace) -> History:
    """Return the history of the mixture on one rank; the run is named "experts"."""
    return workspace.train(1, "experts", [*EXPERTS, *MODES["strict"]])


@pytest.mark.parametrize("mode", MODES)
def test_experts_on_two_ranks_have_the_loads_and_losses_of_one(workspace: Workspace, alone: History, mode: str) -> None:
    checkpointing = f"run.activation_checkpointing={'true' if mode == 'fsdp' else 'false'}"
    history = workspace.train(2, f"experts-{mode}", [*EXPERTS, *MODES[mode], checkpointing])
    assert [record.step for record in history.expert_loads] == [5, 10, STEPS]
    assert history.expert_loads == alone.expert_loads
    if mode == "strict":
        assert losses(history) == losses(alone) and evaluations(history) == evaluations(alone)
        assert same_tensors(*(RunPaths(workspace.path(run)).checkpoint(STEPS) for run in ("experts", "experts-strict")))
    else:
        assert losses(history) == pytest.approx(losses(alone), rel=1e-6)
        assert evaluations(history)[0] == pytest.approx(evaluations(alone)[0], rel=1e-6)


def test_run_with_experts_moves_between_sharded_ranks_and_one(workspace: Workspace, alone: History) -> None:
    ended = workspace.run("train", 2, "moved", [*EXPERTS, "run.parallel=fsdp"], partial(stop_before, 28, 1))
    assert [outcome.code for outcome in ended] == [143, 143], ended
    ended = workspace.run("resume", 1, "moved", (), partial(stop_before, 13, 0))
    assert [outcome.code for outcome in ended] == [143], ended
    ended = workspace.run("resume", 4, "moved")
    assert [outcome.code for outcome in ended] == [0] * 4, ended
    history = read_history(workspace.path("moved"))
    assert history.expert_loads == alone.expert_loads
    assert losses(history) == pytest.approx(losses(alone), rel=1e-6)
