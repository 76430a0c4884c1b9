"""Draw the figures of a comparison: losses over tokens, time or FLOPs, and HellaSwag accuracy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from regpt.base.format import scientific, short_count, time_unit, with_error
from regpt.fairness.learning_curves import LearningCurve, have_one_tokenizer
from regpt.fairness.models import ComparedModel
from regpt.rendering.charts import around, plot_band
from regpt.rendering.figure_style import COLORS, INK, Line, draw_lines, finish_axes, new_figure, save_figure, short_name
from regpt.rendering.loss_figure import BITS_PER_BYTE, NATS, LossCurve, loss_figure
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


ONE_RUN = "validation ± standard error"
OVER_SEEDS = "mean validation; bands: lowest to highest seed"


def draw_learning_curves(curves: Sequence[LearningCurve], quantity: str, path: Path) -> None:
    """Draw validation loss with its band and smoothed training loss over tokens, seconds or flops.

    The band is ± the standard error of a run, or from the lowest to the highest of several seeds. Losses of different
    tokenizers are drawn in bits per byte.
    """
    axis = x_axis(quantity, curves)
    is_one = have_one_tokenizer(curves)
    drawn = [loss_curve(curve if is_one else curve.in_bits_per_byte(), axis) for curve in curves]
    are_means = any(point.by_seed for curve in curves for point in curve.evaluations)
    band = OVER_SEEDS if are_means else ONE_RUN
    title = NATS if is_one else BITS_PER_BYTE
    save_figure(loss_figure(drawn, axis.label, axis.tick_text, with_steps=False, band=band, title=title), path)


def loss_curve(curve: LearningCurve, axis: Axis) -> LossCurve:
    """Return the finite losses of a run over the quantity of the axis."""
    steps = [step for step in curve.steps if math.isfinite(step[2])]
    points = [point for point in curve.evaluations if math.isfinite(point.loss)]
    last = f" (last {points[-1].loss:.4f})" if points else "; no validation"
    return LossCurve(
        label=short_name(curve.name) + last,
        x=[axis.x_of(curve, tokens, seconds) for tokens, seconds, _ in steps],
        losses=[loss for _, _, loss in steps],
        validation_x=[axis.x_of(curve, point.tokens, point.seconds) for point in points],
        validation=[point.loss for point in points],
        ranges=[point.range for point in points],
    )


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
        errors = [record.standard_errors[metric] for record in records]
        score = f" ({with_error(accuracies[-1], errors[-1])}; {records[-1].items})"
        plot_band(axes, tokens, accuracies, around(accuracies, errors), color, short_name(model.name) + score)
    label_x_axis(axes, x_axis("tokens", []), "Bands: ± one standard error.")
    draw_lines(axes, [Line("chance", CHANCE)])
    save_figure(figure, path)


def label_x_axis(axes: Axes, axis: Axis, note: str) -> None:
    axes.set_xlabel(axis.label, color=INK, fontsize=9.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis.tick_text(value)))
    finish_axes(axes, note)
