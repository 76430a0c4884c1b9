"""Curves for the figures of reports and comparisons: error bands, single steps, thinning, axis limits."""

import math
from collections.abc import Sequence
from itertools import pairwise

from regpt.rendering.matplotlib_import import Axes
from regpt.tracking.run import Run

SMOOTHING_STEPS = 10  # the minimum; a fiftieth of the steps if that is more
MOST_MARKERS = 40  # of a curve
DASHES, ON_TOP = (0, (3, 2)), 3  # so that a curve below, of almost the same values, stays visible
POINTS = 600  # most points of a curve; a figure has no room for more


def plot_band(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    ranges: Sequence[tuple[float, float]],
    color: str,
    name: str,
    marked: bool | None = None,
    dashed: bool = False,
) -> None:
    """Plot a curve with a band, and markers if it has few points. A dashed one lies on top of the others.

    ranges: the lowest and the highest value of the band at each point; empty: no band.
    """
    dots = len(x) <= MOST_MARKERS if marked is None else marked
    marker, line, layer = "o" if dots else "", DASHES if dashed else "-", ON_TOP if dashed else None
    size = 2.5 if dashed else 4
    axes.plot(
        x, y, color=color, linewidth=1.9, linestyle=line, marker=marker, markersize=size, label=name, zorder=layer
    )
    if ranges:
        low, high = zip(*ranges, strict=True)
        axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
        if len(x) == 1:  # the band of one point has no width
            axes.errorbar(x, y, yerr=[[y[0] - low[0]], [high[0] - y[0]]], color=color, linewidth=1.2, capsize=3)


def around(values: Sequence[float], errors: Sequence[float]) -> list[tuple[float, float]]:
    """Return the range of each value ± its error."""
    return [(value - error, value + error) for value, error in zip(values, errors, strict=True)]


def plot_faint(axes: Axes, x: Sequence[float], y: Sequence[float], color: str, starts: Sequence[int] = ()) -> None:
    """Plot the value of every step faintly. If there are many, plot the range of neighbouring steps.

    starts: the first step of each group of neighbouring ones; groups of equal size without it.
    """
    if len(x) <= POINTS:
        dots = "o" if len(x) <= SMOOTHING_STEPS else ""
        axes.plot(x, y, color=color, alpha=0.3, linewidth=0.8, marker=dots, markersize=2.5)
        return
    starts = starts or evenly_spaced(len(x))
    parts = [y[start:end] for start, end in pairwise([*starts, len(y)])]
    lowest, highest = [min(part) for part in parts], [max(part) for part in parts]
    axes.fill_between([x[start] for start in starts], lowest, highest, color=color, alpha=0.2, linewidth=0)


def finite_points(run: Run, values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the tokens and the values of all steps with a finite value."""
    kept = [(step.tokens, value) for step, value in zip(run.history.steps, values, strict=True) if math.isfinite(value)]
    return [float(tokens) for tokens, _ in kept], [value for _, value in kept]


def thin_out(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most about `POINTS` evenly spaced points, and the last one."""
    kept = evenly_spaced(len(x))
    return [x[i] for i in kept], [y[i] for i in kept]


def evenly_spaced(count: int) -> list[int]:
    """Return at most about `POINTS` evenly spaced indices, and the last one."""
    return sorted({*range(0, count, -(-count // POINTS) or 1), *range(max(0, count - 1), count)})
