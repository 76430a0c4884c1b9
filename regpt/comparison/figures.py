"""Draw the figures of a comparison: losses over tokens, time or FLOPs, and HellaSwag accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from regpt.base.format import scientific, short_count, smoothed, time_unit, with_error
from regpt.fairness.learning_curves import LearningCurve
from regpt.fairness.models import ComparedModel
from regpt.rendering.charts import SMOOTHING_STEPS, plot_band, set_loss_limits, thin_out
from regpt.rendering.figure_style import COLORS, INK, Line, draw_lines, finish_axes, new_figure, save_figure, short_name
from regpt.rendering.matplotlib_import import Axes, FuncFormatter
from regpt.reporting.published import CHANCE
from regpt.tracking.journal import TaskRecord


@dataclass(frozen=True)
class Axis:
    """The x axis of a figure."""

    label: str
    tick_text: Callable[[float], str]
    x_of: Callable[[LearningCurve, float, float], float]  # of a curve, tokens and seconds


def x_axis(quantity: str, curves: Sequence[LearningCurve]) -> Axis:
    if quantity == "tokens":
        return Axis("Training tokens", short_count, lambda curve, tokens, seconds: tokens)
    if quantity == "flops":
        return Axis(
            "Training FLOPs",
            lambda value: scientific(value, 2),
            lambda curve, tokens, seconds: tokens * curve.flops_per_token,
        )
    unit, name = time_unit(max((seconds for curve in curves for _, seconds, _ in curve.steps), default=0.0))
    return Axis(
        f"Training time in {name}, evaluation and saving excluded",
        lambda value: f"{value:g}",
        lambda curve, tokens, seconds: seconds / unit,
    )


def draw_learning_curves(curves: Sequence[LearningCurve], quantity: str, path: Path) -> None:
    """Draw validation loss with its standard error and smoothed training loss over tokens, seconds or flops."""
    axis = x_axis(quantity, curves)
    figure, axes = new_figure("Loss (nats per token)")
    points = []
    for curve, color in reversed(list(zip(curves, cycle(COLORS), strict=False))):
        x = [axis.x_of(curve, tokens, seconds) for tokens, seconds, _ in curve.steps]
        losses = smoothed([loss for _, _, loss in curve.steps], max(SMOOTHING_STEPS, len(x) // 50))
        axes.plot(*thin_out(x, losses), color=color, linewidth=0.9, alpha=0.6)
        at = [axis.x_of(curve, point.tokens, point.seconds) for point in curve.evaluations]
        last = f" (last {curve.evaluations[-1].loss:.4f})" if curve.evaluations else "; no validation"
        values, errors = (
            [point.loss for point in curve.evaluations],
            [point.standard_error for point in curve.evaluations],
        )
        plot_band(axes, at, values, errors, color, short_name(curve.name) + last)
        points += [*zip(x, losses, strict=True), *zip(at, values, strict=True)]
    clipped = set_loss_limits(axes, points, [])
    above = f" Losses up to {clipped:.1f} are cut off." if clipped else ""
    label_x_axis(axes, axis, f"Thick: validation loss ± standard error. Thin: smoothed training loss.{above}")
    save_figure(figure, path)


def hellaswag_records(model: ComparedModel) -> list[TaskRecord]:
    """Return the scores of a run up to the step that is compared."""
    return [record for record in model.run.hellaswag if record.step <= (model.step or 0)] if model.run else []


def draw_hellaswag_curves(models: Sequence[ComparedModel], path: Path) -> None:
    """Draw the HellaSwag accuracy over tokens of all runs that were scored during training."""
    figure, axes = new_figure("HellaSwag accuracy")
    for model, color in reversed(list(zip(models, cycle(COLORS), strict=False))):
        records = hellaswag_records(model)
        if not records:
            continue
        metric = next(iter(records[-1].accuracy))
        tokens = [record.tokens for record in records]
        accuracies = [record.accuracy[metric] for record in records]
        errors = [record.standard_error[metric] for record in records]
        score = f" ({with_error(accuracies[-1], errors[-1])}; {records[-1].items})"
        plot_band(axes, tokens, accuracies, errors, color, short_name(model.name) + score)
    label_x_axis(axes, x_axis("tokens", []), "Bands: ± one standard error.")
    draw_lines(axes, [Line("chance", CHANCE)])
    save_figure(figure, path)


def label_x_axis(axes: Axes, axis: Axis, note: str) -> None:
    axes.set_xlabel(axis.label, color=INK, fontsize=9.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis.tick_text(value)))
    finish_axes(axes, note)
