"""Draw the figures of a report from journals, in light and dark, as PNG and SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from regpt.base.format import short_count, smoothed, with_error
from regpt.rendering.charts import SMOOTHING_STEPS, around, finite_points, plot_band, plot_faint, thin_out
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
from regpt.rendering.loss_figure import LossCurve, loss_figure
from regpt.rendering.matplotlib_import import Figure, FuncFormatter, NullFormatter
from regpt.tracking.run import Run, averaged_accuracy, primary_accuracy


def draw_losses(runs: Sequence[Run], path: Path, lines: Sequence[Line] = ()) -> None:
    """Draw training loss and validation loss with its standard error over tokens. The first run is the report's."""
    curves = [loss_curve(run) for run in runs]
    curves += [averaged_curve(run) for run in runs if averaged_losses(run)]
    save_figure(loss_figure(curves, "Training tokens", short_count, lines), path)


def loss_curve(run: Run) -> LossCurve:
    """Return the finite losses of a run over tokens."""
    tokens, losses = finite_points(run, [step.loss for step in run.history.steps])
    looks = [look for look in run.history.validations if math.isfinite(look.loss)]
    last = f", validation {looks[-1].loss:.4f}" if looks else ", no validation yet"
    return LossCurve(
        label=short_name(run.id) + last,
        x=tokens,
        losses=losses,
        validation_x=[look.tokens for look in looks],
        validation=[look.loss for look in looks],
        ranges=around([look.loss for look in looks], [look.standard_error for look in looks]),
    )


def averaged_losses(run: Run) -> list[tuple[int, float]]:
    """Return the finite validation losses of a run's averaged weights: (tokens, nats per token)."""
    looks = [(look.tokens, look.averaged_loss) for look in run.history.validations]
    return [(tokens, loss) for tokens, loss in looks if loss is not None and math.isfinite(loss)]


def averaged_curve(run: Run) -> LossCurve:
    """Return the losses of a run's averaged weights over tokens; they are not trained, so it has no training losses."""
    tokens, losses = zip(*averaged_losses(run), strict=True)
    label = f"{short_name(run.id)}, averaged weights {losses[-1]:.4f}"
    ranges = around(losses, [0.0] * len(losses))
    return LossCurve(label, x=[], losses=[], validation_x=tokens, validation=losses, ranges=ranges, dashed=True)


def draw_hellaswag(runs: Sequence[Run], path: Path, lines: Sequence[Line], of: str) -> None:
    """Draw HellaSwag accuracy with its standard error over tokens; `of` describes the items."""
    figure, axes = new_figure(f"HellaSwag accuracy, {of}")
    shown = runs[0].hellaswag[-1].digest if runs[0].hellaswag else ""
    curves = [accuracy_curve(run, shown) for run in runs]
    curves += [curve for run in runs if (curve := averaged_accuracy_curve(run)).x]
    for curve, color in reversed(list(zip(curves, cycle(COLORS), strict=False))):
        plot_band(axes, curve.x, curve.shares, curve.ranges, color, curve.label, dashed=curve.dashed)
    finish_axes(axes, "Bands: ± one standard error.")
    draw_lines(axes, lines)
    save_figure(figure, path)


@dataclass(frozen=True)
class AccuracyCurve:
    """HellaSwag accuracies over tokens."""

    label: str
    x: list[int]
    shares: list[float]
    ranges: list[tuple[float, float]]  # ± one standard error; empty: none are drawn
    dashed: bool = False


def accuracy_curve(run: Run, shown: str) -> AccuracyCurve:
    """Return the accuracies of a run. The label names its items if their digest is not `shown`."""
    looks = run.hellaswag
    others = f"; {looks[-1].items}" if looks and looks[-1].digest != shown else ""
    scores = [primary_accuracy(record) for record in looks]
    last = f", {with_error(*scores[-1])}{others}" if scores else ", not measured"
    x, shares, errors = [r.tokens for r in looks], [share for share, _ in scores], [error for _, error in scores]
    return AccuracyCurve(short_name(run.id) + last, x, shares, around(shares, errors))


def averaged_accuracy_curve(run: Run) -> AccuracyCurve:
    """Return the accuracies of a run's averaged weights; empty without them."""
    looks = [(r.tokens, share) for r in run.hellaswag if (share := averaged_accuracy(r)) is not None]
    last = f" {looks[-1][1]:.4f}" if looks else ""
    label = f"{short_name(run.id)}, averaged weights{last}"
    return AccuracyCurve(label, [tokens for tokens, _ in looks], [share for _, share in looks], [], dashed=True)


def draw_training_dynamics(run: Run, path: Path) -> None:
    """Draw learning rate, gradient norm and speed over tokens, one below the other."""
    figure = Figure(figsize=(6.8, 6.6), layout="constrained", facecolor=PAPER)
    steps, batch = run.history.steps, run.recipe.batch_tokens
    curves = {
        "Learning rate": [step.learning_rate for step in steps],
        "Gradient norm before clipping": [step.gradient_norm for step in steps],
        "Tokens per second": [batch(step.step - 1) / step.seconds for step in steps],
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
