"""The training loop and one optimizer step, on one rank or on several.

Every rank runs the same lines and comes to the same decisions, because the values that decide are shared before.
"""

import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import torch

from regpt.base.errors import UserError
from regpt.console.training import Console
from regpt.data.batches import Batch, BatchLoader
from regpt.data.shards import Manifest
from regpt.data.sizes import open_windows
from regpt.distributed.rank_group import RankGroup
from regpt.distributed.signals import STOP_REASONS, GracefulStop, StopRequested
from regpt.machine.attention import attention_backend
from regpt.machine.compute import compute_environment
from regpt.machine.device import Device, memory_bytes, reserved_bytes
from regpt.machine.env import current_launch
from regpt.machine.load import LoadMeter
from regpt.machine.oom import OOM_RETRY_STEPS, is_out_of_memory, release_memory
from regpt.model.moe import balance_experts
from regpt.optimizer.schedule import learning_rate
from regpt.parallel.making import make_parallel
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import as_tables
from regpt.tokenization.opening import tokenizer_in
from regpt.tracking.events import Ended, Finished, Resumed, Started, Stopped
from regpt.tracking.journal import EventRecord, ExpertLoadRecord, Journal, Record, SkippedRecord, StepRecord
from regpt.tracking.trackers import Trackers
from regpt.training.checkpointing import Checkpointing, TrainState
from regpt.training.gradients import Gradients
from regpt.training.periodic_eval import PeriodicEvaluation, open_hellaswag
from regpt.training.recovery import Recovery


class Trainer:
    """The parts of a run and the loop over them."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        device: Device,
        ranks: RankGroup,
        manifest: Manifest,
        console: Console,
        handle_signals: bool = False,
    ) -> None:
        """Open the data, build the model and prepare the evaluations. Nothing is written.

        Raises UserError where a dataset is too small or the file of an evaluation cannot be used.
        """
        self.run_dir, self.device, self.ranks = run_dir, device, ranks
        self.console = console.training_console(recipe, device, ranks.size)
        compute = compute_environment(device, ranks.size).to_json()
        self.manifest, self.state = manifest, TrainState(recipe, manifest.digest, compute)
        self.train_windows, validation_windows = open_windows(recipe, manifest)
        self.stopping = GracefulStop(
            recipe.run.time_limit_seconds, several_ranks=ranks.size > 1, handle_signals=handle_signals
        )
        self.parallel = make_parallel(recipe, device, ranks)
        self.model, self.optimizer = self.parallel.model, self.parallel.optimizer
        self.tokenizer = tokenizer_in(recipe.data.directory, manifest.tokenizer)
        self.model.end_of_text = manifest.vocabulary.end_of_text
        self.gradients = Gradients(recipe.run.seed, device, ranks, self.parallel, self.check_stop, self.console)
        self.trackers = Trackers(recipe.run.sink_names if ranks.is_main else [], console.note)
        self.journal: Journal | None = None  # opened by `train`, on rank 0
        with self.stopping:  # a signal during a download takes effect in the loop
            hellaswag, self.hellaswag_unavailable = open_hellaswag(recipe, ranks)
        self.evaluation = PeriodicEvaluation(
            recipe,
            run_dir,
            self.parallel,
            validation_windows,
            manifest.digest,
            self.tokenizer,
            hellaswag,
            self.write,
            self.check_stop,
            self.console,
        )
        self.checkpoints = Checkpointing(
            run_dir, self.parallel, self.state, self.evaluation, self.stopping, self.write, self.console
        )
        self.recovery = Recovery(
            run_dir=run_dir,
            parallel=self.parallel,
            state=self.state,
            checkpoints=self.checkpoints,
            evaluation=self.evaluation,
            train_windows=self.train_windows,
            write=self.write,
            console=self.console,
        )
        self.first_step = 0  # of this attempt
        self.load = LoadMeter(current_launch().local_ranks)

    @property
    def recipe(self) -> Recipe:
        """The recipe as it is now: an out-of-memory retry changes its micro-batch."""
        return self.state.recipe

    def restore(self, step: int, of_run: Path | None = None) -> None:
        """Load the checkpoint of a step, of this run or another one, or initialize the weights for step 0."""
        self.checkpoints.restore(step, of_run)

    def train(self, first_step: int, start: Started) -> str:
        """Train from `first_step` completed steps to the last; return "", or what stopped the run before.

        Call `restore` first. `start` says whether the run starts or resumes.
        """
        self.first_step = first_step
        self.begin(start)
        step = first_step
        with (
            closing(self.train_windows),
            closing(self.evaluation.windows),
            closing(self.trackers),
            self.stopping,
            self.checkpoints.saver,
            self.batches() as batches,
        ):
            try:
                self.evaluate_and_save(step)
                while step < self.recipe.run.max_steps:
                    self.checkpoints.collect(wait=False)
                    step = self.advance(step, batches)
                    self.evaluate_and_save(step)
                self.checkpoints.collect(wait=True)
            except StopRequested as stopped:
                self.checkpoints.save_and_wait(step)
                self.write(EventRecord(step=step, detail=Stopped(signal=stopped.name, **asdict(self.usage()))))
                self.ranks.mark_ended(stopped.code)
                self.console.print_line(
                    f"stopped by {stopped.name} after step {step:,}; resume with: regpt resume {self.run_dir}"
                )
                return stopped.name
        self.write(EventRecord(step=step, detail=Finished(**asdict(self.usage()))))
        self.console.print_line(f"finished: {step:,} steps; write a report with: regpt report {self.run_dir}")
        return ""

    def begin(self, start: Started) -> None:
        """Open journal and trackers, and describe the attempt in them and on the console."""
        self.journal = Journal(self.run_dir, self.console.note) if self.ranks.is_main else None
        detail = replace(
            start,
            device=self.device.name,
            precision=self.device.precision_name,
            torch=torch.__version__,
            ranks=self.ranks.size,
            attention=attention_backend(self.recipe, self.device),
            hellaswag_unavailable=self.hellaswag_unavailable,
        )
        self.write(EventRecord(step=self.first_step, detail=detail))
        self.evaluation.restore()
        self.console.begin(self.run_dir, self.first_step, self.parallel.name, self.hellaswag_unavailable)
        self.trackers.begin(
            self.run_dir,
            as_tables(self.recipe),
            self.recipe.batch_tokens,
            self.first_step if isinstance(start, Resumed) else None,
        )

    def evaluate_and_save(self, step: int) -> None:
        """Evaluate and save what is due after `step` steps."""
        while not self.evaluate(step):
            release_memory(self.device.torch_device.type, self.device.compiled)
        if self.recipe.is_due(step, self.recipe.checkpoint.every):
            self.checkpoints.save(step)

    def evaluate(self, step: int) -> bool:
        """Do the evaluations that are due. Return False if memory ran out, after which smaller groups are tried.

        Raises UserError if that is not possible: with several ranks, of which others wait, and with single sequences.
        """
        try:
            self.evaluation.evaluate_due(step)
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.ranks.size == 1 and self.evaluation.use_less_memory():
                self.console.note(f"out of memory in an evaluation at step {step:,}; trying again in smaller groups")
                return False
            fix = (
                f"regpt resume {self.run_dir} data.micro_batch=…"
                if step
                else "delete that run, and start it again with a smaller data.micro_batch"
            )
            raise UserError(
                f"{self.run_dir}: out of memory in validation, HellaSwag or samples at step {step:,}", fix
            ) from error

    def advance(self, step: int, batches: BatchLoader) -> int:
        """Do and record one step; return the completed steps, which are fewer after a rollback or a retry."""
        batch = batches.at(self.state.guard.batch_of(step), step)
        record = self.try_step(step, batch)
        if record is None:
            return self.recovery.retry_with_smaller_micro_batch(step, self.first_step, batches)
        if isinstance(record, SkippedRecord):
            return self.recovery.handle_bad_step(step, batch, record)
        self.write(record)
        loads = self.gradients.expert_loads
        if loads is not None and self.recipe.is_due(step + 1, self.recipe.evaluation.validation_every):
            self.write(ExpertLoadRecord(step=record.step, tokens=record.tokens, loads=loads.tolist()))
        self.console.step(record)
        self.state.training_seconds += record.seconds
        if step > self.first_step:  # the first step of an attempt may compile
            self.state.slowest_step_seconds = max(self.state.slowest_step_seconds, record.seconds)
        self.checkpoints.reserve_time()
        return step + 1

    def try_step(self, step: int, batch: Batch) -> StepRecord | SkippedRecord | None:
        """Do one step; return None if a device runs out of memory.

        With several ranks, each first tries one micro-batch without the others before the first steps: a rank that
        runs out of memory during a step would leave the others waiting for its gradients.
        """
        is_early = step - self.first_step < OOM_RETRY_STEPS
        if is_early and self.ranks.size > 1 and self.ranks.all_reduce_max(self.gradients.runs_out_of_memory(batch)):
            return None
        try:
            return self.train_step(step, batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.ranks.size > 1 or not is_early:
                raise UserError(
                    f"step {step + 1:,}: out of memory ({str(error).splitlines()[0]})",
                    f"resume with a smaller micro-batch: regpt resume {self.run_dir} data.micro_batch=…",
                ) from error
            return None

    def train_step(self, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        """Do one optimizer step, from `step` to `step + 1` completed steps; without the update if the guard rejects."""
        started_at = time.perf_counter()
        loss, norm, digest = self.gradients.compute(step, batch)
        tokens = self.recipe.tokens_after(step + 1)
        if reason := self.state.guard.rejection(loss, norm):
            seconds = time.perf_counter() - started_at
            return SkippedRecord(step=step + 1, tokens=tokens, reason=reason, batch=digest, seconds=seconds)
        self.state.guard.accept(loss, norm)
        self.parallel.update(norm, step)
        if (loads := self.gradients.expert_loads) is not None:
            balance_experts(self.model, loads, self.recipe.model.expert_balance_rate)
        return StepRecord(
            step=step + 1,
            tokens=tokens,
            loss=loss,
            gradient_norm=norm,
            learning_rate=learning_rate(step, self.recipe),
            seconds=time.perf_counter() - started_at,
            batch=digest,
        )

    def check_stop(self) -> None:
        """Raise StopRequested on all ranks if one of them was asked to stop; called between two pieces of work."""
        reasons = list(STOP_REASONS)
        name = reasons[self.ranks.all_reduce_max(reasons.index(self.stopping.stop_reason()))]
        if name:
            raise StopRequested(name, STOP_REASONS[name])

    def write(self, record: Record) -> None:
        """Write a record to the journal first, then to the trackers; on ranks other than 0 do nothing."""
        if self.journal is None:
            return
        self.journal.write(record)
        self.trackers.write(record)

    def usage(self) -> Ended:
        """Return what the last event of an attempt says about the machine."""
        device = self.device.torch_device
        return Ended(
            memory_bytes=memory_bytes(device),
            reserved_bytes=reserved_bytes(device),
            other_cpu_share=self.load.other_share(),
        )

    def batches(self) -> BatchLoader:
        return BatchLoader(
            self.train_windows,
            positions=self.recipe.batch_positions,
            micro_batch=self.recipe.data.micro_batch,
            seed=self.recipe.run.seed,
            shuffled=self.recipe.data.order == "shuffled",
            rank=self.ranks.rank,
            ranks=self.ranks.size,
        )
