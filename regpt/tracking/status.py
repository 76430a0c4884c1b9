"""What can be said of a run while another process writes it: whether it lives, how fast it is, when it will be done."""

import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from regpt.base.errors import UserError
from regpt.base.files import holder_file, holder_of
from regpt.base.recipe import Recipe
from regpt.base.settings import load_recipe
from regpt.tracking.environment import Environment
from regpt.tracking.events import Event, Failed, Started, Stopped
from regpt.tracking.journal import (
    CheckpointRecord,
    EventRecord,
    History,
    JournalReader,
    RunState,
    SampleRecord,
    SkippedRecord,
    StepRecord,
    TaskRecord,
    ValidationRecord,
)
from regpt.tracking.layout import RunPaths
from regpt.tracking.run import Run

LAST_STEPS = 50  # of which the median tells the speed now
PATIENCE = 30.0  # seconds of silence that mean nothing
PATIENCE_TIMES = 3.0  # ... and so many of the longest things that were lately done


@dataclass(frozen=True)
class State:
    """In a word for a person to see at once, and in a sentence."""

    word: str  # beginning, running, silent, killed, ended, stopped, failed, finished
    sentence: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run at a moment. Times of day are seconds since 1970."""

    name: str
    recipe: Recipe
    environment: Environment | None  # None before it is written
    history: History
    now: float
    written_at: float  # when the journal's last record was written
    holder: tuple[int, str] | None  # of the lock: process number and machine
    process_alive: bool | None  # whether that process lives; None where it is on another machine

    @property
    def step(self) -> int:
        return self.history.step

    @property
    def steps_left(self) -> int:
        return max(0, self.recipe.run.max_steps - self.step)

    @property
    def tokens(self) -> int:
        return self.recipe.tokens_after(self.step)

    @property
    def step_seconds(self) -> float:
        """The median of the last steps', so that a slow one (compilation, a pause) weighs nothing; 0: none yet."""
        lately = self.history.steps[-LAST_STEPS:]
        return median(record.seconds for record in lately) if lately else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.recipe.data.total_batch_tokens / self.step_seconds if self.step_seconds else 0.0

    @property
    def share_of_peak(self) -> float | None:
        """Of all devices of the latest attempt; None where it runs on others than the one whose peak is known."""
        device, starts = self.environment.device if self.environment else None, self.history.details(Started)
        if not (starts and device and device.peak_flops and starts[-1].device == device.name):
            return None
        peak = device.peak_flops * starts[-1].ranks
        return self.tokens_per_second * self.recipe.model.flops_per_token / peak

    @property
    def attempt(self) -> EventRecord | None:
        """The event that the latest one began with."""
        begun = [event for event in self.history.events if isinstance(event.detail, Started)]
        return begun[-1] if begun else None

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last record."""
        return max(0.0, self.now - self.written_at)

    @property
    def patience(self) -> float:
        """Seconds of silence that are usual here."""
        history = self.history
        lately = [record.seconds for record in history.steps[-LAST_STEPS:]]
        lately += [record.seconds for record in history.validations[-1:]]
        lately += [record.seconds for record in history.tasks[-1:]]
        return max(PATIENCE, PATIENCE_TIMES * max(lately, default=0.0))

    @property
    def state(self) -> State:
        status, last = self.history.status, self.history.events[-1] if self.history.events else None
        number, machine = self.holder or (0, "")
        where = f"process {number}" + (f" on {machine}" if self.process_alive is None and machine else "")
        again = f"go on with: regpt resume {self.name}" if self.history.checkpoints else "nothing was saved yet"
        if status in (RunState.RUNNING, RunState.EMPTY):
            if self.holder is None:
                return State("ended", f"without a word in its journal; {again}") if last else State("beginning", "")
            if self.process_alive is False:
                return State("killed", f"{where} is gone; {again}")
            if self.idle_seconds > self.patience:
                return State("silent", f"{where}; no sign of life for {duration(self.idle_seconds)}")
            return State("running" if last else "beginning", where)
        if self.process_alive:
            return State("beginning", f"{status} before; {where} makes ready to go on")
        if last and isinstance(last.detail, Stopped):
            return State(status, f"by {last.detail.signal or 'a signal'}; {again}")
        return State(status, last.detail.reason if last and isinstance(last.detail, Failed) else "")

    @property
    def over(self) -> bool:
        """Finished, and nobody makes ready to go on beyond its end."""
        return self.history.status is RunState.FINISHED and not self.process_alive

    @property
    def evaluations_left(self) -> dict[str, int]:
        """How often validation and HellaSwag are still due."""
        asked = self.recipe.evaluation
        of_hellaswag = self.due(asked.hellaswag_every) if self.hellaswag and asked.hellaswag_every else 0
        return {"validation": self.due(asked.validation_every), "HellaSwag": of_hellaswag}

    @property
    def hellaswag(self) -> list[TaskRecord]:
        return [record for record in self.history.tasks if record.task == "hellaswag"]

    def due(self, every: int) -> int:
        """At how many of the steps to come."""
        return self.recipe.times_due(self.step, every)

    @property
    def seconds_left(self) -> float | None:
        """From the last record to the end: steps as long as the last ones, validation and HellaSwag as their last.

        What no record counts (saving, sampling, waiting) is the rest of the attempt's time by the clock. It is expected
        to go on as so far: for each step with a sample or a checkpoint where there were any, else for each step.
        None before the first step.
        """
        history, begun, hellaswag = self.history, self.attempt, self.hellaswag
        if not history.steps or begun is None:
            return None
        validation_seconds = history.validations[-1].seconds if history.validations else 0.0
        left = self.steps_left * self.step_seconds + self.evaluations_left["validation"] * validation_seconds
        left += self.evaluations_left["HellaSwag"] * (hellaswag[-1].seconds if hellaswag else 0.0)
        at = history.events.index(begun)
        first = min(event.step for event in history.events[at:])
        first = -1 if begun.event is Event.STARTED else first

        timed: list[StepRecord | SkippedRecord | ValidationRecord | TaskRecord] = [*history.steps, *history.skipped]
        timed += [*history.validations, *history.tasks]
        counted = sum(record.seconds for record in timed if record.step > first)
        rest = max(0.0, self.written_at - begun.at - counted)
        others: list[SampleRecord | CheckpointRecord] = [*history.samples, *history.checkpoints]
        done = len({record.step for record in others if record.step > first})
        if done:
            due = max(self.due(self.recipe.evaluation.sample_every), self.due(self.recipe.checkpoint.every))
            return left + rest * due / done
        return left + rest * self.steps_left / max(1, self.step - max(0, first))


class RunMonitor:
    """A run that another process writes: reads its files, locks nothing, writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.follower = JournalReader(path)
        self.events = -1
        self.recipe: Recipe
        self.environment: Environment | None = None

    def update(self) -> RunStatus:
        """The run as it is now. Raises UserError where there is no readable recipe."""
        history = self.follower.update()
        if len(history.events) != self.events or not self.environment:  # a resume may have changed them
            self.recipe = load_recipe(RunPaths(self.path).recipe)
            self.environment = read_environment(self.path)
            self.events = len(history.events)
        return run_status(self.path, self.recipe, self.environment, history)


def run_status(path: Path, recipe: Recipe, environment: Environment | None, history: History) -> RunStatus:
    """A run whose files were just read, with what its lock and its journal's date say."""
    paths = RunPaths(path)
    holder = holder_of(paths.lock)
    try:
        written_at = paths.journal.stat().st_mtime
    except FileNotFoundError:
        written_at = time.time()
    return RunStatus(
        name=path.resolve().name,
        recipe=recipe,
        environment=environment,
        history=history,
        now=time.time(),
        written_at=written_at,
        holder=holder,
        process_alive=is_process_alive(holder, holder_file(paths.lock)) if holder else False,
    )


def state_of(run: Run) -> str:
    """In a word, as its process has it."""
    return run_status(run.path, run.recipe, run.environment, run.history).state.word


def read_environment(run: Path) -> Environment | None:
    """Return the run's environment; None before it is written."""
    try:
        return Environment.read(run)
    except UserError:
        return None


def is_process_alive(holder: tuple[int, str], file: Path) -> bool | None:
    """Whether the process is there that wrote its number into `file`, and not a later one of that number.

    None where it is another machine's.
    """
    import psutil

    number, machine = holder
    if machine not in ("", platform.node()):
        return None
    try:
        process = psutil.Process(number)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= file.stat().st_mtime + 1.0
    except (psutil.Error, OSError):
        return False


def duration(seconds: float) -> str:
    """The two largest units of a time: 21 h 14 min."""
    if not math.isfinite(seconds):
        return "—"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02} h"
