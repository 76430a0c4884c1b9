"""Learning curves of runs, and their losses at equal tokens, at equal time, and at equal loss."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from regpt.fairness.models import ComparedModel
from regpt.tracking.journal import ValidationRecord

MAX_ROWS = 4  # of a table; the last ones are kept


@dataclass(frozen=True)
class EvalPoint:
    """A validation during training."""

    tokens: int
    seconds: float  # of training steps before it
    loss: float
    standard_error: float
    by_seed: tuple[float, ...] = ()  # losses, where `loss` is their mean; empty for one run

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest loss over seeds; of one run, the loss ± its standard error."""
        if self.by_seed:
            return min(self.by_seed), max(self.by_seed)
        return self.loss - self.standard_error, self.loss + self.standard_error


@dataclass(frozen=True)
class LearningCurve:
    """The losses of a run up to the step that is compared, or the means of several runs."""

    name: str
    measured_on: tuple[str, int, int]  # digest of the data, block size, number of windows
    flops_per_token: int
    steps: list[tuple[int, float, float]]  # (tokens, seconds of training steps, training loss)
    evaluations: list[EvalPoint]
    has_known_speed: bool = True  # no other program slowed the run
    tokenizer: str = ""  # name and digest
    bits_per_nat: float = 0.0  # bits per byte of a loss of one nat per token; 0: unknown

    def in_bits_per_byte(self) -> "LearningCurve":
        """Return the curve of validation in bits per byte; without training losses, whose bytes are not counted."""

        def converted(point: EvalPoint) -> EvalPoint:
            scale = self.bits_per_nat
            by_seed = tuple(loss * scale for loss in point.by_seed)
            return replace(point, loss=point.loss * scale, standard_error=point.standard_error * scale, by_seed=by_seed)

        points = self.evaluations if self.bits_per_nat else []
        return replace(self, steps=[], evaluations=[converted(point) for point in points])


@dataclass(frozen=True)
class CurveValue:
    """The loss of a learning curve at some number of tokens or seconds."""

    loss: float
    standard_error: float
    is_measured: bool  # else interpolated between the two nearest evaluations


@dataclass(frozen=True)
class Crossing:
    """The tokens and seconds after which a learning curve first reached a loss."""

    tokens: float
    seconds: float
    is_measured: bool  # else interpolated between the two nearest evaluations


Row = tuple[float, list[CurveValue | None]]  # tokens or seconds, and the loss of each curve there


def learning_curve(model: ComparedModel) -> LearningCurve | None:
    """Return the curve of a run; None for other models. Only validations on the windows of the last one count."""
    if model.run is None or model.step is None:
        return None
    run, last_step = model.run, model.step
    timed = [record for record in run.timed_steps if record.step <= last_step]
    numbers = [record.step for record in timed]
    elapsed = [0.0, *accumulate(record.seconds for record in timed)]
    validations = [v for v in run.history.validations if v.step <= last_step]
    windows = validations[-1].windows if validations else 0
    return LearningCurve(
        name=model.name,
        measured_on=(run.environment.data.digest, run.recipe.model.block_size, windows),
        flops_per_token=run.recipe.model.flops_per_token,
        steps=[
            (s.tokens, elapsed[bisect_right(numbers, s.step)], s.loss) for s in run.history.steps if s.step <= last_step
        ],
        evaluations=[
            EvalPoint(v.tokens, elapsed[bisect_right(numbers, v.step)], v.loss, v.standard_error)
            for v in validations
            if v.windows == windows
        ],
        has_known_speed=run.has_known_speed,
        tokenizer=run.environment.data.tokenizer.label,
        bits_per_nat=bits_per_nat(validations[-1]) if validations else 0.0,
    )


def bits_per_nat(record: ValidationRecord) -> float:
    """Return the factor from nats per token to bits per byte, which is the same for all losses on the same windows."""
    return record.bits_per_byte / record.loss if record.loss > 0 and math.isfinite(record.loss) else 0.0


def have_one_tokenizer(curves: Sequence[LearningCurve]) -> bool:
    """Return whether the losses of all curves are per token of the same tokenizer, as far as it is known."""
    return len({curve.tokenizer for curve in curves if curve.tokenizer}) < 2


def training_seconds(model: ComparedModel) -> float:
    """Seconds of training steps, skipped ones too, up to the step that is compared."""
    assert model.run is not None
    return sum(record.seconds for record in model.run.timed_steps if record.step <= (model.step or 0))


def comparable_curves(curves: Sequence[LearningCurve]) -> list[LearningCurve]:
    """Return the largest group of curves that were validated on the same windows; the first of equal groups."""
    groups: dict[tuple[str, int, int], list[LearningCurve]] = {}
    for curve in curves:
        if curve.evaluations:
            groups.setdefault(curve.measured_on, []).append(curve)
    return max(groups.values(), key=len, default=[])


def tokens_of(point: EvalPoint) -> float:
    return point.tokens


def seconds_of(point: EvalPoint) -> float:
    return point.seconds


def interpolate_at(curve: LearningCurve, coordinate: Callable[[EvalPoint], float], x: float) -> CurveValue | None:
    """Return the loss at x tokens or seconds, linear between evaluations; None outside the measured range."""
    xs = [coordinate(point) for point in curve.evaluations]
    after = bisect_left(xs, x)
    if after == len(xs) or (after == 0 and xs[0] != x):
        return None
    point = curve.evaluations[after]
    if xs[after] == x:
        return CurveValue(point.loss, point.standard_error, is_measured=True)
    before = curve.evaluations[after - 1]
    fraction = (x - xs[after - 1]) / (xs[after] - xs[after - 1])
    return CurveValue(before.loss + fraction * (point.loss - before.loss), 0.0, is_measured=False)


def losses_at_equal_tokens(curves: Sequence[LearningCurve]) -> list[Row]:
    """Return the losses at the last token counts that all curves have, and at the end of the shortest curve.

    Without two common token counts, use those of every curve.
    """
    counts = [{point.tokens for point in curve.evaluations} for curve in curves]
    shortest = min(max(own) for own in counts)
    common = {count for count in set.intersection(*counts) if count > 0} | {shortest}
    if len(common) < 2:
        common |= {count for count in set.union(*counts) if 0 < count < shortest}
    return losses_at(curves, tokens_of, sorted(common))


def losses_at_equal_time(curves: Sequence[LearningCurve]) -> list[Row]:
    """Return the losses at the evaluation times of the run that took the shortest time."""
    shortest = min(curves, key=lambda curve: curve.evaluations[-1].seconds)
    return losses_at(curves, seconds_of, [p.seconds for p in shortest.evaluations if p.seconds > 0])


def losses_at(
    curves: Sequence[LearningCurve], coordinate: Callable[[EvalPoint], float], xs: Sequence[float]
) -> list[Row]:
    return [(x, [interpolate_at(curve, coordinate, x) for curve in curves]) for x in xs[-MAX_ROWS:]]


def first_time_below(curve: LearningCurve, loss: float) -> Crossing | None:
    """Return where the validation loss first was `loss` or lower; None if it never was."""
    for number, point in enumerate(curve.evaluations):
        if point.loss <= loss:
            if number == 0 or point.loss == loss:
                return Crossing(point.tokens, point.seconds, is_measured=point.loss == loss)
            before = curve.evaluations[number - 1]
            fraction = (before.loss - loss) / (before.loss - point.loss)
            return Crossing(
                before.tokens + fraction * (point.tokens - before.tokens),
                before.seconds + fraction * (point.seconds - before.seconds),
                is_measured=False,
            )
    return None
