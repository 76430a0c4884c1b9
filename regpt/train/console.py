"""What a person sees of a run: a live line in a terminal, a few plain lines in a pipe."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from regpt.base.recipe import Recipe
from regpt.data.shards import Manifest
from regpt.distributed.device import Device
from regpt.distributed.signals import GracefulStop
from regpt.tracking.journal import CheckpointRecord, History, SampleRecord, StepRecord, TaskRecord, ValidationRecord

QUIET_SECONDS = 60.0  # between step lines in a pipe


class Console:
    """Prints; decides nothing and remembers nothing but how long things take."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        self.terminal = terminal or Terminal(highlight=False, soft_wrap=True)
        self.live = self.terminal.is_terminal
        self.progress: Progress | None = None
        self.bar = TaskID(0)
        self.peak_flops = 0.0
        self.seconds_per_step = 0.0
        self.validation_seconds = self.task_seconds = 0.0  # of the last look
        self.last_line_at = time.perf_counter()
        self.stopping: GracefulStop | None = None  # whose signals end a preparation
        self.looking_since = 0.0

    def say(self, text: str) -> None:
        try:
            self.terminal.print(text, markup=False)
        except (SystemExit, OSError):  # whoever read our output has left; the run goes on without
            self.terminal = Terminal(file=io.StringIO())

    def __enter__(self) -> "Console":
        if self.live:
            room = max(20, self.terminal.width - 20)  # beside the name and the bar
            narrow = Column(no_wrap=True, overflow="ellipsis", max_width=room)
            status = TextColumn("{task.fields[status]}", table_column=narrow)
            self.progress = Progress(
                TextColumn("{task.description}", table_column=Column(min_width=5)),
                BarColumn(bar_width=10, table_column=Column(min_width=10)),
                status,
                console=self.terminal,
                transient=True,
            )
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    # Preparation of data

    def started(self, description: str, size: int, workers: int) -> None:
        at_once = f", {workers} workers" if workers > 1 else ""
        self.say(f"preparing {description} ({size / 1e6:,.1f} MB{at_once})")
        self.prepared_size, self.prepared_done = max(1, size), 0
        self.prepared_tokens = self.tokens_now = self.text_bytes_now = 0
        self.preparing_since = time.perf_counter()
        if self.progress is not None:
            self.bar = self.progress.add_task("prepare", total=size, status="")

    def resumed(self, done: int, tokens: int) -> None:
        """An earlier attempt did so many bytes of the corpus."""
        self.say(f"going on after {tokens:,} tokens, {done / self.prepared_size:.0%} of it")
        self.prepared_done, self.prepared_tokens = done, tokens

    def advanced(self, size: int, tokens: int, text_bytes: int) -> None:
        self.prepared_done += size
        self.prepared_tokens += tokens
        self.tokens_now += tokens
        self.text_bytes_now += text_bytes
        seconds = time.perf_counter() - self.preparing_since
        done = self.prepared_done / self.prepared_size
        done_now = self.tokens_now / max(1, self.prepared_tokens) * done
        left = timedelta(seconds=round(seconds / max(done_now, 1e-9) * max(0.0, 1 - done)))
        status = (
            f"{done:.0%} · {left} left · {self.prepared_tokens:,} tokens"
            f" · {self.text_bytes_now / seconds / 1e6:,.1f} MB/s of text · {self.tokens_now / seconds:,.0f} tokens/s"
        )
        if self.progress is not None:
            self.progress.update(self.bar, completed=self.prepared_done, status=status)
        else:
            self.say_seldom(status)

    def reading(self, what: str) -> "ReadingProgress":
        """Return the progress of files being read; `what` names the work in the bar."""
        if self.progress is not None:
            self.bar = self.progress.add_task(what, total=None, status="")
        return ReadingProgress(self)

    def fetching(self, name: str, done: int, size: int) -> None:
        status = f"fetching {name}: {done / 1e6:,.0f} of {size / 1e6:,.0f} MB"
        if self.progress is not None:
            self.progress.update(self.bar, status=status)
        else:
            self.say_seldom(status)

    def note(self, text: str) -> None:
        self.say(f"note: {text}")

    @contextmanager
    def stoppable(self, several_ranks: bool = False) -> Iterator[None]:
        """Within, a signal ends a preparation where nothing is lost: `check` raises Stopped."""
        with GracefulStop(several_ranks=several_ranks) as self.stopping:
            yield
        self.stopping = None

    def raise_if_stopped(self) -> None:
        """Called between two pieces of a preparation; raises Stopped where `stopping` has had a signal."""
        if self.stopping is not None:
            self.stopping.check()

    def finished(self, path: str, manifest: Manifest, seconds: float) -> None:
        statistics = manifest.statistics
        self.say(
            f"{path}: {statistics['documents']:,} documents, {manifest.tokens('train'):,} training and"
            f" {manifest.tokens('val'):,} validation tokens in {len(manifest.shards)} shards,"
            f" {statistics['bytes_per_token']:.2f} bytes a token, the longest document"
            f" {statistics['longest_document_tokens']:,} tokens; {seconds:,.1f} s,"
            f" {statistics['text_bytes'] / max(seconds, 1e-3) / 1e6:,.1f} MB/s of text"
        )
        for reason, count in statistics["refused"].items():
            self.say(f"note: {count:,} documents left out: {reason}")

    # Training

    def training(
        self, run: Path, recipe: Recipe, first_step: int, device: Device, ranks: int, form: str, unmeasured: str
    ) -> None:
        """What is about to be trained, on what, and in which form of `parallel`; why HellaSwag is not measured."""
        self.recipe, self.peak_flops = recipe, ranks * device.peak_flops
        on_ranks = f" · {ranks} ranks, {form}" if ranks > 1 else ""
        self.say(
            f"{run} · {recipe.model.parameters:,} parameters · {device.name}{on_ranks} · {device.precision_name}"
            f"{' · compiled' if device.compiled else ''} · {recipe.data.total_batch_tokens:,} tokens a step"
            f" = {f'{ranks} x ' if ranks > 1 else ''}{recipe.accumulation_steps(ranks)} x {recipe.data.micro_batch}"
            f" x {recipe.model.block_size}"
        )
        if recipe.optimizer.warmup_steps >= recipe.run.max_steps:
            self.note(
                f"optimizer.warmup_steps = {recipe.optimizer.warmup_steps:,} and run.max_steps ="
                f" {recipe.run.max_steps:,}: the learning rate never reaches optimizer.max_lr"
            )
        if unmeasured and recipe.evaluation.hellaswag_every:
            self.note(f"HellaSwag will not be measured: {unmeasured}")
        if self.progress is not None:
            steps = recipe.run.max_steps
            self.bar = self.progress.add_task("train", total=steps, completed=first_step, status="first step …")

    def step(self, record: StepRecord) -> None:
        recipe, last = self.recipe, self.recipe.run.max_steps
        first = self.seconds_per_step == 0.0
        self.seconds_per_step += (1.0 if first else 0.1) * (record.seconds - self.seconds_per_step)
        rate = recipe.data.total_batch_tokens / self.seconds_per_step
        share = rate * recipe.model.flops_per_token / self.peak_flops
        left = timedelta(seconds=round(self.seconds_left(recipe, record.step)))
        # what matters most comes first: a narrow terminal cuts the end
        status = (
            f"step {record.step:,}/{last:,} · loss {record.loss:.4f} · {left} left · {rate:,.0f} tokens/s"
            f" · {share:.0%} of peak · lr {record.learning_rate:.2e} · norm {record.gradient_norm:.2f}"
        )
        if self.progress is not None:
            self.progress.update(self.bar, completed=record.step, status=status)
        elif first:
            self.say(status)
        else:
            self.say_seldom(status)

    def recall(self, history: History) -> None:
        """How long an earlier attempt's looks took."""
        self.validation_seconds = history.validations[-1].seconds if history.validations else 0.0
        self.task_seconds = history.tasks[-1].seconds if history.tasks else 0.0

    def seconds_left(self, recipe: Recipe, step: int) -> float:
        """Until the end: steps as long as the last ones, validation and HellaSwag as long as their last."""
        asked = recipe.evaluation
        looks = recipe.times_due(step, asked.validation_every) * self.validation_seconds
        if asked.hellaswag_every:
            looks += recipe.times_due(step, asked.hellaswag_every) * self.task_seconds
        return (recipe.run.max_steps - step) * self.seconds_per_step + looks

    def busy(self, what: str, done: int, of: int) -> None:
        """Something long goes on; in a pipe, a sign of life now and then."""
        if self.progress is not None:
            self.progress.update(self.bar, status=f"{what} {done:,}/{of:,}")
        else:
            self.say_seldom(f"{what} {done:,}/{of:,}")

    def looking(self, what: str, done: int, of: int) -> None:
        """A finished model is being asked something: a bar of its own, and an end where a signal has come."""
        self.raise_if_stopped()
        if self.progress is None:
            self.say_seldom(f"{what}: group {done:,}/{of:,}")
            return
        if done == 0:
            self.bar = self.progress.add_task(what, total=of, status="")
            self.looking_since = time.perf_counter()
        seconds = time.perf_counter() - self.looking_since
        left = f"{timedelta(seconds=round(seconds / done * (of - done)))} left" if done else ""
        self.progress.update(self.bar, completed=done, status=f"{done / of:.0%} · {left}", visible=done < of - 1)

    def say_seldom(self, text: str) -> None:
        if time.perf_counter() - self.last_line_at > QUIET_SECONDS:
            self.last_line_at = time.perf_counter()
            self.say(text)

    def validation(self, record: ValidationRecord) -> None:
        self.validation_seconds = record.seconds
        self.say(
            f"step {record.step:>6,} · {record.tokens:>13,} tokens"
            f" · validation loss {record.loss:.4f} · {record.seconds:.1f} s"
        )

    def task(self, record: TaskRecord) -> None:
        self.task_seconds = record.seconds
        rule, accuracy = next(iter(record.accuracy.items()))
        self.say(
            f"step {record.step:>6,} · {record.tokens:>13,} tokens · {record.task} {accuracy:.4f}"
            f" ± {record.standard_error[rule]:.4f} ({record.items}) · {record.seconds:.1f} s"
        )

    def sample(self, record: SampleRecord) -> None:
        if self.live:
            for text in record.texts:
                self.say("             " + text.replace("\n", "⏎"))

    def checkpoint(self, record: CheckpointRecord) -> None:
        self.say(f"step {record.step:>6,} · saved {record.path} ({record.bytes / 1e6:,.0f} MB, {record.seconds:.1f} s)")


class ReadingProgress:
    """Progress of files being read, in bytes: a bar in a terminal, a line now and then in a pipe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started_at = time.perf_counter()

    def update(self, done: int, total: int) -> None:
        rate = done / (time.perf_counter() - self.started_at)
        status = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB · {rate / 1e6:,.0f} MB/s"
        if self.console.progress is not None:
            self.console.progress.update(self.console.bar, completed=done, total=total, status=status)
        else:
            self.console.say_seldom(status)

    def raise_if_stopped(self) -> None:
        self.console.raise_if_stopped()


def quiet_console() -> Console:
    """Of a rank that has nothing to say."""
    return Console(Terminal(quiet=True))
