"""Decide whether two runs are the same: recipe, data and every recorded loss and score, to the last digit."""

from collections.abc import Sequence
from dataclasses import dataclass

from regpt.recipe.differences import result_differences
from regpt.tracking.journal import StepRecord, ValidationRecord
from regpt.tracking.run import Run


@dataclass(frozen=True)
class Identity:
    """Two runs that agree in everything that was recorded of their results."""

    training_losses: int
    validation_losses: int
    is_copy: bool  # the times of the steps agree too, which no two runs do


def identical(run: Run, other: Run) -> Identity | None:
    """Compare two runs; None where they differ.

    Settings that change no result may differ. Two runs without any recorded loss are not called identical.
    """
    ours, theirs = run.history, other.history
    same = (
        not result_differences(run.recipe, other.recipe)
        and run.environment.data.digest == other.environment.data.digest
        and bool(ours.steps or ours.validations)
        and losses(ours.steps) == losses(theirs.steps)
        and losses(ours.validations) == losses(theirs.validations)
        and scores(run) == scores(other)
    )
    if not same:
        return None
    is_copy = bool(times(run)) and times(run) == times(other)
    return Identity(len(ours.steps), len(ours.validations), is_copy)


def losses(records: Sequence[StepRecord] | Sequence[ValidationRecord]) -> list[tuple[int, str]]:
    """Return (step, loss) of each record; the loss as text, so that NaN equals NaN."""
    return [(record.step, repr(record.loss)) for record in records]


def scores(run: Run) -> list[tuple[int, str, str, dict[str, float]]]:
    """Return (step, task, digest of the items, accuracy by metric) of each scored task."""
    return [(record.step, record.task, record.digest, record.accuracy) for record in run.history.tasks]


def times(run: Run) -> list[float]:
    steps = [record.seconds for record in run.history.steps]
    return steps + [record.seconds for record in run.history.validations]
