"""A run's training, on one rank or on many: `Training.go` is the table of contents, `train_step` a step.

Every rank goes through the same lines and comes to the same decisions, because what they decide by is shared before.
"""

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from regpt.base.errors import CheckpointError, NumericsError, UserError
from regpt.base.files import write_text
from regpt.base.recipe import Recipe
from regpt.base.settings import as_tables, to_toml
from regpt.checkpoint import store
from regpt.checkpoint.saver import AsyncCheckpointer
from regpt.data.batches import Batch, BatchLoader
from regpt.data.shards import Manifest, TokenWindows, check_fits
from regpt.distributed.device import Device, memory_bytes
from regpt.distributed.rank_group import RankGroup
from regpt.distributed.signals import STOP_REASONS, GracefulStop, StopRequested
from regpt.model.optimizer import learning_rate
from regpt.tracking.events import (
    CheckpointFailed,
    Failed,
    Finished,
    OutOfMemory,
    Resumed,
    Rollback,
    Started,
    Stopped,
)
from regpt.tracking.journal import (
    CheckpointRecord,
    EventRecord,
    Journal,
    Record,
    SkippedRecord,
    StepRecord,
)
from regpt.tracking.layout import RunPaths, parse_step
from regpt.tracking.trackers import Trackers
from regpt.train.console import Console
from regpt.train.evidence import gradient_norms, write_evidence
from regpt.train.gradients import Gradients
from regpt.train.guard import Guard
from regpt.train.oom import OOM_RETRY_STEPS, is_out_of_memory, release_memory, smaller_micro_batch
from regpt.train.parallel import make_parallel
from regpt.train.periodic_eval import PeriodicEvaluation

SAVING_RESERVE_SECONDS = 5.0  # before run.time_limit, besides two steps and two checkpoints
VERDICT_TEXT = {
    "skip": "passed over",
    "return": "going back to a checkpoint, without these batches",
    "stop": "giving up",
}


class Trainer:
    """A run's parts, put together, and the loop over them."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        device: Device,
        ranks: RankGroup,
        manifest: Manifest,
        console: Console,
        handle_signals: bool = False,
    ) -> None:
        self.recipe, self.run_dir, self.device, self.ranks, self.console = recipe, run, device, ranks, console
        directory = recipe.data.directory
        self.train_windows = TokenWindows(directory, manifest, "train", recipe.model.block_size)
        validation_windows = TokenWindows(directory, manifest, "val", recipe.model.block_size)
        tokens = {"train": manifest.tokens("train"), "val": manifest.tokens("val")}
        windows = {"train": len(self.train_windows), "val": len(validation_windows)}
        check_fits(tokens, windows, recipe.batch_windows, recipe.model.block_size)
        self.parallel = make_parallel(recipe, device, ranks)
        self.model, self.optimizer = self.parallel.model, self.parallel.optimizer
        self.periodic_evaluation = PeriodicEvaluation(
            recipe, run, device, ranks, self.parallel, validation_windows, manifest.digest, console
        )
        self.manifest = manifest
        self.gradients = Gradients(recipe.run.seed, device, ranks, self.parallel, self.check_stop, console)
        self.guard = Guard(recipe.guard)
        self.checkpointer = AsyncCheckpointer(run, recipe.checkpoint, ranks)
        self.trackers = Trackers(recipe.run.sink_names if ranks.is_main else [], console.note)
        self.stopping = GracefulStop(
            recipe.run.time_limit_seconds, several_ranks=ranks.size > 1, handle_signals=handle_signals
        )
        self.training_seconds = self.slowest_step = 0.0
        self.first_step = 0  # of this attempt

    # Going on

    def load(self, path: Path) -> int:
        """Put everything back as a checkpoint has it; returns its step."""
        state = self.ranks.on_main(lambda: store.load_state(path))
        self.parallel.load(path)
        self.guard = Guard(self.recipe.guard, **state["guard"])
        self.training_seconds = state["training_seconds"]
        return int(state["step"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors. The position in the data is its step, and what was left out."""
        return {
            "settings": as_tables(self.recipe),
            "data": self.manifest.digest,
            "guard": self.guard.as_json(),
            "best": self.periodic_evaluation.best(),
            "training_seconds": self.training_seconds,
        }

    def train(self, first_step: int, start: Started) -> str:
        """Train from `first_step` completed steps to the recipe's last; returns what stopped it before, or ""."""
        self.first_step = first_step
        with self.stopping:  # a signal waits for the first look
            unmeasured = self.periodic_evaluation.open(self.write, self.check_stop)
        self.journal = Journal(self.run_dir, self.console.note) if self.ranks.is_main else None
        detail = replace(
            start,
            device=self.device.name,
            precision=self.device.precision_name,
            torch=torch.__version__,
            ranks=self.ranks.size,
            hellaswag_unavailable=unmeasured,
        )
        self.write(EventRecord(step=first_step, detail=detail))
        self.periodic_evaluation.restore()
        self.console.training(
            self.run_dir, self.recipe, first_step, self.device, self.ranks.size, self.parallel.name, unmeasured
        )
        batch = self.recipe.data.total_batch_tokens
        self.trackers.begin(
            self.run_dir, as_tables(self.recipe), batch, first_step if isinstance(start, Resumed) else None
        )
        step = first_step
        with (
            closing(self.train_windows),
            closing(self.periodic_evaluation.windows),
            closing(self.trackers),
            self.stopping,
            self.checkpointer,
            self.batches() as batches,
        ):
            try:
                self.evaluate_and_save(step)
                while step < self.recipe.run.max_steps:
                    self.collect_checkpoint(wait=False)
                    step = self.advance(step, batches)
                    self.evaluate_and_save(step)
                self.collect_checkpoint(wait=True)
            except StopRequested as stopped:
                self.save_now(step)
                self.write(
                    EventRecord(step=step, detail=Stopped(signal=stopped.name, memory_bytes=self.memory_bytes()))
                )
                self.ranks.mark_ended(stopped.code)
                self.console.say(
                    f"stopped by {stopped.name} after step {step:,}; go on with: regpt resume {self.run_dir}"
                )
                return stopped.name
        self.write(EventRecord(step=step, detail=Finished(memory_bytes=self.memory_bytes())))
        self.console.say(f"finished: {step:,} steps; its record: regpt report {self.run_dir}")
        return ""

    def evaluate_and_save(self, step: int) -> None:
        """Look and save where it is due after so many steps."""
        try:
            self.periodic_evaluation.evaluate_due(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fix = (
                f"regpt resume {self.run_dir} data.micro_batch=…"
                if step
                else "delete that run, and start it with less at once"
            )
            raise UserError(
                f"{self.run_dir}: out of memory in validation, HellaSwag or samples at step {step:,}", fix
            ) from error
        if self.recipe.is_due(step, self.recipe.checkpoint.every):
            self.save(step)

    def advance(self, step: int, batches: BatchLoader) -> int:
        """One step and its record; returns the completed steps, which are fewer after going back to a checkpoint."""
        number = self.guard.batch_of(step)
        batch = batches.at(number)
        record = self.try_step(step, batch)
        if record is None:
            return self.retry_with_smaller_micro_batch(step, batches)
        if isinstance(record, StepRecord):
            self.write(record)
            self.console.step(record)
            self.training_seconds += record.seconds
            self.slowest_step = max(self.slowest_step, record.seconds)
            return step + 1
        verdict = self.guard.reject(step, number)
        norms = gradient_norms(self.model)
        if self.ranks.is_main:
            where = write_evidence(self.run_dir, record, verdict, number, batch, self.train_windows, norms)
            self.console.note(f"step {record.step:,}: {record.reason}; {VERDICT_TEXT[verdict]} ({where})")
        self.optimizer.zero_grad(set_to_none=True)
        if verdict == "skip":
            self.write(record)
            return step + 1
        return self.roll_back(step) if verdict == "return" else self.give_up(step, record)

    def try_step(self, step: int, batch: Batch) -> StepRecord | SkippedRecord | None:
        """A step; None where its micro-batch does not fit into the memory of a device.

        On several ranks, one micro-batch is tried before the first steps, without the others: a rank that ran out amid
        a step would leave them waiting for its gradients.
        """
        if (
            step - self.first_step < OOM_RETRY_STEPS
            and self.ranks.size > 1
            and self.ranks.all_reduce_max(self.gradients.runs_out_of_memory(batch))
        ):
            return None
        try:
            return self.train_step(step, batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.ranks.size > 1 or step - self.first_step >= OOM_RETRY_STEPS:
                raise UserError(
                    f"step {step + 1:,}: out of memory ({str(error).splitlines()[0]})",
                    f"go on with less at once: regpt resume {self.run_dir} data.micro_batch=…",
                ) from error
            return None

    def retry_with_smaller_micro_batch(self, step: int, batches: BatchLoader) -> int:
        """Halve the micro-batch and begin this attempt again; returns its first step.

        The batches are the same windows, added up in more parts, so losses differ by rounding alone (dropout's masks
        are another draw).
        """
        self.collect_checkpoint(wait=True)
        self.optimizer.zero_grad(set_to_none=True)
        release_memory(self.device)
        left_out, returns = self.guard.left_out, self.guard.returns  # what went back stays left out
        self.ranks.on_main(lambda: store.remove_after(self.run_dir, self.first_step))
        before, now = self.recipe.data.micro_batch, smaller_micro_batch(self.recipe, self.ranks.size)
        self.recipe = replace(self.recipe, data=replace(self.recipe.data, micro_batch=now))
        batches.set_micro_batch(now)
        if self.first_step:
            self.load(RunPaths(self.run_dir).checkpoint(self.first_step))
        else:
            self.guard, self.training_seconds = Guard(self.recipe.guard), 0.0
            self.parallel.initialize(self.recipe.run.seed)
        self.guard.leave_out(left_out, returns)
        if self.ranks.is_main:
            write_text(RunPaths(self.run_dir).recipe, to_toml(self.recipe))
        detail = OutOfMemory(at_step=step, micro_batch_before=before, micro_batch_after=now)
        self.write(EventRecord(step=self.first_step, detail=detail))
        self.console.note(
            f"step {step + 1:,}: out of memory with data.micro_batch = {before}; beginning again with {now} and"
            f" {self.recipe.accumulation_steps(self.ranks.size)} micro-batches a step"
        )
        self.periodic_evaluation.restore()
        return self.first_step

    def train_step(self, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        """One optimizer step, from `step` to `step + 1` completed steps; without the update where the guard objects."""
        started_at = time.perf_counter()
        loss, norm, digest = self.gradients.compute(step, batch)
        tokens = (step + 1) * self.recipe.data.total_batch_tokens
        if reason := self.guard.reason(loss, norm):
            seconds = time.perf_counter() - started_at
            return SkippedRecord(step=step + 1, tokens=tokens, reason=reason, batch=digest, seconds=seconds)
        self.guard.accept(loss, norm)
        self.parallel.clip(norm)
        rate = learning_rate(step, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.device.synchronize()
        return StepRecord(
            step=step + 1,
            tokens=tokens,
            loss=loss,
            gradient_norm=norm,
            learning_rate=rate,
            seconds=time.perf_counter() - started_at,
            batch=digest,
        )

    def check_stop(self) -> None:
        """Between two pieces of work: if anything asks one rank to stop, all raise Stopped here."""
        reasons = list(STOP_REASONS)
        name = reasons[self.ranks.all_reduce_max(reasons.index(self.stopping.stop_reason()))]
        if name:
            raise StopRequested(name, STOP_REASONS[name])

    def roll_back(self, step: int) -> int:
        """To the last whole checkpoint before the bad steps, or to the beginning, and on without their batches."""
        self.collect_checkpoint(wait=True)
        bad, left_out, returns = self.guard.bad_batches, self.guard.left_out, self.guard.returns
        back = self.ranks.on_main(lambda: self.last_good_checkpoint(self.guard.bad_since))
        if back:
            self.load(RunPaths(self.run_dir).checkpoint(back))
        else:
            self.guard = Guard(self.recipe.guard)
            self.parallel.initialize(self.recipe.run.seed)
        self.guard.leave_out([*left_out, *bad], returns + 1)
        self.write(EventRecord(step=back, detail=Rollback(from_step=step, excluded_batches=list(self.guard.left_out))))
        self.periodic_evaluation.restore()
        return back

    def last_good_checkpoint(self, before: int) -> int:
        """The step of the newest whole checkpoint up to there; 0 where there is none."""
        try:
            path = store.newest_valid(self.run_dir, self.console.note, before=before)
        except CheckpointError:
            return 0
        return parse_step(path.name) or 0

    def give_up(self, step: int, record: SkippedRecord) -> NoReturn:
        self.save_now(step)
        self.write(EventRecord(step=step, detail=Failed(reason=record.reason, memory_bytes=self.memory_bytes())))
        raise NumericsError(
            f"step {record.step}: {record.reason}, and {len(self.guard.bad_batches)} steps in a row were bad",
            f"the weights after step {step} are saved; start another run with a lower optimizer.max_lr",
        )

    def save(self, step: int) -> None:
        """Begin to save; a checkpoint that cannot be written is said, and the run goes on without it."""
        self.collect_checkpoint(wait=True)
        self.checkpointer.start(step, self.model, self.optimizer, self.state(), self.periodic_evaluation.losses)
        if step == self.recipe.run.max_steps:
            self.collect_checkpoint(wait=True, must=True)
        elif not self.recipe.checkpoint.background:
            self.collect_checkpoint(wait=True)

    def save_now(self, step: int) -> None:
        """Save and wait until it is there. Raises CheckpointError where it cannot be written."""
        self.collect_checkpoint(wait=True)
        self.checkpointer.start(step, self.model, self.optimizer, self.state(), self.periodic_evaluation.losses)
        self.collect_checkpoint(wait=True, must=True)

    def collect_checkpoint(self, wait: bool, must: bool = False) -> None:
        """Write down the checkpoint that was begun, if it is there by now. Raises what went wrong if it `must` be."""
        try:
            saved = self.checkpointer.collect(wait)
        except CheckpointError as error:
            if must:
                raise
            self.write(EventRecord(step=self.checkpointer.step, detail=CheckpointFailed(problem=error.problem)))
            self.console.note(f"{error}; the run goes on")
            return
        if saved is not None and saved.bytes:
            path = saved.path.relative_to(self.run_dir).as_posix()
            record = CheckpointRecord(step=saved.step, path=path, bytes=saved.bytes, seconds=saved.seconds)
            self.write(record)
            self.console.checkpoint(record)
            self.stopping.reserve = 2 * (saved.seconds + self.slowest_step) + SAVING_RESERVE_SECONDS

    def write(self, record: Record) -> None:
        """Into the journal first, and then wherever else it goes; rank 0's part."""
        if self.journal is None:
            return
        self.journal.write(record)
        self.trackers.write(record)

    def memory_bytes(self) -> int:
        """Return the most memory that this rank has used."""
        return memory_bytes(self.device.torch_device)

    def batches(self) -> BatchLoader:
        return BatchLoader(
            self.train_windows,
            batch_windows=self.recipe.batch_windows,
            micro_batch=self.recipe.data.micro_batch,
            seed=self.recipe.run.seed,
            shuffled=self.recipe.data.order == "shuffled",
            rank=self.ranks.rank,
            ranks=self.ranks.size,
        )
