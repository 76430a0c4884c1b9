"""What `regpt bench` measures: times of steps and of other parts, memory, and the whole run computed from them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from regpt.plan.published_speeds import Speed
from regpt.plan.run_time import Range, RunTime
from regpt.plan.workload import Workload
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import as_tables
from regpt.tracking.run import QUIET_SHARE


class TimedStep(NamedTuple):
    """The seconds of one step."""

    gradients: float  # forward and backward passes of its micro-batches, and the gradient norm
    update: float  # clipping and optimizer


class Quartiles(NamedTuple):
    """The quartiles of one figure over the timed steps."""

    lower: float
    median: float
    upper: float


@dataclass(frozen=True)
class StepTimes:
    """The times of steps."""

    tokens: int  # of a whole step
    accumulation: int  # micro-batches of a whole step
    micro_batches: int  # of a timed step: fewer where whole steps would take too long
    warm_up: tuple[TimedStep, ...]  # of one micro-batch each
    timed: tuple[TimedStep, ...]

    @property
    def seconds(self) -> Quartiles:
        """Return the seconds of a whole step."""
        factor = self.accumulation / self.micro_batches
        seconds = [factor * one.gradients + one.update for one in self.timed]
        lower, middle, upper = np.quantile(seconds, (0.25, 0.5, 0.75))
        return Quartiles(float(lower), float(middle), float(upper))

    @property
    def tokens_per_second(self) -> Quartiles:
        return Quartiles(*(self.tokens / seconds for seconds in reversed(self.seconds)))


class MemoryUse(NamedTuple):
    """The memory of the steps, in bytes."""

    peak: int  # on CUDA of the card's allocated memory, else of the process
    before: int  # of the process before the model was built; 0 on CUDA
    reserved: int  # by the CUDA allocator at most; 0 without a card


class Part(NamedTuple):
    """The time of one piece of work."""

    size: int  # windows, items or texts in it
    seconds: float


class Checkpoint(NamedTuple):
    """The times of one checkpoint."""

    bytes: int
    copy: float  # seconds for which training waits
    write: float  # seconds, in the background if the recipe says so


@dataclass(frozen=True)
class Parts:
    """The other parts of a run; None: not measured."""

    validation: Part | None
    tasks: Part | None
    samples: Part | None  # one token for each text
    checkpoint: Checkpoint | None


@dataclass(frozen=True)
class Prediction:
    """What `regpt plan` predicts for the same recipe and device."""

    tokens_per_second: Range
    memory_bytes: float
    seconds: Range  # of the whole run


@dataclass(frozen=True)
class Machine:
    """Where the measurement ran."""

    name: str  # of the device
    type: str  # cpu, cuda or mps
    precision: str
    compiled: bool
    torch: str
    peak_flops: float  # per second; 0: unknown
    peak_source: str


@dataclass(frozen=True)
class BenchResult:
    """The measurement of a recipe on this machine."""

    recipe: Recipe  # with the micro-batch that was used
    configured_micro_batch: int
    machine: Machine
    work: Workload
    steps: StepTimes
    parts: Parts
    memory: MemoryUse
    other_share: float  # of the processors, used by other programs; -1: unknown
    prediction: Prediction | None
    published: tuple[Speed, ...]
    steps_only: bool = False  # nothing else was measured or predicted

    @property
    def share_of_peak(self) -> float:
        """Return the model FLOP utilization (MFU); 0 if the peak is unknown."""
        flops = self.steps.tokens_per_second.median * self.recipe.model.flops_per_token
        return flops / self.machine.peak_flops if self.machine.peak_flops else 0.0

    @property
    def compile_seconds(self) -> float:
        """Return how much longer the first warm-up step took than the last; 0 without torch.compile."""
        first, *_, last = map(sum, self.steps.warm_up)
        return max(0.0, first - last) if self.machine.compiled else 0.0

    @property
    def is_busy(self) -> bool:
        """Return whether other programs used the processors."""
        return self.other_share > QUIET_SHARE

    @property
    def speed_ratio(self) -> float | None:
        """Return the measured speed divided by the middle of the predicted range."""
        if self.prediction is None:
            return None
        return self.steps.tokens_per_second.median / self.prediction.tokens_per_second.middle

    @property
    def memory_ratio(self) -> float | None:
        """Return the measured peak memory, without that of the program, divided by the predicted one."""
        used = self.memory.peak - self.memory.before
        return None if self.prediction is None else used / self.prediction.memory_bytes

    @property
    def run_time(self) -> RunTime:
        """Return the time of the whole run at the measured speeds. Parts that were not measured count as nothing."""
        work, parts = self.work, self.parts
        windows = work.validated_windows
        saved = parts.checkpoint or Checkpoint(0, 0.0, 0.0)
        return RunTime(
            training=exactly(work.full_steps * self.steps.seconds.median),
            validation=exactly(windows * per_one(parts.validation)),
            tasks=exactly(work.scored_items * per_one(parts.tasks)),
            samples=exactly(work.sampling_rounds * (parts.samples.seconds if parts.samples else 0.0)),
            checkpoints=exactly(work.checkpoints * saved.copy + work.waited_checkpoints * saved.write),
            start=exactly(self.compile_seconds),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the measurement with every timed step and all settings."""
        steps, parts = self.steps, self.parts
        speed, predicted = steps.tokens_per_second, self.prediction
        return {
            "recipe": self.recipe.name,
            "settings": as_tables(self.recipe),
            "configured_micro_batch": self.configured_micro_batch,
            "machine": vars(self.machine),
            "tokens_per_second": speed._asdict(),
            "step_seconds": steps.seconds._asdict(),
            "compile_seconds": self.compile_seconds,
            "share_of_peak": self.share_of_peak or None,
            "memory_bytes": self.memory._asdict(),
            "other_programs_share": self.other_share if self.other_share >= 0 else None,
            "steps": {
                "micro_batches_of_a_step": steps.accumulation,
                "micro_batches_of_a_timed_step": steps.micro_batches,
                "warm_up": [one._asdict() for one in steps.warm_up],
                "timed": [one._asdict() for one in steps.timed],
            },
            "parts": {name: part and part._asdict() for name, part in vars(parts).items()},
            "run_seconds": {name: seconds.middle for name, seconds in self.run_time.parts.items()},
            "prediction": predicted
            and {
                "tokens_per_second": predicted.tokens_per_second._asdict(),
                "memory_bytes": predicted.memory_bytes,
                "run_seconds": predicted.seconds._asdict(),
                "speed_ratio": self.speed_ratio,
                "memory_ratio": self.memory_ratio,
            },
            "published": [vars(speed) for speed in self.published],
        }


def exactly(seconds: float) -> Range:
    return Range(seconds, seconds)


def per_one(part: Part | None) -> float:
    """Return the seconds of one window, item or text of a part."""
    return part.seconds / part.size if part else 0.0
