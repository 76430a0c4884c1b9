"""Save checkpoints while training continues: copy the state, write it in a thread, tell all ranks, remove old ones."""

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from regpt.base.errors import RanksError, UserError
from regpt.checkpoint import store
from regpt.checkpoint.retention import prune
from regpt.checkpoint.snapshot import Snapshot, snapshot
from regpt.checkpoint.store import Files, SavedCheckpoint
from regpt.distributed.dtensor import is_sharded
from regpt.distributed.rank_group import RankGroup
from regpt.model.gpt import GPT
from regpt.optimizer.base import Optimizer
from regpt.recipe.sections import CheckpointRecipe
from regpt.tracking.layout import RunPaths

SAVE_TIMEOUT_FACTOR = 10  # how many times longer a rank waits for a save than for a step


class AsyncCheckpointer:
    """Writes checkpoints in a thread, one at a time, and removes those that the recipe does not keep.

    `start` copies the state and starts the write. `collect` returns the written checkpoint or raises the error of the
    write, the same on every rank. If each rank holds the full model, only rank 0 writes. Use as a context manager.
    """

    def __init__(self, run: Path, asked: CheckpointRecipe, ranks: RankGroup | None = None) -> None:
        self.run, self.asked, self.ranks = run, asked, ranks or RankGroup()
        self.writing: Future[SavedCheckpoint] | None = None
        self.memory: Snapshot | None = None
        self.step = 0  # of the save started last
        self.count = 0
        self.timeout = SAVE_TIMEOUT_FACTOR * self.ranks.timeout
        self.abandoned = threading.Event()  # set after an error: threads stop waiting for messages

    def __enter__(self) -> "AsyncCheckpointer":
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandoned.set()
        self.thread.shutdown(wait=True)

    def start(
        self, step: int, model: GPT, optimizer: Optimizer, state: dict[str, Any], losses: dict[int, float]
    ) -> None:
        """Copy the state and start to write it. `collect` must have returned the previous checkpoint.

        `losses` are validation losses by step, for keep_best.
        """
        assert self.writing is None
        self.step, self.count = step, self.count + 1
        note = f"saved/{self.count}"
        is_sharded = self.ranks.size > 1 and holds_shard(model)
        if self.ranks.is_main or is_sharded:
            self.memory = snapshot(step, model, optimizer, state, self.memory)
        if self.ranks.is_main:
            assert self.memory is not None
            self.writing = self.thread.submit(self.write_checkpoint, self.memory, is_sharded, note, dict(losses))
        else:
            self.writing = self.thread.submit(self.write_part_and_wait, step, self.memory if is_sharded else None, note)

    def collect(self, wait: bool) -> SavedCheckpoint | None:
        """Return the checkpoint once it is written, else None; `wait` waits for it. Raises the error of the write."""
        if self.writing is None or not (wait or self.writing.done()):
            return None
        writing, self.writing = self.writing, None
        return writing.result()

    # In the thread

    def write_checkpoint(
        self, taken: Snapshot, is_sharded: bool, note: str, losses: dict[int, float]
    ) -> SavedCheckpoint:
        """On rank 0: write the checkpoint, wait for the other ranks' parts if it is sharded, and publish the result."""
        ranks, parts = self.ranks, self.ranks.size if is_sharded else 1

        def made() -> dict[str, float]:
            saved = store.write(
                self.run,
                taken,
                parts,
                begun=lambda: ranks.post(f"{note}/begun", {}) if is_sharded else None,
                others=lambda: self.other_parts(note) if is_sharded else {},
            )
            prune(self.run, self.asked, losses)
            return {"bytes": saved.bytes, "seconds": saved.seconds}

        told = ranks.publish(f"{note}/done", made)
        return SavedCheckpoint(
            RunPaths(self.run).checkpoint(taken.step), taken.step, int(told["bytes"]), told["seconds"]
        )

    def other_parts(self, note: str) -> Files:
        files: Files = {}
        for rank in range(1, self.ranks.size):
            files |= self.ranks.receive(f"{note}/part {rank}", while_waiting=self.check_abandoned, timeout=self.timeout)
        return files

    def write_part_and_wait(self, step: int, taken: Snapshot | None, note: str) -> SavedCheckpoint:
        """On other ranks: write this rank's part if the model is sharded, and wait for the result of the whole save."""
        ranks = self.ranks
        notes = begun, done = f"{note}/begun", f"{note}/done"
        if (
            taken is not None
            and ranks.wait_for(*notes, while_waiting=self.check_abandoned, timeout=self.timeout) == begun
        ):
            part = partial(store.write_part, self.run, taken, ranks.rank, ranks.size)
            with contextlib.suppress(UserError):  # rank 0 receives it and publishes it to all
                ranks.publish(f"{note}/part {ranks.rank}", part)
        told = ranks.receive(done, while_waiting=self.check_abandoned, timeout=self.timeout)
        return SavedCheckpoint(RunPaths(self.run).checkpoint(step), step, int(told["bytes"]), told["seconds"])

    def check_abandoned(self) -> None:
        if self.abandoned.is_set():
            raise RanksError("the checkpoint was abandoned", "continue from the previous one: regpt resume")


def holds_shard(model: GPT) -> bool:
    """Return whether this rank holds only a shard of the model."""
    return any(is_sharded(parameter) for parameter in model.parameters())
