"""The pictures of a comparison: what all runs lost over tokens, time or work, and their HellaSwag."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from regpt.base.format import short_count, smoothed
from regpt.compare.learning_curves import LearningCurve
from regpt.compare.models import ComparedModel
from regpt.rendering.charts import SMOOTHING_STEPS, plot_band, set_loss_limits, thin_out
from regpt.rendering.figure_style import COLORS, INK, Line, draw_lines, finish_axes, new_figure, save_figure, short_name
from regpt.report.published import CHANCE
from regpt.tracking.journal import TaskRecord

UNITS = ((86_400, "days", "d"), (3_600, "hours", "h"), (60, "minutes", "min"), (1, "seconds", "s"))


@dataclass(frozen=True)
class Axis:
    """What losses are drawn over."""

    label: str
    ticks: Callable[[float], str]
    x_of: Callable[[LearningCurve, float, float], float]  # of a course, tokens and seconds


def unit_of(seconds: float) -> tuple[int, str, str]:
    """(how many seconds, name, in short) of the unit in which a time is three or more, else of the smallest."""
    return next((unit for unit in UNITS if seconds >= 3 * unit[0]), UNITS[-1])


def seconds_in_short(value: float) -> str:
    size, _, short = unit_of(value)
    return f"{value / size:.3g} {short}"


def axis(over: str, courses: Sequence[LearningCurve]) -> Axis:
    if over == "tokens":
        return Axis("training tokens", short_count, lambda course, tokens, seconds: tokens)
    if over == "flops":
        return Axis(
            "floating-point operations of training",
            lambda value: f"{value:.1e}" if value else "0",
            lambda course, tokens, seconds: tokens * course.flops_per_token,
        )
    size, name, _ = unit_of(max((seconds for course in courses for _, seconds, _ in course.steps), default=0.0))
    return Axis(
        f"{name} in training steps; evaluation and saving excluded",
        lambda value: f"{value:g}",
        lambda course, tokens, seconds: seconds / size,
    )


def draw_learning_curves(courses: Sequence[LearningCurve], over: str, path: Path) -> None:
    """Validation loss with its standard error, and the smoothed training loss, of all runs over one axis."""
    chosen = axis(over, courses)
    figure, axes = new_figure("Loss, nats per token")
    points = []
    for one, color in reversed(list(zip(courses, cycle(COLORS), strict=False))):
        x = [chosen.x_of(one, tokens, seconds) for tokens, seconds, _ in one.steps]
        losses = smoothed([loss for _, _, loss in one.steps], max(SMOOTHING_STEPS, len(x) // 50))
        axes.plot(*thin_out(x, losses), color=color, linewidth=0.9, alpha=0.6)
        at = [chosen.x_of(one, look.tokens, look.seconds) for look in one.evaluations]
        last = f" (last {one.evaluations[-1].loss:.3f})" if one.evaluations else ", no validation"
        values, errors = [look.loss for look in one.evaluations], [look.standard_error for look in one.evaluations]
        plot_band(axes, at, values, errors, color, short_name(one.name) + last)
        points += [*zip(x, losses, strict=True), *zip(at, values, strict=True)]
    clipped = set_loss_limits(axes, points, [])
    above = f" It begins above, at {clipped:.1f}." if clipped else ""
    label(
        axes,
        chosen,
        f"Thick: validation ± standard error. Thin: training loss, smoothed.{above}",
    )
    save_figure(figure, path)


def hellaswag_of(model: ComparedModel) -> list[TaskRecord]:
    """On the way to the step that is compared."""
    return [record for record in model.run.hellaswag if record.step <= (model.step or 0)] if model.run else []


def draw_hellaswag_curves(models: Sequence[ComparedModel], path: Path) -> None:
    """HellaSwag's accuracy over tokens, of all runs that were asked on the way."""
    figure, axes = new_figure("HellaSwag accuracy")
    for model, color in reversed(list(zip(models, cycle(COLORS), strict=False))):
        records = hellaswag_of(model)
        if not records:
            continue
        rule = next(iter(records[-1].accuracy))
        tokens = [record.tokens for record in records]
        shares = [record.accuracy[rule] for record in records]
        errors = [record.standard_error[rule] for record in records]
        score = f" ({shares[-1]:.3f} ± {errors[-1]:.3f}; {records[-1].items})"
        plot_band(axes, tokens, shares, errors, color, short_name(model.name) + score)
    label(axes, axis("tokens", []), "Bands: ± one standard error.")
    draw_lines(axes, [Line("chance", CHANCE)])
    save_figure(figure, path)


def label(axes: Axes, chosen: Axis, note: str) -> None:
    axes.set_xlabel(chosen.label, color=INK, fontsize=9.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: chosen.ticks(value)))
    finish_axes(axes, note)
