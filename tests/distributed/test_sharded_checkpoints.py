"""Sharded checkpoints: one file per rank, verified, and opened on any number of ranks."""

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from regpt.base.errors import CheckpointError
from regpt.checkpoint import store
from regpt.interop.open_model import load_model
from regpt.tracking.journal import History, read_history
from regpt.tracking.layout import RunPaths
from tests.helpers.parallel_runs import MODES, STEPS, Workspace
from tests.helpers.ranks import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun")]


@pytest.mark.slow
def test_sharded_checkpoint_has_a_file_per_rank_and_opens_whole(workspace: Workspace, one_rank: History) -> None:
    workspace.train(4, "parts", MODES["fsdp"])
    path = store.newest_valid(workspace.path("parts"))
    names = {file.name for file in path.iterdir()}
    assert {f"model-{part:05d}-of-00004.safetensors" for part in range(1, 5)} < names and len(names) == 10
    sizes = [(path / f"model-{part:05d}-of-00004.safetensors").stat().st_size for part in range(1, 5)]
    whole_size = (RunPaths(workspace.path("alone")).checkpoint(STEPS) / "model.safetensors").stat().st_size
    assert max(sizes) < 0.3 * whole_size
    ours, theirs = load_model(workspace.path("parts")), load_model(workspace.path("alone"))
    assert all(
        torch.allclose(one, other, atol=2e-5) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    for command in (["sample", "--prompt", "def f(", "--tokens", "4"], ["report"], ["checkpoints"]):
        words = [command[0], "parts", "--runs", str(workspace.folder / "runs"), *command[1:]]
        (outcome,) = run_ranks(1, words, workspace.folder / "output")
        assert outcome.code == 0, outcome.output
    (outcome,) = run_ranks(
        1,
        ["export", "parts", str(workspace.folder / "hf"), "--runs", str(workspace.folder / "runs")],
        workspace.folder / "output",
    )
    assert outcome.code == 0 and (workspace.folder / "hf" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "missing", "another part's"])
def test_sharded_checkpoint_with_a_damaged_file_is_skipped(workspace: Workspace, damage: str) -> None:
    if not workspace.path("whole-parts").exists():
        workspace.train(2, "whole-parts", [*MODES["fsdp"], "run.max_steps=10"])
    where = workspace.path("damaged-parts")
    shutil.rmtree(where, ignore_errors=True)
    shutil.copytree(workspace.path("whole-parts"), where)
    part = RunPaths(where).checkpoint(10) / "optimizer-00002-of-00002.safetensors"
    if damage == "flipped":
        content = bytearray(part.read_bytes())
        content[-100] ^= 1
        part.write_bytes(content)
    elif damage == "missing":
        part.unlink()
    else:
        shutil.copy(part.with_name("optimizer-00001-of-00002.safetensors"), part)
    ended = workspace.run("resume", 2, "damaged-parts", [*MODES["fsdp"], "run.max_steps=12"])
    assert [outcome.code for outcome in ended] == [0, 0], ended
    note = " ".join(ended[0].output.split())
    assert part.name in note and "step_000005" in note
    assert read_history(where).step == 12


def test_sharded_checkpoint_that_lacks_rows_is_refused(workspace: Workspace) -> None:
    """The hashes match, but rows are missing: a manifest that was not written by regpt."""
    if not workspace.path("whole-parts").exists():
        workspace.train(2, "whole-parts", [*MODES["fsdp"], "run.max_steps=10"])
    path = RunPaths(workspace.path("whole-parts")).checkpoint(10)
    names = [path / f"model-0000{part}-of-00002.safetensors" for part in (1, 1)]
    saved = store.SavedTensors(names)
    name = "token_embedding.weight"
    assert saved.shapes[name] == (50_304, 16)
    with pytest.raises(CheckpointError, match=r"lacks rows 25,152 to 50,304 of token_embedding\.weight"):
        saved.rows(name, 0, 50_304)


def fill_disk(faulty_rank: int, steps: tuple[int, ...], rank: int) -> None:
    """Let the disk of one of the ranks be full at these steps."""
    real = store.write_tensors

    def write_tensors(path: Path, *what: Any) -> Any:
        if rank == faulty_rank and any(f"step_{step:06d}" in str(path) for step in steps):
            raise OSError(28, "No space left on device")
        return real(path, *what)

    store.write_tensors = write_tensors  # type: ignore[attr-defined]


@pytest.mark.slow
def test_sharded_checkpoint_on_a_full_disk_fails_on_all_ranks(workspace: Workspace) -> None:
    ended = workspace.run("train", 2, "full", MODES["fsdp"], partial(fill_disk, 1, (5, STEPS)))
    assert [outcome.code for outcome in ended] == [4, 4], ended
    assert [step for step, _ in store.list_checkpoints(workspace.path("full"))] == [10]
    assert not list((workspace.path("full") / "checkpoints").glob(".*"))
    assert "step_000005: cannot be written" in " ".join(ended[0].output.split())
    assert (ended[0].output + ended[1].output).count("error: ") == 1
