"""An error, a hang or a signal on one rank ends all ranks, with one message and the right exit code."""

import os
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from regpt.checkpoint import store
from regpt.data.batches import Batch
from regpt.tracking.journal import SkippedRecord, StepRecord
from regpt.training import trainer
from tests.conftest import wait_until
from tests.helpers.parallel_runs import MODES, Workspace, at_step
from tests.helpers.ranks import start_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun")]


def cut_shard(faulty_rank: int, rank: int) -> None:
    """Let one of the ranks fail to read its data from the fourth batch on."""
    from regpt.base.errors import DataError
    from regpt.data.shards import TokenWindows

    real, read = TokenWindows.rows, 0

    def rows(self: TokenWindows, wanted: Any) -> Any:
        nonlocal read
        read += 1
        if rank == faulty_rank and read > 8:
            raise DataError("train_000001.npy: was cut short", "get it again")
        return real(self, wanted)

    TokenWindows.rows = rows  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("faulty_rank", [0, 1])
def test_error_of_one_rank_is_printed_once_and_ends_all_ranks(workspace: Workspace, faulty_rank: int) -> None:
    ended = workspace.run("train", 2, f"cut-{faulty_rank}", (), partial(cut_shard, faulty_rank))
    assert [outcome.code for outcome in ended] == [3, 3], ended
    assert (ended[0].output + ended[1].output).count("error: ") == 1
    assert "train_000001.npy: was cut short" in ended[faulty_rank].output
    assert "Traceback" not in ended[0].output + ended[1].output


def freeze_in_a_save(faulty_rank: int, rank: int) -> None:
    """Stop the process of one of the ranks while it saves step 5."""
    real = store.write_tensors

    def write_tensors(path: Path, *what: Any) -> Any:
        if rank == faulty_rank and "step_000005" in str(path):
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(path, *what)

    store.write_tensors = write_tensors  # type: ignore[attr-defined]


def freeze_in_a_step(faulty_rank: int, rank: int) -> None:
    """Stop the process of one of the ranks before step 7."""
    real = trainer.Trainer.train_step

    def train_step(self: trainer.Trainer, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        if rank == faulty_rank and step == 6:
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(self, step, batch)

    trainer.Trainer.train_step = train_step  # type: ignore[method-assign]


@pytest.mark.slow
def test_rank_frozen_during_a_save_is_given_up_with_a_stack(workspace: Workspace) -> None:
    """No rank is in a collective then, so only the heartbeat can notice."""
    settings = [*MODES["fsdp"], "run.rank_timeout=3", "checkpoint.background=false"]
    folder = workspace.folder / "frozen"
    ranks = start_ranks(2, workspace.words("train", "frozen", settings), folder, partial(freeze_in_a_save, 1))
    ranks[0].join(40)
    ranks[1].kill()
    assert ranks[0].exitcode == 7, (folder / "rank0").read_text()
    printed = (folder / "rank0").read_text()
    assert "rank 1 did not answer within 3 s" in printed
    assert re.search(r"checkpointing\.py\", line \d+, in collect\b", printed)


@pytest.mark.slow
def test_second_signal_ends_a_rank_that_waits_for_another(workspace: Workspace) -> None:
    folder = workspace.folder / "waiting"
    ranks = start_ranks(2, workspace.words("train", "waiting"), folder, partial(freeze_in_a_step, 1))
    wait_until(at_step(workspace, "waiting", 6), 60)
    time.sleep(0.5)
    for _ in range(2):
        assert ranks[0].pid is not None and ranks[0].is_alive()
        os.kill(ranks[0].pid, signal.SIGTERM)
        time.sleep(3.5)
    ranks[0].join(5)
    ranks[1].kill()
    assert ranks[0].exitcode == 143
    assert store.newest_valid(workspace.path("waiting")).name == "step_000005"
