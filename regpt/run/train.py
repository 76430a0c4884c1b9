"""A run: from a recipe to weights and a journal. `Training.go` is the table of contents."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regpt.base.errors import DONE, CheckpointError, NumericsError, UserError
from regpt.base.files import locked, write_json, write_text
from regpt.base.recipe import Recipe
from regpt.base.settings import load_recipe, to_toml
from regpt.data.batches import Batch, Batches
from regpt.data.prepare import open_or_prepare
from regpt.data.shards import Manifest, TokenWindows, check_fits, read_manifest
from regpt.data.tokenizer import encode
from regpt.model.gpt import GPT
from regpt.model.optimizer import learning_rate, make_optimizer
from regpt.run import checkpoint
from regpt.run.console import Console
from regpt.run.devices import Device, memory_bytes, open_device, seed_step
from regpt.run.environment import environment, identity
from regpt.run.evaluate import validation_loss, validation_windows
from regpt.run.journal import (
    CheckpointRecord,
    EventRecord,
    Journal,
    SampleRecord,
    StepRecord,
    ValidationRecord,
    read_history,
)
from regpt.run.sample import Sampling, continuations
from regpt.run.stopping import Stopped, Stopping


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


def resume(run: Path, overrides: Sequence[str] = (), console: Console | None = None) -> int:
    """Go on from a run's newest whole checkpoint; returns the exit code. Overrides may change no result."""
    recipe = load_recipe(run / "recipe.toml", overrides)
    with console or Console() as console, locked(run / "lock"):
        path = checkpoint.newest(run)
        state = checkpoint.load_state(path)
        manifest = read_manifest(recipe.data.directory)
        expected = identity(recipe, manifest)
        changed = [name for name, value in expected.items() if state.get(name) != value]
        if changed:
            raise CheckpointError(
                f"{path}: was made with another {' and another '.join(changed)}",
                "put that back, or start a new run",
            )
        if read_history(run).status == "finished" and state["step"] == recipe.run.max_steps:
            console.say(f"{run} is complete: {state['step']:,} steps")
            return DONE
        training = Training(recipe, run, open_device(recipe.run), manifest, console)
        checkpoint.load_weights(path, training.model)
        checkpoint.load_moments(path, training.model, training.optimizer)
        return training.go(first_step=state["step"], event="resumed")


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
        self.identity = identity(recipe, manifest)
        self.stopping = Stopping()

    def go(self, first_step: int, event: str) -> int:
        """Train from `first_step` completed steps to the recipe's last; returns the exit code."""
        self.journal = Journal(self.run)
        detail = {"device": self.device.name, "precision": self.device.precision_name, "torch": torch.__version__}
        self.journal.write(EventRecord(step=first_step, event=event, detail=detail))
        history = read_history(self.run)  # after the event, so without what this attempt goes back behind
        self.validated_before = {record.step for record in history.validations}
        self.sampled_before = {record.step for record in history.samples}
        self.announce(first_step)
        step = first_step
        with self.stopping, self.batches() as batches:
            try:
                self.look(step)
                while step < self.recipe.run.max_steps:
                    record = self.train_step(step, batches.at(step))
                    step += 1
                    self.journal.write(record)
                    self.console.step(record, self.recipe.data.total_batch_tokens)
                    self.look(step)
            except Stopped as stopped:
                self.save(step)
                self.finish(step, "stopped", {"signal": stopped.name})
                self.console.say(f"stopped by {stopped.name} after step {step:,}; go on with: regpt resume {self.run}")
                return stopped.code
        self.finish(step, "finished", {})
        self.console.say(f"finished: {step:,} steps; its record: regpt report {self.run}")
        return DONE

    def look(self, step: int) -> None:
        """Validate, sample and save where it is due after so many steps and no attempt before this one did it."""
        asked = self.recipe.evaluation
        if (step == 0 or self.due(step, asked.validation_every)) and step not in self.validated_before:
            self.validate(step)
        if self.due(step, asked.sample_every) and step not in self.sampled_before:
            self.sample(step)
        if self.due(step, self.recipe.checkpoint.every):
            self.save(step)

    def due(self, step: int, every: int) -> bool:
        """Whether something happens after so many steps: at multiples of `every`, unless that is 0, and at the end."""
        return step == self.recipe.run.max_steps or (every > 0 and step > 0 and step % every == 0)

    def train_step(self, step: int, batch: Batch) -> StepRecord:
        """One optimizer step, from `step` to `step + 1` completed steps."""
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
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.grad_clip)
        self.refuse_non_finite(step, loss, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.device.synchronize()
        return StepRecord(
            step=step + 1,
            tokens=(step + 1) * self.recipe.data.total_batch_tokens,
            loss=loss.item(),
            gradient_norm=norm.item(),
            learning_rate=rate,
            seconds=time.perf_counter() - started_at,
            batch=batch.digest,
        )

    def refuse_non_finite(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Stop before anything that is not a number reaches the weights."""
        if torch.isfinite(loss) and torch.isfinite(norm):
            return
        self.save(step)
        self.finish(step, "failed", {"loss": str(loss.item()), "gradient_norm": str(norm.item())})
        raise NumericsError(
            f"step {step + 1}: the loss is {loss.item()} and the gradient norm {norm.item()}",
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
        self.journal.write(record)
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
        self.journal.write(record)
        self.console.sample(record)

    def save(self, step: int) -> None:
        saved = checkpoint.save(self.run, step, self.model, self.optimizer, self.identity)
        if saved.bytes:
            path = saved.path.relative_to(self.run).as_posix()
            record = CheckpointRecord(step=step, path=path, bytes=saved.bytes, seconds=saved.seconds)
            self.journal.write(record)
            self.console.checkpoint(record)

    def finish(self, step: int, event: str, detail: dict[str, Any]) -> None:
        self.journal.write(
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
