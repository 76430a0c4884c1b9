"""Checkpoints of a run in training: save, record, restore, and reserve time for the last one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regpt.base.errors import CheckpointError
from regpt.checkpoint import store
from regpt.checkpoint.saver import AsyncCheckpointer
from regpt.console.training import TrainingConsole
from regpt.distributed.signals import GracefulStop
from regpt.optimizer.sizes import checkpoint_bytes
from regpt.parallel.model import Parallel
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import as_tables
from regpt.tracking.events import CheckpointFailed
from regpt.tracking.journal import CheckpointRecord, EventRecord, Record
from regpt.tracking.layout import RunPaths, parse_step
from regpt.training.guard import Guard
from regpt.training.periodic_eval import PeriodicEvaluation

EXPECTED_BYTES_PER_SECOND = 200e6  # of a checkpoint on a slow disk, before one was measured
SAVING_RESERVE_SECONDS = 5.0  # before run.time_limit, in addition to two steps and two checkpoints


@dataclass
class TrainState:
    """The state of a run besides weights and optimizer; trainer, checkpoints and recovery share it.

    The position in the data is not part of it: it follows from the step and the guard's excluded batches.
    """

    recipe: Recipe  # changes after an out-of-memory retry, which makes the micro-batch smaller
    data_digest: str
    compute: Mapping[str, Any] = field(default_factory=dict)  # what the machine decides, for a later resume
    guard: Guard = field(init=False)
    training_seconds: float = 0.0  # in good steps, of all attempts
    slowest_step_seconds: float = 0.0  # of this attempt

    def __post_init__(self) -> None:
        self.guard = Guard(self.recipe.guard)

    def reset(self) -> None:
        """Return to the state before the first step."""
        self.guard, self.training_seconds = Guard(self.recipe.guard), 0.0

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Return to the state in a checkpoint's state.json."""
        self.guard = Guard.from_json(self.recipe.guard, stored["guard"])
        self.training_seconds = stored["training_seconds"]

    def to_json(self, best: Mapping[str, float] | None) -> dict[str, Any]:
        """Return what state.json stores. `best` is the step with the lowest validation loss."""
        return {
            "settings": as_tables(self.recipe),
            "data": self.data_digest,
            "compute": dict(self.compute),
            "guard": self.guard.to_json(),
            "best": best,
            "training_seconds": self.training_seconds,
        }


class Checkpointing:
    """Saves and restores a run's weights, optimizer and state. All ranks call every method."""

    def __init__(
        self,
        run_dir: Path,
        parallel: Parallel,
        state: TrainState,
        evaluation: PeriodicEvaluation,
        stopping: GracefulStop,
        write: Callable[[Record], None],
        console: TrainingConsole,
    ) -> None:
        """`stopping` gets the time to reserve for the last checkpoint; `write` records an event."""
        self.run_dir, self.parallel, self.ranks, self.state = run_dir, parallel, parallel.ranks, state
        self.evaluation, self.stopping, self.write, self.console = evaluation, stopping, write, console
        self.saving_seconds = checkpoint_bytes(state.recipe) / EXPECTED_BYTES_PER_SECOND  # until one is written
        self.saver = AsyncCheckpointer(run_dir, state.recipe.checkpoint, self.ranks)

    def restore(self, step: int, of_run: Path | None = None) -> None:
        """Return to the run after `step` steps: to that checkpoint, or for step 0 to freshly initialized weights.

        A run that started from weights has them in a checkpoint of step 0; CheckpointError if that is missing. `of_run`
        is another run, whose checkpoint is read.
        """
        recipe = self.state.recipe
        if step == 0 and not recipe.run.init_from:
            self.state.reset()
            self.parallel.initialize(recipe.run.initial_seed)
            return
        path = RunPaths(of_run or self.run_dir).checkpoint(step)
        if not self.ranks.on_main(path.is_dir):
            raise CheckpointError(
                f"{path}: is missing; it holds the weights of run.init_from = '{recipe.run.init_from}'",
                "copy the whole run directory, or start the run again",
            )
        stored = self.ranks.on_main(lambda: store.load_state(path))
        self.parallel.load(path)
        self.state.restore(stored)

    def newest_valid_step(self, before: int) -> int:
        """Return the step of the newest valid checkpoint up to step `before`; 0 without one."""

        def newest() -> int:
            try:
                path = store.newest_valid(self.run_dir, self.console.note, before=before)
            except CheckpointError:
                return 0
            return parse_step(path.name) or 0

        return self.ranks.on_main(newest)

    def save(self, step: int) -> None:
        """Start to save a checkpoint. If it cannot be written, training continues without it, except at the end."""
        self.start(step)
        if step == self.state.recipe.run.max_steps:
            self.collect(wait=True, required=True)
        elif not self.state.recipe.checkpoint.background:
            self.collect(wait=True)

    def save_and_wait(self, step: int) -> None:
        """Save a checkpoint and wait for it. Raises CheckpointError if it cannot be written."""
        self.start(step)
        self.collect(wait=True, required=True)

    def start(self, step: int) -> None:
        self.collect(wait=True)
        stored = self.state.to_json(self.evaluation.best())
        self.saver.start(step, self.parallel.model, self.parallel.optimizer, stored, self.evaluation.losses)

    def collect(self, wait: bool, required: bool = False) -> None:
        """Record the checkpoint that was started, once it is written; with `wait`, wait for it.

        Where it could not be written, record that, or raise CheckpointError if it is `required`.
        """
        try:
            saved = self.saver.collect(wait)
        except CheckpointError as error:
            if required:
                raise
            self.write(EventRecord(step=self.saver.step, detail=CheckpointFailed(problem=error.problem)))
            self.console.note(f"{error}; training continues")
            return
        if saved is not None and saved.bytes:
            path = saved.path.relative_to(self.run_dir).as_posix()
            record = CheckpointRecord(step=saved.step, path=path, bytes=saved.bytes, seconds=saved.seconds)
            self.write(record)
            self.console.checkpoint(record)
            self.saving_seconds = saved.seconds
            self.reserve_time()

    def reserve_time(self) -> None:
        """Reserve time before run.time_limit for the last checkpoint: two steps and two checkpoints."""
        self.stopping.reserve = 2 * (self.saving_seconds + self.state.slowest_step_seconds) + SAVING_RESERVE_SECONDS
