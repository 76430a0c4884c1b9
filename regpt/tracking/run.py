"""Read a run directory: recipe, environment and history of a live run, a finished one, or a copy."""

import difflib
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError, UserError
from regpt.corpus.public_corpora import PublicCorpus
from regpt.recipe.aliases import current_device, current_recipe
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_resolved_recipe
from regpt.tracking.environment import Environment
from regpt.tracking.events import Ended, Started
from regpt.tracking.journal import History, SkippedRecord, StepRecord, TaskRecord, read_history
from regpt.tracking.layout import RECIPE_FILE, RunPaths
from regpt.tracking.predictions import Predictions, read_predictions
from regpt.tracking.window_losses import read_window_losses

QUIET_SHARE = 0.05  # of the processors, used by other programs


class MachineLoad(StrEnum):
    """Whether other programs used the processors while a run trained."""

    QUIET = "quiet"
    BUSY = "busy"
    UNKNOWN = "unknown"  # an attempt was killed, is still running, or was made by an earlier version


@dataclass(frozen=True)
class Run:
    """A run directory, read: recipe, environment and history."""

    path: Path
    recipe: Recipe
    environment: Environment
    history: History

    @property
    def id(self) -> str:
        return self.path.resolve().name

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.path)

    @property
    def tokens(self) -> int:
        """Training tokens so far."""
        return self.recipe.tokens_after(self.history.step)

    @property
    def timed_steps(self) -> list[StepRecord | SkippedRecord]:
        """All steps that took time, those that the guard skipped too, in their order."""
        return sorted([*self.history.steps, *self.history.skipped], key=lambda record: record.step)

    @property
    def training_seconds(self) -> float:
        """Seconds spent in steps, skipped ones too; evaluation and saving excluded."""
        return sum(record.seconds for record in self.timed_steps)

    @property
    def device_name(self) -> str:
        """The device of the first attempt."""
        return current_device(self.environment.device.name)

    @property
    def tokens_per_second(self) -> float:
        """Speed of the median step, which compilation and pauses do not affect; 0 before the first step."""
        speeds = sorted(self.speeds, reverse=True)
        return speeds[len(speeds) // 2] if speeds else 0.0

    @property
    def speeds(self) -> list[float]:
        """Tokens/s of each step that took time."""
        batch = self.recipe.batch_tokens
        return [batch(step.step - 1) / step.seconds for step in self.history.steps if step.seconds > 0]

    @property
    def load(self) -> MachineLoad:
        """The load of the machine over all attempts. On a GPU it says little about the speed."""
        shares = [ended.other_cpu_share for ended in self.history.details(Ended)]
        if max(shares, default=-1.0) > QUIET_SHARE:
            return MachineLoad.BUSY
        known = shares and len(shares) == self.history.attempts and min(shares) >= 0.0
        return MachineLoad.QUIET if known else MachineLoad.UNKNOWN

    @property
    def has_known_speed(self) -> bool:
        """Whether the speed is the run's own: on a GPU, or on a CPU that no other program used."""
        return self.environment.device.type not in ("", "cpu") or self.load is MachineLoad.QUIET

    @property
    def ranks(self) -> list[int]:
        """The number of ranks of each attempt."""
        return [start.ranks for start in self.history.details(Started)]

    @property
    def share_of_peak(self) -> float | None:
        """Achieved share of the first attempt's devices' peak; None where the peak or the machine's load is unknown."""
        peak = self.environment.device.known_peak * self.environment.ranks
        if not self.has_known_speed:
            return None
        return self.tokens_per_second * self.recipe.model.flops_per_token / peak if peak else None

    @property
    def epochs(self) -> float | None:
        """Passes over the training split so far; None where its size is unknown."""
        return self.tokens / self.environment.data.train_tokens if self.environment.data.train_tokens else None

    @property
    def corpus(self) -> PublicCorpus:
        """The public corpus that the run trained and was validated on."""
        return self.environment.data.corpus(self.recipe.data.path)

    @property
    def validation_loss(self) -> float | None:
        """The last validation loss, nats per token."""
        return self.history.validations[-1].loss if self.history.validations else None

    @property
    def hellaswag(self) -> list[TaskRecord]:
        """Scores on the items of the last one; a resume may have changed the items."""
        records = [record for record in self.history.tasks if record.task == "hellaswag"]
        return [record for record in records if record.digest == records[-1].digest]

    @property
    def hellaswag_unmeasured(self) -> str:
        """Why the latest attempt did not measure HellaSwag; empty if it does."""
        starts = self.history.details(Started)
        if starts and starts[-1].hellaswag_unavailable is not None:
            return starts[-1].hellaswag_unavailable
        measured = not starts or self.history.tasks
        return "" if measured else "the version of regpt that made this run did not measure it"

    def predictions(self, record: TaskRecord) -> Predictions:
        """Read the predictions of a score. Raises DataError where the file is missing or has other items."""
        answers = read_predictions(self.path / record.path)
        if answers.digest != record.digest:
            raise DataError(f"{self.path / record.path}: holds answers to other items", "evaluate again")
        return answers

    def window_losses(self, tokens: int | None = None) -> NDArray[np.float64]:
        """Read the loss of each window at the last validation, or at the one after `tokens` tokens.  (windows)

        Raises DataError where the file was not kept or is missing.
        """
        looks = [look for look in self.history.validations if tokens in (None, look.tokens)]
        if not looks or not looks[-1].path:
            raise DataError(f"{self.id}: no loss of each window is kept", "evaluate again: regpt evaluate")
        return read_window_losses(self.path / looks[-1].path, looks[-1].windows, looks[-1].loss)

    @property
    def best_validation_loss(self) -> float | None:
        return min((v.loss for v in self.history.validations), default=None)


def primary_accuracy(record: TaskRecord) -> tuple[float, float]:
    """Return accuracy and standard error by the primary metric."""
    rule = next(iter(record.accuracy))
    return record.accuracy[rule], record.standard_errors[rule]


def averaged_accuracy(record: TaskRecord) -> float | None:
    """Return the accuracy of the averaged weights by the primary metric; None without them."""
    return None if record.averaged_accuracy is None else record.averaged_accuracy[next(iter(record.accuracy))]


class NoSuchRun(UserError):
    """No run has the given name or path."""


def find_run(where: str, root: Path) -> Path:
    """Return the directory of a run named by its path or by its id below `root`. Raises NoSuchRun without one."""
    for path in (root / where, Path(where)):
        if RunPaths(path).recipe.is_file():
            return path
    known = run_paths(root)
    names = (
        f"there {'is' if len(known) == 1 else 'are'} {', '.join(path.name for path in known)}"
        if known
        else "it has no runs yet"
    )
    near = difflib.get_close_matches(Path(where).name, [path.name for path in known], n=1)
    advice = f"did you mean '{near[0]}'? {names}" if near else f"{names}; name one of them, or a run's folder"
    raise NoSuchRun(f"no run '{where}' in {root}{'/' if root.name else ''}", advice)


def run_paths(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob(f"*/{RECIPE_FILE}"))


def open_run(path: Path) -> Run:
    """Read a run. Raises UserError where its own files are missing or incomplete."""
    environment, recipe = Environment.read(path), load_resolved_recipe(RunPaths(path).recipe)
    if environment.recipe_name:
        recipe = replace(recipe, name=current_recipe(environment.recipe_name))
    return Run(path, recipe, environment, read_history(path))
