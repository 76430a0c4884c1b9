"""Whether two runs are one: the same recipe, the same data, and every recorded figure the same to the last digit."""

from collections.abc import Sequence

from regpt.base.settings import result_differences
from regpt.tracking.journal import StepRecord, ValidationRecord
from regpt.tracking.run import Run


def identical(run: Run, other: Run) -> str:
    """In words what of two runs is the same, where all of it is; else nothing.

    Settings that change no result may differ. Two runs without any recorded loss are not called identical.
    """
    ours, theirs = run.history, other.history
    same = (
        not result_differences(run.recipe, other.recipe)
        and run.environment.data.digest == other.environment.data.digest
        and bool(ours.steps or ours.validations)
        and losses(ours.steps) == losses(theirs.steps)
        and losses(ours.validations) == losses(theirs.validations)
        and answers(run) == answers(other)
    )
    if not same:
        return ""
    counts = ((len(ours.steps), "training"), (len(ours.validations), "validation"))
    recorded = " and ".join(f"{n:,} {kind} loss{'es' if n != 1 else ''}" for n, kind in counts if n)
    return (
        f"the same recipe, the same data, and every recorded loss ({recorded}) the same to the last digit;"
        f" {'the times of the steps too, so one is a copy of the other' if as_long(run, other) else 'run twice'}"
    )


def losses(records: Sequence[StepRecord] | Sequence[ValidationRecord]) -> list[tuple[int, str]]:
    """(step, loss) of each; as text, in which a loss that is no number equals itself."""
    return [(record.step, repr(record.loss)) for record in records]


def answers(run: Run) -> list[tuple[int, str, str, dict[str, float]]]:
    """(step, task, digest of the items, accuracy by rule)"""
    return [(record.step, record.task, record.digest, record.accuracy) for record in run.history.tasks]


def as_long(run: Run, other: Run) -> bool:
    """Whether each step and look took the same time to the last digit, which no two runs do."""
    return bool(times(run)) and times(run) == times(other)


def times(run: Run) -> list[float]:
    steps = [record.seconds for record in run.history.steps]
    return steps + [record.seconds for record in run.history.validations]
