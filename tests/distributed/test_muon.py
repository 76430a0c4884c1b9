"""Muon on several ranks: each orthogonalizes a share, and the result is that of one rank."""

import sys

import numpy as np
import pytest
import torch

from regpt.tracking.events import Started
from regpt.tracking.journal import History, read_history
from regpt.tracking.layout import RunPaths
from tests.helpers.parallel_runs import MODES, STEPS, Workspace, batches, evaluations, losses, same_tensors, tensors

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun")]

# 17 rows do not divide by 2 or 4, and 3 layers leave ranks with unequal shares.
MUON = ["optimizer.kind=muon", "optimizer.normuon=true", "optimizer.muon_weight_decay=0.1", "model.mlp_hidden=17"]
MANY = [*MUON, "run.max_steps=20", "model.n_layer=3", "optimizer.cautious_weight_decay=true"]


@pytest.fixture(scope="module")
def one_rank_muon(workspace: Workspace) -> History:
    """Return the history of 20 steps on one rank; the run is named "muon-alone"."""
    return workspace.train(1, "muon-alone", MANY)


def same_curves(history: History, expected: History) -> bool:
    """Return whether batches are equal, and losses within 1e-6."""
    ours, theirs = (np.array([*losses(h), *evaluations(h)[0]]) for h in (history, expected))
    return batches(history) == batches(expected) and bool(np.all(np.abs(ours / theirs - 1) < 1e-6))


@pytest.mark.parametrize(
    ("ranks", "mode"),
    [
        pytest.param(2, "fsdp", marks=pytest.mark.slow),
        pytest.param(2, "ddp", marks=pytest.mark.nightly),
        pytest.param(4, "ddp", marks=pytest.mark.nightly),
        pytest.param(4, "fsdp", marks=pytest.mark.nightly),
    ],
)
def test_muon_on_ranks_gives_the_curve_of_one(
    workspace: Workspace, one_rank_muon: History, ranks: int, mode: str
) -> None:
    history = workspace.train(ranks, f"muon-{mode}-{ranks}", [*MANY, *MODES[mode]])
    assert same_curves(history, one_rank_muon)


@pytest.mark.nightly
@pytest.mark.parametrize("modes", [["ddp", "fsdp", "ddp"], ["fsdp", "ddp", "fsdp"]], ids="-".join)
def test_muon_moved_between_ranks_and_modes_keeps_its_curve(
    workspace: Workspace, one_rank_muon: History, modes: list[str]
) -> None:
    """Momentum and row moments of one number of ranks continue on another."""
    name = f"muon-moved-{modes[0]}"
    counts, stops = (2, 4, 1), (5, 12, 20)
    for number, (ranks, mode, stop) in enumerate(zip(counts, modes, stops, strict=True)):
        settings = [*MANY, f"run.parallel={mode}", f"run.max_steps={stop}", "optimizer.schedule=trapezoid"]
        ended = workspace.run("resume" if number else "train", ranks, name, settings)
        assert [outcome.code for outcome in ended] == [0] * ranks, ended
    history = read_history(workspace.path(name))
    assert [start.ranks for start in history.details(Started)] == [2, 4, 1]
    straight = workspace.train(1, f"{name}-straight", [*MANY, "optimizer.schedule=trapezoid"])
    assert losses(history) == pytest.approx(losses(straight), rel=1e-6)


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_muon_of_experts_on_two_ranks_gives_the_curve_of_one(workspace: Workspace, mode: str) -> None:
    """Three experts of gated matrices: the shard of a rank has whole experts, and they do not divide."""
    settings = [*MANY, "model.experts=3", "model.shared_experts=1"]
    alone = workspace.train(1, f"muon-experts-{mode}-alone", settings)
    assert same_curves(workspace.train(2, f"muon-experts-{mode}", [*settings, *MODES[mode]]), alone)


@pytest.mark.nightly
def test_muon_with_strict_sums_is_bit_identical_on_1_2_and_4_ranks(workspace: Workspace) -> None:
    runs = [workspace.train(ranks, f"muon-strict-{ranks}", [*MUON, *MODES["strict"]]) for ranks in (1, 2, 4)]
    assert losses(runs[0]) == losses(runs[1]) == losses(runs[2])
    last = [RunPaths(workspace.path(f"muon-strict-{ranks}")).checkpoint(STEPS) for ranks in (1, 2, 4)]
    assert same_tensors(last[0], last[1]) and same_tensors(last[0], last[2])
    names = tensors(last[0])
    assert names["blocks.0.mlp.down.weight/momentum_buffer"].shape == (16, 17)
    assert names["blocks.0.mlp.down.weight/row_moment"].shape == (16, 1)
    assert torch.count_nonzero(names["blocks.0.mlp.down.weight/row_moment"]) == 16
