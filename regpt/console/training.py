"""The console of a command: lines, and in a terminal a progress bar. `TrainingConsole` prints a training run."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from regpt.base.format import byte_size, duration, in_bits_per_byte, percent, scientific, with_error
from regpt.console.time_left import LongWork
from regpt.distributed.signals import GracefulStop
from regpt.recipe.recipe import Recipe, warmup_advice
from regpt.tracking.journal import CheckpointRecord, History, SampleRecord, StepRecord, TaskRecord, ValidationRecord
from regpt.tracking.run import averaged_accuracy

if TYPE_CHECKING:
    from regpt.machine.device import Device  # imports torch, which a preparation does not need

THROTTLE_SECONDS = 60.0  # between two progress lines where there is no terminal
LINES_IN_A_PIPE = 10  # lines with the loss in a whole run, at least; more if it takes longer than ten minutes
NAME_AND_BAR_WIDTH = 20  # characters


def is_live_terminal(terminal: Terminal) -> bool:
    """Return whether lines can be redrawn: in a terminal that knows escape codes, and never in a file or a pipe.

    rich takes FORCE_COLOR for a terminal, too. It is a wish for colors alone.
    """
    return terminal.is_terminal and terminal.file.isatty() and not terminal.is_dumb_terminal


class Console:
    """Prints lines and shows progress: a bar in a terminal, occasional lines elsewhere.

    Use as a context manager, which shows and removes the bar.
    """

    def __init__(self, terminal: Terminal | None = None) -> None:
        self.terminal = terminal or Terminal(highlight=False, soft_wrap=True)
        self.is_live = is_live_terminal(self.terminal)
        self.progress: Progress | None = None
        self.bar = TaskID(0)
        self.last_line_at = time.perf_counter()
        self.stopping: GracefulStop | None = None  # set by `stoppable`

    def __enter__(self) -> Self:
        if self.is_live:
            width = max(20, self.terminal.width - NAME_AND_BAR_WIDTH)
            narrow = Column(no_wrap=True, overflow="ellipsis", max_width=width)
            self.progress = Progress(
                TextColumn("{task.description}", table_column=Column(min_width=5)),
                BarColumn(bar_width=10, table_column=Column(min_width=10)),
                TextColumn("{task.fields[status]}", table_column=narrow),
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

    # Lines

    def print_line(self, text: str) -> None:
        try:
            self.terminal.print(text, markup=False)
        except (SystemExit, OSError):  # the reader of a pipe has left; the work continues without it
            self.terminal = Terminal(file=io.StringIO())

    def note(self, text: str) -> None:
        self.print_line(f"note: {text}")

    def print_throttled(self, text: str) -> None:
        """Print a line unless the last such line is recent."""
        if time.perf_counter() - self.last_line_at > THROTTLE_SECONDS:
            self.print_progress(text)

    def print_progress(self, text: str) -> None:
        """Print a line of progress now; the next throttled one comes a minute later at the earliest."""
        self.last_line_at = time.perf_counter()
        self.print_line(text)

    # Progress

    def start_bar(self, name: str, total: float | None = None, completed: int = 0, status: str = "") -> None:
        """Start a bar, where there is a terminal."""
        if self.progress is not None:
            self.bar = self.progress.add_task(name, total=total, completed=completed, status=status)

    def update_bar(
        self, status: str, completed: float | None = None, total: float | None = None, visible: bool | None = None
    ) -> None:
        """Update the bar, or without a bar print `status` occasionally."""
        if self.progress is None:
            self.print_throttled(status)
        else:
            self.progress.update(self.bar, completed=completed, total=total, visible=visible, status=status)

    # Stop

    @contextmanager
    def stoppable(self, several_ranks: bool = False) -> Iterator[None]:
        """Handle signals within the block: after one, `raise_if_stopped` raises StopRequested."""
        with GracefulStop(several_ranks=several_ranks) as self.stopping:
            yield
        self.stopping = None

    def raise_if_stopped(self) -> None:
        """Raise StopRequested if a signal has arrived within `stoppable`."""
        if self.stopping is not None:
            self.stopping.check()

    def training_console(self, recipe: Recipe, device: "Device", ranks: int) -> "TrainingConsole":
        """Return the console of a training run, which prints to this one."""
        return TrainingConsole(self, recipe, device, ranks)


class TrainingConsole:
    """Prints a training run: its records, its progress and the time left."""

    def __init__(self, console: Console, recipe: Recipe, device: "Device", ranks: int) -> None:
        self.console, self.recipe, self.device, self.ranks = console, recipe, device, ranks
        self.print_line, self.note = console.print_line, console.note
        # Of a step of total_batch_tokens; smaller ones are scaled.
        self.seconds_per_step = 0.0  # moving average from the second step on: the first one may compile; 0: no step yet
        self.steps_timed = 0
        self.figures = ("", "")  # of the last step: the most important ones, and the rest
        self.validation_seconds = self.task_seconds = 0.0  # of the last evaluation of each kind
        self.work = LongWork()  # the evaluation in progress

    def begin(self, run_dir: Path, first_step: int, parallel: str, hellaswag_unavailable: str) -> None:
        """Describe the run, and warn of settings without effect. `parallel` names how the ranks share the work."""
        recipe, device, ranks = self.recipe, self.device, self.ranks
        micro_batches = f"{recipe.accumulation_steps(ranks)} x {recipe.data.micro_batch} x {recipe.model.block_size}"
        parts = [
            str(run_dir),
            f"{recipe.model.parameters:,} parameters",
            device.name,
            *([f"{ranks} ranks, {parallel}"] if ranks > 1 else []),
            device.precision_name,
            *(["compiled"] if device.compiled else []),
            f"{recipe.data.total_batch_tokens:,} tokens a step = {f'{ranks} x ' if ranks > 1 else ''}{micro_batches}",
            *([f"before that {recipe.data.batch_ramp}"] if recipe.data.batch_ramp else []),
        ]
        self.print_line(" · ".join(parts))
        for note in device.notes:
            self.note(note)
        if recipe.is_warmup_too_long:
            self.note(warmup_advice(recipe.optimizer.warmup_steps, recipe.run.max_steps))
        if hellaswag_unavailable and recipe.evaluation.hellaswag_every:
            self.note(f"HellaSwag is not evaluated: {hellaswag_unavailable}")
        self.console.start_bar(
            "train", recipe.run.max_steps, first_step, f"first step{', compiling' * device.compiled} …"
        )

    def restore_durations(self, history: History) -> None:
        """Use the durations of evaluations from an earlier attempt to estimate the time left."""
        self.validation_seconds = history.validations[-1].seconds if history.validations else 0.0
        self.task_seconds = history.tasks[-1].seconds if history.tasks else 0.0

    def step(self, record: StepRecord) -> None:
        recipe, is_first = self.recipe, self.steps_timed == 0
        seconds = record.seconds * (recipe.data.total_batch_tokens / recipe.batch_tokens(record.step - 1))
        self.seconds_per_step += (1.0 if self.steps_timed < 2 else 0.1) * (seconds - self.seconds_per_step)
        self.steps_timed += 1
        rate = recipe.data.total_batch_tokens / self.seconds_per_step
        peak = self.ranks * self.device.peak_flops
        share = f" · {percent(rate * recipe.model.flops_per_token / peak)} of peak" if peak else ""
        # The most important figures come first: a narrow terminal cuts the end.
        self.figures = (
            f"step {record.step:,}/{recipe.run.max_steps:,} · loss {record.loss:.4f}"
            + ("" if is_first and self.device.compiled else f" · {duration(self.seconds_left(record.step))} left"),
            f"{rate:,.0f} tokens/s{share} · lr {scientific(record.learning_rate, 3)} · norm {record.gradient_norm:.2f}",
        )
        status = " · ".join(self.figures)
        interval = -(-recipe.run.max_steps // LINES_IN_A_PIPE)
        if self.console.progress is None and (is_first or recipe.is_due(record.step, interval)):
            self.console.print_progress(status)
        else:
            self.console.update_bar(status, completed=record.step)

    def seconds_left(self, step: int) -> float:
        """Estimate the time to the end, from the speed of recent steps and the last evaluation of each kind."""
        recipe, settings = self.recipe, self.recipe.evaluation
        evaluations = recipe.times_due(step, settings.validation_every) * self.validation_seconds
        if settings.hellaswag_every:
            evaluations += recipe.times_due(step, settings.hellaswag_every) * self.task_seconds
        return recipe.full_steps_left(step) * self.seconds_per_step + evaluations

    def show_progress(self, name: str, done: int, total: int) -> None:
        """Show how far a long part of the current step or evaluation is, next to the loss of the last step."""
        self.console.update_bar(self.status_with(f"{name} {done:,}/{total:,}"))

    def evaluating(self, name: str, done: int, total: int) -> None:
        """Show how far an evaluation is and how long it still takes. It begins with `done` = 0."""
        if done == 0:
            self.work = LongWork()
        status = self.status_with(f"{name} {self.work.status(done, total)}")
        if self.console.progress is None and self.work.must_be_announced(done, total):
            self.console.print_progress(status)
        elif done or self.console.progress is not None:
            self.console.update_bar(status)

    def status_with(self, progress: str) -> str:
        """Return the figures of the last step with the progress of a part between them."""
        first, rest = self.figures
        return " · ".join(filter(None, [first, progress, rest]))

    def validation(self, record: ValidationRecord) -> None:
        self.validation_seconds = record.seconds
        averaged = "" if record.averaged_loss is None else f", averaged weights {record.averaged_loss:.4f}"
        loss = f"{record.loss:.4f}{in_bits_per_byte(record.bits_per_byte)}{averaged}"
        self.print_line(
            f"step {record.step:>6,} · {record.tokens:>13,} tokens"
            f" · validation loss {loss} · {duration(record.seconds)}"
        )

    def task(self, record: TaskRecord) -> None:
        self.task_seconds = record.seconds
        metric, accuracy = next(iter(record.accuracy.items()))
        average = averaged_accuracy(record)
        averaged = "" if average is None else f", averaged weights {average:.4f}"
        self.print_line(
            f"step {record.step:>6,} · {record.tokens:>13,} tokens · {record.task}"
            f" {with_error(accuracy, record.standard_errors[metric])} ({record.items}){averaged}"
            f" · {duration(record.seconds)}"
        )

    def sample(self, record: SampleRecord) -> None:
        for text in record.texts:
            self.print_line("             " + text.replace("\n", "⏎"))

    def checkpoint(self, record: CheckpointRecord) -> None:
        size = byte_size(record.bytes)
        self.print_line(f"step {record.step:>6,} · saved {record.path} ({size}, {duration(record.seconds)})")


class EvaluationConsole:
    """Shows the progress of `regpt evaluate`, with one bar for each task, and stops it after a signal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.work = LongWork()  # the current task

    def evaluating(self, task: str, done: int, total: int) -> None:
        """Show that `done` of `total` groups are finished. Raises StopRequested after a signal."""
        self.console.raise_if_stopped()
        if done == 0:
            self.work = LongWork()
            self.console.start_bar(task, total)
        status = self.work.status(done, total)
        if self.console.progress is not None:
            self.console.update_bar(status, completed=done, visible=done < total - 1)
        elif self.work.must_be_announced(done, total):
            self.console.print_progress(f"{task} {status}")
        elif done:
            self.console.print_throttled(f"{task} {status}")


def quiet_console() -> Console:
    """Return a console that prints nothing."""
    return Console(Terminal(quiet=True))
