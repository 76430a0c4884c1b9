"""Muon on several ranks: each orthogonalizes a share, and the result is that of one rank."""

import sys

import pytest

from regpt.tracking.journal import History
from tests.helpers.parallel_runs import MODES, Workspace, batches, evaluations, losses

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun")]

MUON = ["optimizer.kind=muon", "optimizer.normuon=true", "optimizer.muon_weight_decay=0.1"]
LONG = ["run.max_steps=20", "optimizer.cautious_weight_decay=true", "model.n_layer=3"]


@pytest.fixture(scope="module")
def one_rank_muon(workspace: Workspace) -> History:
    return workspace.train(1, "muon", MUON)


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_muon_on_two_ranks_gives_the_curve_of_one(workspace: Workspace, one_rank_muon: History, mode: str) -> None:
    history = workspace.train(2, f"muon-{mode}", [*MUON, *MODES[mode]])
    assert batches(history) == batches(one_rank_muon)
    assert losses(history) == pytest.approx(losses(one_rank_muon), rel=1e-6)
    assert evaluations(history)[0] == pytest.approx(evaluations(one_rank_muon)[0], rel=1e-6)
