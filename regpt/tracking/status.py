"""The status of a run that another process may be writing: state, speed, time left."""

import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median

from regpt.base.errors import UserError
from regpt.filesystem.locks import LockHolder, holder_of
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_resolved_recipe
from regpt.tracking.environment import Environment
from regpt.tracking.events import Event, Started
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

LAST_STEPS = 50  # their median is the current speed
IDLE_SECONDS = 30.0  # without a record before a run counts as idle,
COMPILING_SECONDS = 300.0  # where torch.compile works before the first step,
IDLE_TIMES = 3.0  # or this many times the longest recent step or evaluation, if that is longer
# Unrecorded time beyond both limits is not the run's: the clock was set, or the machine slept.
CLOCK_CHANGE_SECONDS = 86_400.0
CLOCK_CHANGE_TIMES = 10.0  # the recorded time


class State(StrEnum):
    """The state of a run, judged by its journal and by the process that holds its lock."""

    STARTING = "starting"  # a process prepares the first attempt or a resume
    RUNNING = "running"
    IDLE = "idle"  # the process exists but has not written for longer than usual
    KILLED = "killed"  # the process is gone without a final event
    EXITED = "exited"  # as KILLED, but the lock was released
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


END_STATES = {
    RunState.STOPPED: State.STOPPED,
    RunState.FAILED: State.FAILED,
    RunState.FINISHED: State.FINISHED,
}


@dataclass(frozen=True, kw_only=True)
class RunActivity:
    """What a run does at one moment, by its journal and its process. Times of day are seconds since 1970."""

    environment: Environment | None  # None before it is written
    history: History
    now: float
    written_at: float  # when the journal's last record was written
    holder: LockHolder | None  # of the lock
    process_alive: bool | None  # whether that process lives; None where it is on another machine

    @property
    def step(self) -> int:
        return self.history.step

    @property
    def attempt(self) -> EventRecord | None:
        """The start or resume of the latest attempt."""
        begun = [event for event in self.history.events if isinstance(event.detail, Started)]
        return begun[-1] if begun else None

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last record."""
        return max(0.0, self.now - self.written_at)

    @property
    def idle_limit(self) -> float:
        """Seconds without a record that are usual for this run."""
        history = self.history
        lately = [record.seconds for record in history.steps[-LAST_STEPS:]]
        lately += [record.seconds for record in history.validations[-1:]]
        lately += [record.seconds for record in history.tasks[-1:]]
        return max(COMPILING_SECONDS if self.is_compiling else IDLE_SECONDS, IDLE_TIMES * max(lately, default=0.0))

    @property
    def is_compiling(self) -> bool:
        """Whether the attempt's first step, which compiles, is not recorded yet."""
        attempt, device = self.attempt, self.environment and self.environment.device
        return bool(attempt and device and device.compiled and self.step <= attempt.step)

    @property
    def state(self) -> State:
        begun = bool(self.history.events)
        if ended := END_STATES.get(self.history.status):
            return State.STARTING if self.process_alive else ended
        if self.holder is None:
            return State.EXITED if begun else State.STARTING
        if self.process_alive is False:
            return State.KILLED
        if self.idle_seconds > self.idle_limit:
            return State.IDLE
        return State.RUNNING if begun else State.STARTING

    @property
    def is_over(self) -> bool:
        """Whether the run has finished and no process prepares to extend it."""
        return self.state is State.FINISHED


@dataclass(frozen=True, kw_only=True)
class RunStatus(RunActivity):
    """A run at one moment, with its recipe: also its speed and the time left."""

    name: str
    recipe: Recipe

    @property
    def steps_left(self) -> int:
        return max(0, self.recipe.run.max_steps - self.step)

    @property
    def tokens(self) -> int:
        return self.recipe.tokens_after(self.step)

    @property
    def step_seconds(self) -> float:
        """The median of the last steps, so that one slow step (compilation, a pause) has no effect; 0: no step yet.

        Smaller steps of a ramp are scaled to total_batch_tokens.
        """
        lately = self.history.steps[-LAST_STEPS:]
        batch = self.recipe.data.total_batch_tokens
        scaled = [record.seconds * (batch / self.recipe.batch_tokens(record.step - 1)) for record in lately]
        return median(scaled) if scaled else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.recipe.data.total_batch_tokens / self.step_seconds if self.step_seconds else 0.0

    @property
    def share_of_peak(self) -> float | None:
        """Achieved share of the devices' peak in the latest attempt; None where it uses a device of unknown peak."""
        device, starts = self.environment.device if self.environment else None, self.history.details(Started)
        if not (starts and device and device.known_peak and starts[-1].device == device.name):
            return None
        peak = device.known_peak * starts[-1].ranks
        return self.tokens_per_second * self.recipe.model.flops_per_token / peak

    @property
    def evaluations_left(self) -> dict[str, int]:
        """The number of validations and HellaSwag evaluations still due."""
        asked = self.recipe.evaluation
        of_hellaswag = self.times_due(asked.hellaswag_every) if self.hellaswag and asked.hellaswag_every else 0
        return {"validation": self.times_due(asked.validation_every), "HellaSwag": of_hellaswag}

    @property
    def hellaswag(self) -> list[TaskRecord]:
        return [record for record in self.history.tasks if record.task == "hellaswag"]

    def times_due(self, every: int) -> int:
        """The number of remaining steps at which something is due that happens every `every` steps."""
        return self.recipe.times_due(self.step, every)

    @property
    def seconds_left(self) -> float | None:
        """Estimate the seconds from the last record to the end of the run; None before the first step.

        Steps are expected to last as long as the last ones, validation and HellaSwag as long as their last. Time that
        no record counts (saving, sampling, waiting) is the rest of the attempt's wall time. It is expected to continue
        at the same rate: per step with a sample or checkpoint if there were any, else per step.
        """
        history, begun, hellaswag = self.history, self.attempt, self.hellaswag
        if not history.steps or begun is None:
            return None
        validation_seconds = history.validations[-1].seconds if history.validations else 0.0
        left = (
            self.recipe.full_steps_left(self.step) * self.step_seconds
            + self.evaluations_left["validation"] * validation_seconds
        )
        left += self.evaluations_left["HellaSwag"] * (hellaswag[-1].seconds if hellaswag else 0.0)
        at = history.events.index(begun)
        first = min(event.step for event in history.events[at:])
        first = -1 if begun.event is Event.STARTED else first

        timed: list[StepRecord | SkippedRecord | ValidationRecord | TaskRecord] = [*history.steps, *history.skipped]
        timed += [*history.validations, *history.tasks]
        counted = sum(record.seconds for record in timed if record.step > first)
        rest = max(0.0, self.written_at - begun.at - counted)
        if rest > max(CLOCK_CHANGE_SECONDS, CLOCK_CHANGE_TIMES * counted):
            rest = 0.0
        others: list[SampleRecord | CheckpointRecord] = [*history.samples, *history.checkpoints]
        done = len({record.step for record in others if record.step > first})
        if done:
            due = max(self.times_due(self.recipe.evaluation.sample_every), self.times_due(self.recipe.checkpoint.every))
            return left + rest * due / done
        return left + rest * self.steps_left / max(1, self.step - max(0, first))


class RunMonitor:
    """Follow a run that another process writes: reads its files, locks nothing, writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = JournalReader(path)
        self.events = -1
        self.recipe: Recipe
        self.environment: Environment | None = None

    def update(self) -> RunStatus:
        """Return the run's status now. Raises UserError without a readable recipe."""
        history = self.reader.update()
        if len(history.events) != self.events or not self.environment:  # a resume may have changed them
            self.recipe = load_resolved_recipe(RunPaths(self.path).recipe)
            self.environment = read_environment(self.path)
            self.events = len(history.events)
        return run_status(self.path, self.recipe, self.environment, history)


def run_status(path: Path, recipe: Recipe, environment: Environment | None, history: History) -> RunStatus:
    """Return the status of a run whose files were just read, from its lock and its journal's date too."""
    return RunStatus(name=path.resolve().name, recipe=recipe, **vars(run_activity(path, environment, history)))


def run_activity(path: Path, environment: Environment | None, history: History) -> RunActivity:
    """Return what a run does whose files were just read. Of `history`, the last steps suffice."""
    paths = RunPaths(path)
    holder = holder_of(paths.lock)
    try:
        written_at = paths.journal.stat().st_mtime
    except FileNotFoundError:
        written_at = time.time()
    return RunActivity(
        environment=environment,
        history=history,
        now=time.time(),
        written_at=written_at,
        holder=holder,
        process_alive=holder.is_alive if holder else False,
    )


def state_of(run: Run) -> State:
    return run_activity(run.path, run.environment, run.history).state


def read_environment(run: Path) -> Environment | None:
    """Return the run's environment; None before it is written."""
    try:
        return Environment.read(run)
    except UserError:
        return None
