"""Curves for the figures of reports and comparisons: error bands, single steps, thinning, axis limits."""

import math
from collections.abc import Sequence

from regpt.rendering.figure_style import Line
from regpt.rendering.matplotlib_import import Axes
from regpt.tracking.run import Run

SMOOTHING_STEPS = 10  # the minimum; a fiftieth of the steps if that is more
POINTS = 600  # most points of a curve; a figure has no room for more
SETTLED = 0.06  # fraction of the tokens; losses before it may be cut off


def set_loss_limits(axes: Axes, points: Sequence[tuple[float, float]], lines: Sequence[Line]) -> float:
    """Cut off the first losses if they would squeeze the rest. Return the highest loss if cut off, else 0."""
    points = [point for point in points if math.isfinite(point[1])]
    furthest = max((tokens for tokens, _ in points), default=0.0)
    settled = [loss for tokens, loss in points if tokens >= SETTLED * furthest]
    if len(settled) < 20:
        return 0.0
    low, high = min([*settled, *(line.value for line in lines)]), max(settled)
    highest = max(loss for _, loss in points)
    if highest - low < 1.25 * (high - low):
        return 0.0
    axes.set_ylim(low - 0.06 * (high - low), high + 0.1 * (high - low))
    return highest


def plot_band(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    errors: Sequence[float],
    color: str,
    name: str,
    marked: bool | None = None,
) -> None:
    """Plot a curve with its error band, and markers if it has few points."""
    dots = len(x) <= 40 if marked is None else marked
    axes.plot(x, y, color=color, linewidth=1.9, marker="o" if dots else "", markersize=4, label=name)
    if errors:
        low = [value - error for value, error in zip(y, errors, strict=True)]
        high = [value + error for value, error in zip(y, errors, strict=True)]
        axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
        if len(x) == 1:  # the band of one point has no width
            axes.errorbar(x, y, yerr=errors, color=color, linewidth=1.2, capsize=3)


def plot_faint(axes: Axes, x: Sequence[float], y: Sequence[float], color: str) -> None:
    """Plot the value of every step faintly. If there are many, plot the range of neighbouring steps."""
    if len(x) <= POINTS:
        dots = "o" if len(x) <= SMOOTHING_STEPS else ""
        axes.plot(x, y, color=color, alpha=0.3, linewidth=0.8, marker=dots, markersize=2.5)
        return
    size = -(-len(x) // POINTS)
    parts = [y[start : start + size] for start in range(0, len(y), size)]
    axes.fill_between(x[::size], [min(p) for p in parts], [max(p) for p in parts], color=color, alpha=0.2, linewidth=0)


def finite_points(run: Run, values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the tokens and the values of all steps with a finite value."""
    kept = [(step.tokens, value) for step, value in zip(run.history.steps, values, strict=True) if math.isfinite(value)]
    return [float(tokens) for tokens, _ in kept], [value for _, value in kept]


def thin_out(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most about `POINTS` evenly spaced points, and the last one."""
    kept = sorted({*range(0, len(x), -(-len(x) // POINTS) or 1), *range(max(0, len(x) - 1), len(x))})
    return [x[i] for i in kept], [y[i] for i in kept]
