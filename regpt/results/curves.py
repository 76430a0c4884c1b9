"""The pictures of a comparison: what all runs lost over tokens, time or work, and their HellaSwag."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from regpt.results.compare import Compared
from regpt.results.courses import Course
from regpt.results.plots import COLORS, INK, band, page, plain, save, smoothed, tokens_in_short
from regpt.results.references import CHANCE
from regpt.run.journal import TaskRecord

SETTLED = 0.25  # of the shortest course's tokens; what was lost before may lie above the picture's upper edge
UNITS = ((86_400, "days", "d"), (3_600, "hours", "h"), (60, "minutes", "min"), (1, "seconds", "s"))


@dataclass(frozen=True)
class Axis:
    """What losses are drawn over."""

    label: str
    ticks: Callable[[float], str]
    x_of: Callable[[Course, float, float], float]  # of a course, tokens and seconds


def unit_of(seconds: float) -> tuple[int, str, str]:
    """(how many seconds, name, in short) of the unit in which a time is three or more, else of the smallest."""
    return next((unit for unit in UNITS if seconds >= 3 * unit[0]), UNITS[-1])


def seconds_in_short(value: float) -> str:
    size, _, short = unit_of(value)
    return f"{value / size:.3g} {short}"


def axis(over: str, courses: Sequence[Course]) -> Axis:
    if over == "tokens":
        return Axis("training tokens", tokens_in_short, lambda course, tokens, seconds: tokens)
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


def look_of(number: int) -> tuple[str, str]:
    """(color, line) of a run: colors first, then other lines."""
    return COLORS[number % len(COLORS)], ("-", "--", "-.", ":")[number // len(COLORS) % 4]


def draw_courses(courses: Sequence[Course], over: str, path: Path) -> None:
    """Validation loss with its standard error, and the smoothed training loss, of all runs over one axis.

    PNG or SVG by the path's ending.
    """
    chosen = axis(over, courses)
    x_of = chosen.x_of
    figure, axes = page("Validation loss, nats per token (bands: one standard error); thin: training loss")
    for number, course in reversed(list(enumerate(courses))):
        color, line = look_of(number)
        x = [x_of(course, tokens, seconds) for tokens, seconds, _ in course.steps]
        losses = smoothed([loss for _, _, loss in course.steps])
        looks = course.looks
        axes.plot(x, losses, color=color, linewidth=0.9, alpha=0.6)
        at = [x_of(course, look.tokens, look.seconds) for look in looks]
        axes.plot(
            at, [look.loss for look in looks], color=color, linestyle=line, linewidth=2.0, marker="o", markersize=4,
            label=plain(course.name) + (f" (last {looks[-1].loss:.3f})" if looks else ", no validation"),
        )  # fmt: skip
        band(axes, at, [look.loss for look in looks], [look.standard_error for look in looks], color)
    finish(axes, chosen)
    show_what_settled(axes, courses)
    save(figure, path)


def show_what_settled(axes: Axes, courses: Sequence[Course]) -> None:
    """The first steps fall from ln(vocabulary) and would press everything else to the bottom."""
    start = SETTLED * min((course.steps[-1][0] for course in courses if course.steps), default=0)
    looks = [look for course in courses for look in course.looks if look.tokens >= max(1, start)]
    if not looks:
        return
    top = max(look.loss + look.standard_error for look in looks)
    training = [loss for course in courses for loss in smoothed([loss for _, _, loss in course.steps])]
    bottom = min(*training, *(look.loss - look.standard_error for look in looks))
    if top > bottom:
        axes.set_ylim(bottom - 0.06 * (top - bottom), top + 0.12 * (top - bottom))


def hellaswag_of(model: Compared) -> list[TaskRecord]:
    """On the way to the step that is compared."""
    return [record for record in model.run.hellaswag if record.step <= (model.step or 0)] if model.run else []


def draw_answers(models: Sequence[Compared], path: Path) -> None:
    """HellaSwag's accuracy over tokens, of all runs that were asked on the way."""
    figure, axes = page("HellaSwag accuracy; bands: one standard error")
    for number, model in reversed(list(enumerate(models))):
        color, line = look_of(number)
        records = hellaswag_of(model)
        if not records:
            continue
        rule = next(iter(records[-1].accuracy))
        tokens = [record.tokens for record in records]
        shares = [record.accuracy[rule] for record in records]
        errors = [record.standard_error[rule] for record in records]
        axes.plot(
            tokens, shares, color=color, linestyle=line, linewidth=2.0, marker="o", markersize=4,
            label=f"{plain(model.name)} ({shares[-1]:.3f} ± {errors[-1]:.3f}; {plain(records[-1].items)})",
        )  # fmt: skip
        band(axes, tokens, shares, errors, color)
    axes.axhline(CHANCE, color=INK, linestyle=":", linewidth=1.0, label=f"chance: {CHANCE}")
    finish(axes, axis("tokens", []))
    save(figure, path)


def finish(axes: Axes, chosen: Axis) -> None:
    axes.set_xlabel(chosen.label, color=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: chosen.ticks(value)))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, reverse=True, handlelength=3)
