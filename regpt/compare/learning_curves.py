"""Losses on the way, held against each other at equal tokens and at equal time, and where each first reached a loss."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from regpt.compare.models import ComparedModel
from regpt.tracking.journal import SkippedRecord, StepRecord

ROWS = 4  # of a table, the last ones


@dataclass(frozen=True)
class EvalPoint:
    """A validation on the way."""

    tokens: int
    seconds: float  # in training steps until then
    loss: float
    standard_error: float


@dataclass(frozen=True)
class LearningCurve:
    """How a run went, until the step that is compared."""

    name: str
    on: tuple[str, int, int]  # what the losses were measured on
    flops_per_token: int
    steps: list[tuple[int, float, float]]  # (tokens, seconds until then, training loss)
    evaluations: list[EvalPoint]


@dataclass(frozen=True)
class Reading:
    """A loss read off a course."""

    loss: float
    standard_error: float
    exact: bool  # measured there; else on the straight line between the looks before and after


@dataclass(frozen=True)
class Reached:
    """Where a course first came down to a loss."""

    tokens: float
    seconds: float
    exact: bool


def learning_curve(model: ComparedModel) -> LearningCurve | None:
    """None of what is no run's. Looks at other windows than the last one's are left out."""
    if model.run is None or model.step is None:
        return None
    run, end = model.run, model.step
    spent = [record for record in spent_steps(model) if record.step <= end]
    numbers = [record.step for record in spent]
    until = [0.0, *accumulate(record.seconds for record in spent)]
    seconds = {step: until[bisect_right(numbers, step)] for step in [0, *numbers]}
    validations = [v for v in run.history.validations if v.step <= end]
    windows = validations[-1].windows if validations else 0
    return LearningCurve(
        model.name,
        (run.environment.data.digest, run.recipe.model.block_size, windows),
        run.recipe.model.flops_per_token,
        [(s.tokens, seconds[s.step], s.loss) for s in run.history.steps if s.step <= end],
        [
            EvalPoint(v.tokens, until[bisect_right(numbers, v.step)], v.loss, v.standard_error)
            for v in validations
            if v.windows == windows
        ],
    )


def spent_steps(model: ComparedModel) -> list[StepRecord | SkippedRecord]:
    """All steps that cost time, those included that the guard passed over."""
    assert model.run is not None
    history = model.run.history
    return sorted([*history.steps, *history.skipped], key=lambda record: record.step)


def training_seconds(model: ComparedModel) -> float:
    """Until the step that is compared; evaluation and saving are not counted."""
    return sum(record.seconds for record in spent_steps(model) if record.step <= (model.step or 0))


def alike(courses: Sequence[LearningCurve]) -> list[LearningCurve]:
    """Those with a loss on the way that compare with each other: most of them, the first ones where there is a tie."""
    groups: dict[tuple[str, int, int], list[LearningCurve]] = {}
    for course in courses:
        if course.evaluations:
            groups.setdefault(course.on, []).append(course)
    return max(groups.values(), key=len, default=[])


def by_tokens(look: EvalPoint) -> float:
    return look.tokens


def by_seconds(look: EvalPoint) -> float:
    return look.seconds


def reading(course: LearningCurve, by: Callable[[EvalPoint], float], place: float) -> Reading | None:
    """The loss at so many tokens or seconds; None outside what was measured."""
    places = [by(look) for look in course.evaluations]
    after = bisect_left(places, place)
    if after == len(places) or (after == 0 and places[0] != place):
        return None
    look = course.evaluations[after]
    if places[after] == place:
        return Reading(look.loss, look.standard_error, exact=True)
    before = course.evaluations[after - 1]
    share = (place - places[after - 1]) / (places[after] - places[after - 1])
    return Reading(before.loss + share * (look.loss - before.loss), 0.0, exact=False)


def at_equal_tokens(courses: Sequence[LearningCurve]) -> list[tuple[float, list[Reading | None]]]:
    """At the last token counts that all have looked at, and at the end of the shortest; where hardly any is common, at
    those of any."""
    counts = [{look.tokens for look in course.evaluations} for course in courses]
    shortest = min(max(of) for of in counts)
    common = {count for count in set.intersection(*counts) if count > 0} | {shortest}
    if len(common) < 2:
        common |= {count for count in set.union(*counts) if 0 < count < shortest}
    return readings(courses, by_tokens, sorted(common))


def at_equal_time(courses: Sequence[LearningCurve]) -> list[tuple[float, list[Reading | None]]]:
    """At the looks of the course that took the shortest."""
    shortest = min(courses, key=lambda course: course.evaluations[-1].seconds)
    return readings(courses, by_seconds, [look.seconds for look in shortest.evaluations if look.seconds > 0])


def readings(
    courses: Sequence[LearningCurve], by: Callable[[EvalPoint], float], places: Sequence[float]
) -> list[tuple[float, list[Reading | None]]]:
    return [(place, [reading(course, by, place) for course in courses]) for place in places[-ROWS:]]


def reached(course: LearningCurve, loss: float) -> Reached | None:
    """Where its validation loss first was as low; None where it never was."""
    for number, look in enumerate(course.evaluations):
        if look.loss <= loss:
            if number == 0 or look.loss == loss:
                return Reached(look.tokens, look.seconds, exact=look.loss == loss)
            before = course.evaluations[number - 1]
            share = (before.loss - loss) / (before.loss - look.loss)
            return Reached(
                before.tokens + share * (look.tokens - before.tokens),
                before.seconds + share * (look.seconds - before.seconds),
                exact=False,
            )
    return None
