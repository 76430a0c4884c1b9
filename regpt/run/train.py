"""A run: from a recipe to weights and a journal. `Training.go` is the table of contents."""

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regpt.base.errors import DONE, CheckpointError, NumericsError, UserError
from regpt.base.files import locked, write_json, write_text
from regpt.base.recipe import Recipe
from regpt.base.settings import as_tables, to_toml
from regpt.data.batches import Batch, Batches
from regpt.data.prepare import open_or_prepare
from regpt.data.shards import Manifest, TokenWindows, check_fits
from regpt.data.tokenizer import encode
from regpt.model.gpt import GPT
from regpt.model.optimizer import learning_rate, make_optimizer
from regpt.run import checkpoint
from regpt.run.console import Console
from regpt.run.devices import Device, memory_bytes, open_device, seed_step
from regpt.run.environment import environment
from regpt.run.evaluate import validation_loss, validation_windows
from regpt.run.evidence import write_evidence
from regpt.run.guard import Guard
from regpt.run.journal import (
    CheckpointRecord,
    EventRecord,
    Journal,
    Record,
    SampleRecord,
    SkippedRecord,
    StepRecord,
    ValidationRecord,
    read_history,
)
from regpt.run.sample import Sampling, continuations
from regpt.run.sinks import Sinks
from regpt.run.stopping import Stopped, Stopping

SAVING_RESERVE_SECONDS = 5.0  # before run.time_limit, besides two steps and two checkpoints
IN_WORDS = {
    "skip": "passed over",
    "return": "going back to a checkpoint, without these batches",
    "stop": "giving up",
}


def train(recipe: Recipe, run: Path, console: Console | None = None) -> int:
    """Start a run in a directory that does not exist yet; returns the exit code.

    Everything that can be refused is refused before the directory is made.
    """
    with console or Console() as console:
        if run.exists():
            raise UserError(
                f"{run}: a run of this name exists already",
                f"go on with `regpt resume {run.name}`, or start another: --name …",
            )
        device = open_device(recipe.run)
        with console.stoppable():
            manifest = open_or_prepare(recipe, console)
        training = Training(recipe, run, device, manifest, console)
        with started(run):
            write_text(run / "recipe.toml", to_toml(recipe))
            write_json(run / "environment.json", environment(recipe, device, manifest))
            with locked(run / "lock"):
                training.model.initialize(recipe.run.seed)
                return training.go(first_step=0, event="started")


class Training:
    """A run's parts, put together, and the loop over them."""

    def __init__(self, recipe: Recipe, run: Path, device: Device, manifest: Manifest, console: Console) -> None:
        self.recipe, self.run, self.device, self.console = recipe, run, device, console
        directory = recipe.data.directory
        self.train_windows = TokenWindows(directory, manifest, "train", recipe.model.block_size)
        self.validation_windows = TokenWindows(directory, manifest, "val", recipe.model.block_size)
        tokens = {"train": manifest.tokens("train"), "val": manifest.tokens("val")}
        windows = {"train": len(self.train_windows), "val": len(self.validation_windows)}
        check_fits(tokens, windows, recipe.batch_windows, recipe.model.block_size)
        self.model = GPT(recipe.model).to(device.place)
        self.optimizer = make_optimizer(self.model, recipe)
        # Evaluation and sampling use `model`, the same weights uncompiled, because their shapes vary.
        self.trained_model = torch.compile(self.model) if device.compiled else self.model
        self.data_digest = manifest.digest
        self.guard = Guard(recipe.guard)
        self.saver = checkpoint.Saver(run, recipe.checkpoint)
        self.sinks = Sinks(recipe.run.sink_names, console.note)
        self.stopping = Stopping(recipe.run.time_limit_seconds)
        self.training_seconds = self.slowest_step = 0.0

    # Going on

    def load(self, path: Path) -> int:
        """Put everything back as a checkpoint has it; returns its step."""
        state = checkpoint.load_state(path)
        checkpoint.load_weights(path, self.model)
        checkpoint.load_moments(path, self.model, self.optimizer)
        self.guard = Guard(self.recipe.guard, **state["guard"])
        self.training_seconds = state["training_seconds"]
        return int(state["step"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors. The position in the data is its step, and what was left out."""
        return {
            "settings": as_tables(self.recipe),
            "data": self.data_digest,
            "guard": self.guard.as_json(),
            "best": self.best(),
            "training_seconds": self.training_seconds,
        }

    def best(self) -> dict[str, float] | None:
        """The step with the lowest validation loss so far."""
        if not self.validation_losses:
            return None
        step = min(self.validation_losses, key=lambda step: self.validation_losses[step])
        return {"step": step, "validation_loss": self.validation_losses[step]}

    def go(self, first_step: int, event: str, detail: dict[str, Any] | None = None) -> int:
        """Train from `first_step` completed steps to the recipe's last; returns the exit code."""
        self.journal = Journal(self.run, self.console.note)
        about = {"device": self.device.name, "precision": self.device.precision_name, "torch": torch.__version__}
        self.write(EventRecord(step=first_step, event=event, detail={**about, **(detail or {})}))
        self.recall()
        self.announce(first_step)
        self.sinks.begin(self.run, as_tables(self.recipe))
        step = first_step
        with closing(self.sinks), self.stopping, self.saver, self.batches() as batches:
            try:
                self.look(step)
                while step < self.recipe.run.max_steps:
                    self.take_saved(wait=False)
                    step = self.advance(step, batches)
                    self.look(step)
                self.take_saved(wait=True)
            except Stopped as stopped:
                self.save_now(step)
                self.finish(step, "stopped", {"signal": stopped.name})
                self.console.say(f"stopped by {stopped.name} after step {step:,}; go on with: regpt resume {self.run}")
                return stopped.code
        self.finish(step, "finished", {})
        self.console.say(f"finished: {step:,} steps; its record: regpt report {self.run}")
        return DONE

    def recall(self) -> None:
        """What earlier attempts have looked at already; after the event, so without what this one goes back behind."""
        history = read_history(self.run)
        self.validation_losses = {record.step: record.loss for record in history.validations}
        self.sampled_before = {record.step for record in history.samples}

    def look(self, step: int) -> None:
        """Validate, sample and save where it is due after so many steps and no attempt before this one did it."""
        asked = self.recipe.evaluation
        if (step == 0 or self.due(step, asked.validation_every)) and step not in self.validation_losses:
            self.validate(step)
        if self.due(step, asked.sample_every) and step not in self.sampled_before:
            self.sample(step)
        if self.due(step, self.recipe.checkpoint.every):
            self.save(step)

    def due(self, step: int, every: int) -> bool:
        """Whether something happens after so many steps: at multiples of `every`, unless that is 0, and at the end."""
        return step == self.recipe.run.max_steps or (every > 0 and step > 0 and step % every == 0)

    def advance(self, step: int, batches: Batches) -> int:
        """One step and its record; returns the completed steps, which are fewer after going back to a checkpoint."""
        number = self.guard.batch_of(step)
        batch = batches.at(number)
        record = self.train_step(step, batch)
        if isinstance(record, StepRecord):
            self.write(record)
            self.console.step(record, self.recipe.data.total_batch_tokens)
            self.training_seconds += record.seconds
            self.slowest_step = max(self.slowest_step, record.seconds)
            return step + 1
        verdict = self.guard.refuse(step, number)
        where = write_evidence(self.run, record, verdict, number, batch, self.model)
        self.optimizer.zero_grad(set_to_none=True)
        self.console.note(f"step {record.step:,}: {record.reason}; {IN_WORDS[verdict]} ({where})")
        if verdict == "skip":
            self.write(record)
            return step + 1
        return self.go_back(step) if verdict == "return" else self.give_up(step, record)

    def train_step(self, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        """One optimizer step, from `step` to `step + 1` completed steps; without the update where the guard objects."""
        started_at = time.perf_counter()
        rate = learning_rate(step, self.recipe)
        seed_step(self.recipe.run.seed, step)
        loss = torch.zeros((), device=self.device.place)
        for number, (inputs, targets) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
            self.stopping.check()
            if number:
                self.console.busy(f"step {step + 1:,}: micro-batch", number, len(batch.inputs))
            with self.device.autocast():
                micro_loss = self.trained_model(self.on_device(inputs), self.on_device(targets)) / len(batch.inputs)
            micro_loss.backward()
            loss += micro_loss.detach()
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        known_loss, known_norm = loss.item(), norm.item()
        tokens = (step + 1) * self.recipe.data.total_batch_tokens
        if reason := self.guard.reason(known_loss, known_norm):
            seconds = time.perf_counter() - started_at
            return SkippedRecord(step=step + 1, tokens=tokens, reason=reason, batch=batch.digest, seconds=seconds)
        self.guard.accept(known_loss, known_norm)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.recipe.optimizer.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.device.synchronize()
        return StepRecord(
            step=step + 1,
            tokens=tokens,
            loss=known_loss,
            gradient_norm=known_norm,
            learning_rate=rate,
            seconds=time.perf_counter() - started_at,
            batch=batch.digest,
        )

    def go_back(self, step: int) -> int:
        """To the last whole checkpoint before the bad steps, or to the beginning, and on without their batches."""
        self.take_saved(wait=True)
        bad, left_out, returns = self.guard.bad_batches, self.guard.left_out, self.guard.returns
        try:
            back = self.load(checkpoint.newest(self.run, self.console.note, before=self.guard.bad_since))
        except CheckpointError:
            back = 0
            self.guard = Guard(self.recipe.guard)
            self.model.initialize(self.recipe.run.seed)
            self.optimizer.state.clear()
        self.guard.leave_out([*left_out, *bad], returns + 1)
        detail = {"from": step, "left_out": self.guard.left_out}
        self.write(EventRecord(step=back, event="went back", detail=detail))
        self.recall()
        return back

    def give_up(self, step: int, record: SkippedRecord) -> NoReturn:
        self.save_now(step)
        self.finish(step, "failed", {"reason": record.reason})
        raise NumericsError(
            f"step {record.step}: {record.reason}, and {len(self.guard.bad_batches)} steps in a row were bad",
            f"the weights after step {step} are saved; start another run with a lower optimizer.max_lr",
        )

    def validate(self, step: int) -> None:
        started_at = time.perf_counter()
        count = validation_windows(self.recipe, self.validation_windows)
        loss = validation_loss(self.model, self.validation_windows, self.recipe, self.device, self.between_windows)
        record = ValidationRecord(
            step=step,
            tokens=step * self.recipe.data.total_batch_tokens,
            loss=loss,
            windows=count,
            seconds=time.perf_counter() - started_at,
        )
        self.write(record)
        self.validation_losses[step] = loss
        self.console.validation(record)

    def between_windows(self, done: int, of: int) -> None:
        self.stopping.check()
        if done:
            self.console.busy("validation: window", done, of)

    def sample(self, step: int) -> None:
        asked = self.recipe.evaluation
        if asked.sample_count == 0:
            return
        texts = continuations(
            self.model,
            asked.sample_prompt,
            asked.sample_count,
            max(0, asked.sample_tokens - len(encode(asked.sample_prompt))),
            Sampling(top_k=asked.sample_top_k, seed=asked.sample_seed),
            self.stopping.check,
        )
        record = SampleRecord(
            step=step, prompt=asked.sample_prompt, texts=texts, seed=asked.sample_seed, top_k=asked.sample_top_k
        )
        self.write(record)
        self.console.sample(record)

    def save(self, step: int) -> None:
        """Begin to save; a checkpoint that cannot be written is said, and the run goes on without it."""
        self.take_saved(wait=True)
        self.saver.begin(step, self.model, self.optimizer, self.state(), self.validation_losses)
        if step == self.recipe.run.max_steps:
            self.take_saved(wait=True, must=True)
        elif not self.recipe.checkpoint.background:
            self.take_saved(wait=True)

    def save_now(self, step: int) -> None:
        """Save and wait until it is there. Raises CheckpointError where it cannot be written."""
        self.take_saved(wait=True)
        self.saver.begin(step, self.model, self.optimizer, self.state(), self.validation_losses)
        self.take_saved(wait=True, must=True)

    def take_saved(self, wait: bool, must: bool = False) -> None:
        """Write down the checkpoint that was begun, if it is there by now. Raises what went wrong if it `must` be."""
        try:
            saved = self.saver.finished(wait)
        except CheckpointError as error:
            if must:
                raise
            step = self.saver.memory.step if self.saver.memory else 0
            self.write(EventRecord(step=step, event="not saved", detail={"problem": error.problem}))
            self.console.note(f"{error}; the run goes on")
            return
        if saved is not None and saved.bytes:
            path = saved.path.relative_to(self.run).as_posix()
            record = CheckpointRecord(step=saved.step, path=path, bytes=saved.bytes, seconds=saved.seconds)
            self.write(record)
            self.console.checkpoint(record)
            self.stopping.reserve = 2 * (saved.seconds + self.slowest_step) + SAVING_RESERVE_SECONDS

    def write(self, record: Record) -> None:
        """Into the journal first, and then wherever else it goes."""
        self.journal.write(record)
        self.sinks.write(record, self.recipe.data.total_batch_tokens)

    def finish(self, step: int, event: str, detail: dict[str, Any]) -> None:
        self.write(
            EventRecord(step=step, event=event, detail={**detail, "memory_bytes": memory_bytes(self.device.place)})
        )

    def batches(self) -> Batches:
        return Batches(
            self.train_windows,
            batch_windows=self.recipe.batch_windows,
            micro_batch=self.recipe.data.micro_batch,
            seed=self.recipe.run.seed,
            shuffled=self.recipe.data.order == "shuffled",
        )

    def on_device(self, array: NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.place.type == "cuda":
            return tensor.pin_memory().to(self.device.place, non_blocking=True)
        return tensor.to(self.device.place)

    def announce(self, first_step: int) -> None:
        recipe, device = self.recipe, self.device
        self.console.say(
            f"{self.run} · {recipe.model.parameters:,} parameters · {device.name} · {device.precision_name}"
            f"{' · compiled' if device.compiled else ''} · {recipe.data.total_batch_tokens:,} tokens a step"
            f" = {recipe.accumulation_steps()} x {recipe.data.micro_batch} x {recipe.model.block_size}"
        )
        if recipe.optimizer.warmup_steps >= recipe.run.max_steps:
            self.console.say(
                f"note: optimizer.warmup_steps = {recipe.optimizer.warmup_steps:,} and run.max_steps ="
                f" {recipe.run.max_steps:,}: the learning rate never reaches optimizer.max_lr"
            )
        if recipe.evaluation.hellaswag_every:
            self.console.say("note: HellaSwag is not measured by this version of regpt (evaluation.hellaswag_every)")
        self.console.training(first_step, recipe.run.max_steps, recipe.model.flops_per_token, device.peak_flops)


@contextmanager
def started(run: Path) -> Iterator[None]:
    """The directory of a new run; gone again if the run ends in an error before its journal begins."""
    run.mkdir(parents=True)
    try:
        yield
    except BaseException:
        if not (run / "journal.jsonl").exists():
            shutil.rmtree(run)
        raise
