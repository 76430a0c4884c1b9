"""Recovery from bad steps and from memory that runs out: skip, roll back, retry with a smaller micro-batch, give up."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from regpt.base.errors import NumericsError
from regpt.base.files import write_text
from regpt.checkpoint import store
from regpt.console.training import TrainingConsole
from regpt.data.batches import Batch, BatchLoader
from regpt.data.shards import TokenWindows
from regpt.machine.device import memory_bytes
from regpt.machine.oom import release_memory, smaller_micro_batch
from regpt.parallel.model import Parallel
from regpt.recipe.settings import to_toml
from regpt.tracking.events import Failed, OutOfMemory, Rollback
from regpt.tracking.journal import EventRecord, Record, SkippedRecord
from regpt.tracking.layout import RunPaths
from regpt.training.checkpointing import Checkpointing, TrainState
from regpt.training.evidence import gradient_norms, write_evidence
from regpt.training.guard import Verdict
from regpt.training.periodic_eval import PeriodicEvaluation

VERDICT_TEXT = {
    Verdict.SKIP: "skipped",
    Verdict.ROLLBACK: "rolling back to a checkpoint and excluding these batches",
    Verdict.STOP: "giving up",
}


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Handles steps that fail. All ranks call every method and come to the same decision."""

    run_dir: Path
    parallel: Parallel
    state: TrainState
    checkpoints: Checkpointing
    evaluation: PeriodicEvaluation
    train_windows: TokenWindows
    write: Callable[[Record], None]
    console: TrainingConsole

    def handle_bad_step(self, step: int, batch: Batch, record: SkippedRecord) -> int:
        """Do what the guard decides about a bad step after `step` completed ones; return the completed steps now.

        Raises NumericsError if the guard gives up.
        """
        guard = self.state.guard
        number = guard.batch_of(step)
        verdict = guard.reject(step, number)
        norms = gradient_norms(self.parallel.model)
        if self.parallel.ranks.is_main:
            folder = write_evidence(
                self.run_dir, record, verdict, number, batch, self.train_windows, norms, self.evaluation.tokenizer
            )
            self.console.note(f"step {record.step:,}: {record.reason}; {VERDICT_TEXT[verdict]} ({folder})")
        self.parallel.optimizer.zero_grad()
        if verdict is Verdict.SKIP:
            self.write(record)
            return step + 1
        return self.roll_back(step) if verdict is Verdict.ROLLBACK else self.give_up(step, record)

    def roll_back(self, step: int) -> int:
        """Return to the newest valid checkpoint before the bad steps, or to the start, and exclude their batches."""
        self.checkpoints.collect(wait=True)
        guard = self.state.guard
        target = self.checkpoints.newest_valid_step(before=guard.last_good_step)
        self.checkpoints.restore(target)
        self.state.guard.exclude([*guard.excluded_batches, *guard.bad_batches], guard.rollbacks + 1)
        detail = Rollback(from_step=step, excluded_batches=list(self.state.guard.excluded_batches))
        self.write(EventRecord(step=target, detail=detail))
        self.evaluation.restore()
        return target

    def give_up(self, step: int, record: SkippedRecord) -> NoReturn:
        """Save the weights after `step` steps and raise NumericsError."""
        self.checkpoints.save_and_wait(step)
        memory = memory_bytes(self.parallel.device.torch_device)
        self.write(EventRecord(step=step, detail=Failed(reason=record.reason, memory_bytes=memory)))
        raise NumericsError(
            f"step {record.step}: {record.reason}; {len(self.state.guard.bad_batches)} steps in a row were bad",
            f"the weights after step {step} are saved; start another run with a lower optimizer.max_lr",
        )

    def retry_with_smaller_micro_batch(self, step: int, first_step: int, batches: BatchLoader) -> int:
        """Begin the attempt again at `first_step` with half the micro-batch; return `first_step`.

        Every batch has the same windows, summed in more parts, so losses differ by rounding only. (Dropout draws
        other masks.) Raises UserError if the micro-batch is one sequence already.
        """
        ranks, guard = self.parallel.ranks, self.state.guard
        self.checkpoints.collect(wait=True)
        self.parallel.optimizer.zero_grad()
        release_memory(self.parallel.device.torch_device.type, self.parallel.device.compiled)
        ranks.on_main(lambda: store.remove_after(self.run_dir, first_step))
        recipe = self.state.recipe
        before, now = recipe.data.micro_batch, smaller_micro_batch(recipe, ranks.size)
        recipe = replace(recipe, data=replace(recipe.data, micro_batch=now))
        self.state.recipe = recipe
        self.evaluation.use_recipe(recipe)
        batches.set_micro_batch(now)
        self.checkpoints.restore(first_step)
        self.state.guard.exclude(guard.excluded_batches, guard.rollbacks)  # they hold in this attempt too
        if ranks.is_main:
            write_text(RunPaths(self.run_dir).recipe, to_toml(recipe))
        detail = OutOfMemory(at_step=step, micro_batch_before=before, micro_batch_after=now)
        self.write(EventRecord(step=first_step, detail=detail))
        self.console.note(
            f"step {step + 1:,}: out of memory with data.micro_batch = {before}; restarting from step {first_step:,}"
            f" with {now}, {recipe.accumulation_steps(ranks.size)} micro-batches a step"
        )
        self.evaluation.restore()
        return first_step
