"""Draw the figures of a report from journals, in light and dark, as PNG and SVG."""

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from regpt.base.format import short_count, smoothed, with_error
from regpt.rendering.charts import SMOOTHING_STEPS, finite_points, plot_band, plot_faint, set_loss_limits, thin_out
from regpt.rendering.figure_style import (
    COLORS,
    PAPER,
    Line,
    draw_lines,
    finish_axes,
    new_figure,
    save_figure,
    short_name,
    style_axes,
)
from regpt.rendering.matplotlib_import import Figure, FuncFormatter, NullFormatter
from regpt.tracking.run import Run, primary_accuracy


def draw_losses(runs: Sequence[Run], path: Path, lines: Sequence[Line] = ()) -> None:
    """Draw training loss and validation loss with its standard error over tokens. The first run is the report's."""
    figure, axes = new_figure("Loss (nats per token)")
    smoothing = set()
    for run, color in reversed(list(zip(runs, cycle(COLORS), strict=False))):
        tokens, losses = finite_points(run, [step.loss for step in run.history.steps])
        width = max(SMOOTHING_STEPS, len(losses) // 50)
        plot_faint(axes, tokens, losses, color)
        if len(losses) > SMOOTHING_STEPS:
            smoothing.add(width)
            axes.plot(*thin_out(tokens, smoothed(losses, width)), color=color, linewidth=1.0, alpha=0.75)
        looks = run.history.validations
        last = f", validation {looks[-1].loss:.4f}" if looks else ", no validation yet"
        x, y, errors = ([getattr(v, name) for v in looks] for name in ("tokens", "loss", "standard_error"))
        plot_band(axes, x, y, errors, color, short_name(run.id) + last)
    points = losses_of(runs)
    near = within_reach(points, lines)
    clipped = set_loss_limits(axes, points, near)
    notes = ["Thick: validation ± standard error. Thin: training"]
    notes[0] += f", mean of {' or '.join(f'{width:,}' for width in sorted(smoothing))} steps." * bool(smoothing) or "."
    notes += [f"The first losses, up to {clipped:.1f}, are cut off."] * bool(clipped)
    notes += ["Published losses are far below this range."] * (len(near) < len(lines))
    finish_axes(axes, " ".join(notes))
    draw_lines(axes, near)
    save_figure(figure, path)


def losses_of(runs: Sequence[Run]) -> list[tuple[float, float]]:
    """Return (tokens, loss) of all validations and steps."""
    return [
        *((look.tokens, look.loss) for run in runs for look in run.history.validations),
        *(
            point
            for run in runs
            for point in zip(*finite_points(run, [s.loss for s in run.history.steps]), strict=True)
        ),
    ]


def within_reach(points: Sequence[tuple[float, float]], lines: Sequence[Line]) -> list[Line]:
    """Return the lines that leave at least a third of the figure to the curves."""
    losses = [loss for _, loss in points if math.isfinite(loss)]
    if not losses:
        return list(lines)
    return [line for line in lines if min(losses) - line.value <= 2 * (max(losses) - min(losses))]


def draw_hellaswag(runs: Sequence[Run], path: Path, lines: Sequence[Line], of: str) -> None:
    """Draw HellaSwag accuracy with its standard error over tokens; `of` describes the items."""
    figure, axes = new_figure(f"HellaSwag accuracy, {of}")
    shown = runs[0].hellaswag[-1].digest if runs[0].hellaswag else ""
    for run, color in reversed(list(zip(runs, cycle(COLORS), strict=False))):
        looks = run.hellaswag
        others = f"; {looks[-1].items}" if looks and looks[-1].digest != shown else ""
        scores = [primary_accuracy(record) for record in looks]
        last = f", {with_error(*scores[-1])}{others}" if scores else ", not measured"
        x, shares, errors = [r.tokens for r in looks], [share for share, _ in scores], [error for _, error in scores]
        plot_band(axes, x, shares, errors, color, short_name(run.id) + last)
    finish_axes(axes, "Bands: ± one standard error.")
    draw_lines(axes, lines)
    save_figure(figure, path)


def draw_training_dynamics(run: Run, path: Path) -> None:
    """Draw learning rate, gradient norm and speed over tokens, one below the other."""
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
        style_axes(axes, name)
        tokens, kept = finite_points(run, values)
        if place == 0:
            plot_band(axes, *thin_out(tokens, kept), [], COLORS[0], "", marked=len(kept) == 1)
        else:
            plot_faint(axes, tokens, kept, COLORS[0])
            middle = thin_out(tokens, smoothed(kept, max(SMOOTHING_STEPS, len(kept) // 50)))
            plot_band(axes, *middle, [], COLORS[0], "", marked=len(kept) == 1)
        if place == 1 and kept and max(kept) > 8 * sorted(kept)[len(kept) // 2]:
            axes.set_yscale("log")  # the first norms would squeeze all others
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if place == 2:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        else:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
        axes.set_xlim(left=0)
        finish_axes(axes)
    if steps:
        draw_lines(figure.axes[1], [Line("clipping norm", run.recipe.optimizer.grad_clip)])
    save_figure(figure, path)
