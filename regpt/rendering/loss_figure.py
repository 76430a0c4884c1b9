"""The figure of losses: the whole training on a logarithmic axis, and its end enlarged."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, cycle

from regpt.rendering.charts import MOST_MARKERS, POINTS, SMOOTHING_STEPS, evenly_spaced, plot_band, plot_faint
from regpt.rendering.figure_style import (
    COLORS,
    INK,
    Line,
    draw_lines,
    finish_axes,
    new_figure,
    style_axes,
)
from regpt.rendering.matplotlib_import import Axes, Figure, FixedLocator, FuncFormatter, NullLocator

NATS, BITS_PER_BYTE = "Loss (nats per token)", "Validation loss (bits per byte)"
LOG_RATIO = 10  # of the last x to that of the first step; a logarithmic axis from here on
LEAST_STEPS_ENLARGED = 10
LARGEST_ENLARGED_SHARE = 0.9  # of the x axis
MARGIN = 0.08  # of the enlarged losses, above and below


@dataclass(frozen=True)
class LossCurve:
    """The losses of one run over tokens, seconds or FLOPs; all finite."""

    label: str
    x: Sequence[float]  # of the steps
    losses: Sequence[float]  # of the steps
    validation_x: Sequence[float]
    validation: Sequence[float]
    ranges: Sequence[tuple[float, float]]  # of the validation losses: ± their error, or over seeds
    dashed: bool = False

    @property
    def end(self) -> float:
        return max([*self.x, *self.validation_x], default=0.0)

    @property
    def smoothing(self) -> int:
        """The number of steps that a point of the smoothed curve averages."""
        return max(SMOOTHING_STEPS, len(self.losses) // 50)

    @property
    def smoothed(self) -> list[float]:
        """The mean of up to `smoothing` steps; of fewer at the start, where a long mean would lag behind."""
        sums = [0.0, *accumulate(self.losses)]
        windows = [min(self.smoothing, max(1, step // 10)) for step in range(1, len(sums))]
        return [(sums[n] - sums[n - window]) / window for n, window in enumerate(windows, 1)]

    def part_from(self, start: float) -> "LossCurve":
        """Return the part that begins with the last point before x = start."""
        steps, looks = (max(0, bisect_left(xs, start) - 1) for xs in (self.x, self.validation_x))
        return replace(
            self,
            x=self.x[steps:],
            losses=self.losses[steps:],
            validation_x=self.validation_x[looks:],
            validation=self.validation[looks:],
            ranges=self.ranges[looks:],
        )

    def values_from(self, start: float) -> list[float]:
        """Return the smoothed training losses and the ranges of the validation losses from x = start on."""
        training = [loss for x, loss in zip(self.x, self.smoothed, strict=True) if x >= start]
        looks = zip(self.validation_x, self.ranges, strict=True)
        return [*training, *(end for x, ends in looks if x >= start for end in ends)]


def loss_figure(
    curves: Sequence[LossCurve],
    x_label: str,
    tick_text: Callable[[float], str],
    lines: Sequence[Line] = (),
    with_steps: bool = True,
    band: str = "validation ± standard error",
    title: str = NATS,
) -> Figure:
    """Draw training and validation losses, the first curve on top.

    with_steps: show the loss of every step behind the smoothed one. band: what the thick curves and their bands are.
    """
    figure, axes = new_figure(title)
    plot_curves(axes, curves, with_steps)
    set_x_axis(axes, curves, tick_text)
    near = within_reach(curves, lines)
    start = enlarged_from(curves)
    enlarged = add_enlarged(figure, axes, curves, start, tick_text, with_steps) if start is not None else None
    (enlarged or axes).set_xlabel(x_label, color=INK, fontsize=9.5)
    finish_axes(axes, note_of(curves, band, hidden=len(lines) - len(near)))
    draw_lines(axes, near)
    if enlarged:
        low, high = enlarged.get_ylim()
        draw_lines(enlarged, [line for line in near if low < line.value < high])
    return figure


def plot_curves(axes: Axes, curves: Sequence[LossCurve], with_steps: bool, start: float = 0.0) -> None:
    """Plot the curves from x = start on. Points are evenly spaced, and logarithmically from x = 0 on."""
    for curve, color in reversed(list(zip(curves, cycle(COLORS), strict=False))):
        part = curve.part_from(start)
        first = len(curve.x) - len(part.x)
        kept = evenly_spaced(len(part.x)) if start else log_spaced(len(part.x))
        if with_steps:
            plot_faint(axes, part.x, part.losses, color, kept)
        if len(curve.losses) > SMOOTHING_STEPS or not with_steps:
            mean = curve.smoothed[first:]
            axes.plot([part.x[n] for n in kept], [mean[n] for n in kept], color=color, linewidth=1.0, alpha=0.75)
        label, marked = "" if start else curve.label, len(curve.validation_x) <= MOST_MARKERS
        plot_band(axes, part.validation_x, part.validation, part.ranges, color, label, marked, curve.dashed)


def log_spaced(count: int) -> list[int]:
    """Return at most about `POINTS` indices that are evenly spaced on a logarithmic axis, and the last one."""
    if count <= POINTS:
        return list(range(count))
    return sorted({round(count ** (n / POINTS)) - 1 for n in range(POINTS + 1)})


def set_x_axis(axes: Axes, curves: Sequence[LossCurve], tick_text: Callable[[float], str]) -> None:
    """Make the axis logarithmic if the curves span more than a decade; it still begins at 0."""
    formatter = FuncFormatter(lambda value, _: tick_text(value))
    axes.xaxis.set_major_formatter(formatter)
    first = min((x for curve in curves for x in curve.x if x > 0), default=0.0)
    last = max((curve.end for curve in curves), default=0.0)
    if not first or last / first < LOG_RATIO:
        return
    decades = math.log10(last / first)
    # linear from 0 to the first step, on a tenth of the width, so that the validation before it has a place
    axes.set_xscale("symlog", linthresh=first, linscale=max(0.1 * decades, 0.05))
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(first, last)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(formatter)  # the scale has replaced it
    axes.set_xlim(0, last * 10 ** (0.02 * decades))


def log_ticks(first: float, last: float) -> list[float]:
    """Return 0 and round numbers from the first to the last x, at most about eight."""
    decades = math.log10(last / first)
    factors = (1,) if decades > 3.5 else (1, 3) if decades > 2.2 else (1, 2, 5)
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    ticks = [float(factor * 10.0**power) for power in powers for factor in factors]
    return [0.0, *(tick for tick in ticks if first <= tick <= last)]


def enlarged_from(curves: Sequence[LossCurve]) -> float | None:
    """Return where the enlarged end begins: at half of the shortest curve; None if there is too little to enlarge."""
    trained = [curve for curve in curves if curve.x]
    if not trained:
        return None
    start = max(min(curve.end for curve in trained) / 2, (1 - LARGEST_ENLARGED_SHARE) * max(c.end for c in trained))
    steps = sum(x >= start for x in trained[0].x)
    return start if steps >= LEAST_STEPS_ENLARGED else None


def add_enlarged(
    figure: Figure,
    above: Axes,
    curves: Sequence[LossCurve],
    start: float,
    tick_text: Callable[[float], str],
    with_steps: bool,
) -> Axes:
    """Add a panel below with the losses from x = start on, its limits fitted to them."""
    figure.set_figheight(6.9)
    grid = figure.add_gridspec(2, 1)
    above.set_subplotspec(grid[0])
    axes = figure.add_subplot(grid[1])
    style_axes(axes, "The end, enlarged")
    above.set_xlabel("")
    plot_curves(axes, curves, with_steps, start)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    end = max(curve.end for curve in curves)
    axes.set_xlim(start, end + 0.02 * (end - start))
    values = [value for curve in curves for value in curve.values_from(start)]
    low, high = min(values), max(values)
    room = MARGIN * (high - low) or 0.01
    axes.set_ylim(low - room, high + room)
    return axes


def within_reach(curves: Sequence[LossCurve], lines: Sequence[Line]) -> list[Line]:
    """Return the lines that leave at least a third of the figure to the curves."""
    losses = [loss for curve in curves for loss in [*curve.losses, *curve.validation]]
    if not losses:
        return list(lines)
    return [line for line in lines if min(losses) - line.value <= 2 * (max(losses) - min(losses))]


def note_of(curves: Sequence[LossCurve], band: str, hidden: int) -> str:
    """Say what the lines are, and whether published losses are outside the figure."""
    widths = sorted({curve.smoothing for curve in curves if len(curve.losses) > SMOOTHING_STEPS})
    mean = f", mean of up to {' or '.join(f'{width:,}' for width in widths)} steps" if widths else ""
    far = " Published losses are far below this range." if hidden else ""
    return f"Thick: {band}. Thin: training{mean}.{far}"
