"""The pictures of a report, drawn from journals alone, each for light and for dark paper, as PNG and as SVG."""

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from regpt.results.curve import smoothed, tokens_in_short
from regpt.results.paper import (
    COLORS,
    PAPER,
    Line,
    draw_lines,
    dress,
    finish,
    page,
    save,
    short_name,
)
from regpt.results.runs import Run, headline

SMOOTHING_STEPS = 10  # at least; a fiftieth of the steps where that is more
POINTS = 600  # of a curve; a picture has no room for more
SETTLED = 0.06  # of the tokens; what a loss falls through before them may lie above the picture


def draw_losses(runs: Sequence[Run], path: Path, lines: Sequence[Line] = ()) -> None:
    """Training and validation loss over tokens, the latter with its standard error. The first run is the report's."""
    figure, axes = page("Loss, nats per token")
    smoothing = set()
    for run, color in reversed(list(zip(runs, cycle(COLORS), strict=False))):
        tokens, losses = finite(run, [step.loss for step in run.history.steps])
        width = max(SMOOTHING_STEPS, len(losses) // 50)
        faint(axes, tokens, losses, color)
        if len(losses) > SMOOTHING_STEPS:
            smoothing.add(width)
            axes.plot(*thinned(tokens, smoothed(losses, width)), color=color, linewidth=1.0, alpha=0.75)
        looks = run.history.validations
        last = f", validation {looks[-1].loss:.3f}" if looks else ", not validated yet"
        x, y, errors = ([getattr(v, name) for v in looks] for name in ("tokens", "loss", "standard_error"))
        course(axes, x, y, errors, color, short_name(run.id) + last)
    points = losses_of(runs)
    near = within_reach(points, lines)
    clipped = limits_of_losses(axes, points, near)
    notes = ["Thick: validation ± standard error. Thin: training"]
    notes[0] += f", mean of {' or '.join(f'{width:,}' for width in sorted(smoothing))} steps." * bool(smoothing) or "."
    notes += [f"It begins above, at {clipped:.1f}."] * bool(clipped)
    notes += ["Published losses are far below."] * (len(near) < len(lines))
    finish(axes, " ".join(notes))
    draw_lines(axes, near)
    save(figure, path)


def losses_of(runs: Sequence[Run]) -> list[tuple[float, float]]:
    """(tokens, loss) of all validations and steps."""
    return [
        *((look.tokens, look.loss) for run in runs for look in run.history.validations),
        *(point for run in runs for point in zip(*finite(run, [s.loss for s in run.history.steps]), strict=True)),
    ]


def within_reach(points: Sequence[tuple[float, float]], lines: Sequence[Line]) -> list[Line]:
    """Lines that do not squeeze the curves into less than a third of the picture."""
    losses = [loss for _, loss in points if math.isfinite(loss)]
    if not losses:
        return list(lines)
    return [line for line in lines if min(losses) - line.value <= 2 * (max(losses) - min(losses))]


def limits_of_losses(axes: Axes, points: Sequence[tuple[float, float]], lines: Sequence[Line]) -> float:
    """Leave out the fall from ln V where it would squeeze the rest; returns the highest loss then, or 0."""
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


def draw_hellaswag(runs: Sequence[Run], path: Path, lines: Sequence[Line], of: str) -> None:
    """HellaSwag's accuracy over tokens with its standard error; `of` says which items these are."""
    figure, axes = page(f"HellaSwag accuracy, {of}")
    for run, color in reversed(list(zip(runs, cycle(COLORS), strict=False))):
        looks = run.hellaswag
        others = f"; {looks[-1].items}" if looks and looks[-1].items != of else ""
        scores = [headline(record) for record in looks]
        last = f", {scores[-1][0]:.3f} ± {scores[-1][1]:.3f}{others}" if scores else ", not measured"
        x, shares, errors = [r.tokens for r in looks], [share for share, _ in scores], [error for _, error in scores]
        course(axes, x, shares, errors, color, short_name(run.id) + last)
    finish(axes, "Bands: ± one standard error.")
    draw_lines(axes, lines)
    save(figure, path)


def draw_course(run: Run, path: Path) -> None:
    """Learning rate, gradient norm and speed over tokens, one below the other."""
    figure = Figure(figsize=(6.8, 6.6), layout="constrained", facecolor=PAPER)
    steps, batch = run.history.steps, run.recipe.data.total_batch_tokens
    curves = {
        "Learning rate": [step.learning_rate for step in steps],
        "Gradient norm before clipping": [step.gradient_norm for step in steps],
        "Tokens per second": [batch / step.seconds for step in steps],
    }
    shared = None
    for place, (name, values) in enumerate(curves.items()):
        axes = figure.add_subplot(3, 1, place + 1, sharex=shared)
        shared = shared or axes
        dress(axes, name)
        tokens, kept = finite(run, values)
        if place == 0:
            course(axes, *thinned(tokens, kept), [], COLORS[0], "", marked=len(kept) == 1)
        else:
            faint(axes, tokens, kept, COLORS[0])
            middle = thinned(tokens, smoothed(kept, max(SMOOTHING_STEPS, len(kept) // 50)))
            course(axes, *middle, [], COLORS[0], "", marked=len(kept) == 1)
        if place == 1 and kept and max(kept) > 8 * sorted(kept)[len(kept) // 2]:
            axes.set_yscale("log")  # the first norms would squeeze all others
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if place == 2:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tokens_in_short(value)))
        else:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
        axes.set_xlim(left=0)
        finish(axes)
    if steps:
        draw_lines(figure.axes[1], [Line("clipping norm", run.recipe.optimizer.grad_clip)])
    save(figure, path)


def course(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    errors: Sequence[float],
    color: str,
    name: str,
    marked: bool | None = None,
) -> None:
    """A curve with its band, and its points where they are few."""
    dots = len(x) <= 40 if marked is None else marked
    axes.plot(x, y, color=color, linewidth=1.9, marker="o" if dots else "", markersize=4, label=name)
    if errors:
        low = [value - error for value, error in zip(y, errors, strict=True)]
        high = [value + error for value, error in zip(y, errors, strict=True)]
        axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
        if len(x) == 1:  # a band of no width is not seen
            axes.errorbar(x, y, yerr=errors, color=color, linewidth=1.2, capsize=3)


def faint(axes: Axes, x: Sequence[float], y: Sequence[float], color: str) -> None:
    """Every step's value; of many steps, how far those reach that share a place in the picture."""
    if len(x) <= POINTS:
        dots = "o" if len(x) <= SMOOTHING_STEPS else ""
        axes.plot(x, y, color=color, alpha=0.3, linewidth=0.8, marker=dots, markersize=2.5)
        return
    size = -(-len(x) // POINTS)
    parts = [y[start : start + size] for start in range(0, len(y), size)]
    axes.fill_between(x[::size], [min(p) for p in parts], [max(p) for p in parts], color=color, alpha=0.2, linewidth=0)


def finite(run: Run, values: Sequence[float]) -> tuple[list[float], list[float]]:
    """(tokens seen, value) after each step whose value is a number."""
    kept = [(step.tokens, value) for step, value in zip(run.history.steps, values, strict=True) if math.isfinite(value)]
    return [float(tokens) for tokens, _ in kept], [value for _, value in kept]


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Of many points every so many-th, and the last."""
    kept = sorted({*range(0, len(x), -(-len(x) // POINTS) or 1), *range(max(0, len(x) - 1), len(x))})
    return [x[i] for i in kept], [y[i] for i in kept]
