"""Curves of a run's steps, merged into about as many points as a plot has pixels.

The first steps are points of their own, and later points cover 2, 4, 8 … steps, so that a curve is smooth over a
logarithmic axis too. A point has the least and the largest loss of its steps: no spike is lost. Points begin at fixed
steps, so those that a reader already has stay as they are when the run grows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regpt.tracking.journal import StepRecord

SINGLE_STEPS = 512  # at the start, each a point of its own
MOST_EQUAL_POINTS = 1024  # that the largest points could be
DIGITS = 6

Floats = NDArray[np.float64]


def largest_point(count: int) -> int:
    """Return the number of steps that the largest points of `count` steps cover, a power of two."""
    size = 1
    while count > size * MOST_EQUAL_POINTS:
        size *= 2
    return size


def point_starts(count: int, largest: int) -> NDArray[np.int64]:
    """Return the index of the first step of each point."""
    parts = [np.arange(min(count, SINGLE_STEPS))]
    at, size = SINGLE_STEPS, 2
    while at < count:
        if size >= largest:
            parts.append(np.arange(at, count, largest))
            break
        end = min(2 * at, count)
        parts.append(np.arange(at, end, size))
        at, size = 2 * at, 2 * size
    return np.concatenate(parts)


def first_changed_point(starts: NDArray[np.int64], known_steps: int) -> int:
    """Return the index of the first point that a reader of the first `known_steps` steps must read again.

    The last point that it has may have grown, or shrunk in a rollback.
    """
    return max(0, int(np.searchsorted(starts, known_steps, side="right")) - 1)


def curve_points(
    steps: Sequence[StepRecord], batch_tokens: Callable[[int], int], known_steps: int, known_largest: int
) -> dict[str, Any]:
    """Return the points, by column, from the first one on that a reader must replace: its index is `from`.

    `batch_tokens` gives the tokens of a step, counted from 0. A reader whose points have other sizes reads all. Values
    that are NaN or infinite are left out; a point without any is None.
    """
    largest = largest_point(len(steps))
    starts = point_starts(len(steps), largest)
    first = first_changed_point(starts, known_steps) if known_largest == largest else 0
    begin = int(starts[first]) if len(starts) else 0
    chosen = steps[begin:]
    offsets = starts[first:] - begin
    ends = np.append(offsets[1:], len(chosen)) if len(chosen) else offsets
    last = [chosen[end - 1] for end in ends.tolist()]
    losses = column(chosen, lambda record: record.loss)
    norms = column(chosen, lambda record: record.gradient_norm)
    seconds = column(chosen, lambda record: record.seconds)
    tokens = column(chosen, lambda record: float(batch_tokens(record.step - 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        speeds = totals(tokens, offsets) / totals(seconds, offsets)
    return {
        "from": first,
        "largest": largest,
        "step": [record.step for record in last],
        "tokens": [record.tokens for record in last],
        "count": (ends - offsets).tolist(),
        "loss": rounded(means(losses, offsets)),
        "loss_min": rounded(extremes(np.fmin, losses, offsets)),
        "loss_max": rounded(extremes(np.fmax, losses, offsets)),
        "gradient_norm": rounded(means(norms, offsets)),
        "gradient_norm_min": rounded(extremes(np.fmin, norms, offsets)),
        "gradient_norm_max": rounded(extremes(np.fmax, norms, offsets)),
        "learning_rate": [rounded_value(record.learning_rate) for record in last],
        "tokens_per_second": rounded(speeds),
    }


def column(steps: Sequence[StepRecord], value: Callable[[StepRecord], float]) -> Floats:
    """Return a value of each step; NaN where it is infinite.  (steps)"""
    values = np.fromiter(map(value, steps), np.float64, len(steps))
    values[~np.isfinite(values)] = np.nan
    return values


def totals(values: Floats, offsets: NDArray[np.int64]) -> Floats:
    """Add the finite values of each point.  (steps), (points) -> (points)"""
    return np.add.reduceat(np.nan_to_num(values), offsets) if len(values) else values


def means(values: Floats, offsets: NDArray[np.int64]) -> Floats:
    """Return the mean of the finite values of each point.  (steps), (points) -> (points)"""
    with np.errstate(invalid="ignore"):
        return totals(values, offsets) / totals((~np.isnan(values)).astype(np.float64), offsets)


def extremes(choose: np.ufunc, values: Floats, offsets: NDArray[np.int64]) -> Floats:
    """Return the least or the largest finite value of each point.  (steps), (points) -> (points)"""
    return np.asarray(choose.reduceat(values, offsets), np.float64) if len(values) else values


def rounded(values: Floats) -> list[float | None]:
    return [rounded_value(value) for value in values.tolist()]


def rounded_value(value: float) -> float | None:
    """Round to `DIGITS` significant digits; None for NaN and infinity."""
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
