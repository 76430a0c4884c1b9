"""The pictures of a report, drawn from journals alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from regpt.results.runs import Run, headline

INK = "#30343b"
COLORS = ("#c2571a", "#2766b1", "#3d8a4e", "#8456a5")  # the run itself, then what it is held against
SMOOTHING_STEPS = 10


@dataclass(frozen=True)
class Line:
    """A published figure, drawn across."""

    name: str
    value: float


def draw_losses(runs: Sequence[Run], path: Path, lines: Sequence[Line] = ()) -> None:
    """Training and validation loss over tokens, the latter with its standard error; the first run is the report's own.

    PNG or SVG by the path's ending.
    """
    figure, axes = page("Loss, nats per token; bands are one standard error of the validation")
    for run, color in reversed(list(zip(runs, cycle(COLORS), strict=False))):
        batch = run.recipe.data.total_batch_tokens
        steps = run.history.steps
        axes.plot([s.step * batch for s in steps], [s.loss for s in steps], color=color, alpha=0.25, linewidth=0.8)
        axes.plot(
            [s.step * batch for s in steps],
            smoothed([s.loss for s in steps]),
            color=color,
            linewidth=1.1,
            alpha=0.75,
            label=f"{plain(run.id)}, training (mean of {SMOOTHING_STEPS} steps)",
        )
        looks = run.history.validations
        axes.plot(
            [v.tokens for v in looks], [v.loss for v in looks], color=color, linewidth=2.0, marker="o", markersize=4,
            label=f"{plain(run.id)}, validation" + (f" (last {looks[-1].loss:.3f})" if looks else ""),
        )  # fmt: skip
        band(axes, [v.tokens for v in looks], [v.loss for v in looks], [v.standard_error for v in looks], color)
    draw_lines(axes, lines)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, reverse=True)
    save(figure, path)


def draw_hellaswag(runs: Sequence[Run], path: Path, lines: Sequence[Line], of: str) -> None:
    """HellaSwag's accuracy over tokens with its standard error; `of` says which items these are."""
    figure, axes = page(f"HellaSwag accuracy, {of}; bands are one standard error")
    for run, color in reversed(list(zip(runs, cycle(COLORS), strict=False))):
        looks = run.hellaswag
        others = f"; {looks[-1].items})" if looks and looks[-1].items != of else ")"
        tokens, shares, errors = zip(*((r.tokens, *headline(r)) for r in looks), strict=True) if looks else ((), (), ())
        axes.plot(
            tokens, shares, color=color, linewidth=2.0, marker="o", markersize=4,
            label=plain(run.id) + (f" ({shares[-1]:.3f} ± {errors[-1]:.3f}{others}" if looks else ", not measured"),
        )  # fmt: skip
        band(axes, tokens, shares, errors, color)
    draw_lines(axes, lines)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, reverse=True)
    save(figure, path)


def band(axes: Axes, x: Sequence[float], y: Sequence[float], errors: Sequence[float], color: str) -> None:
    low = [value - error for value, error in zip(y, errors, strict=True)]
    high = [value + error for value, error in zip(y, errors, strict=True)]
    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    for line, style in zip(lines, cycle((":", "--", "-.", (0, (5, 5)))), strict=False):
        axes.axhline(line.value, color=INK, linestyle=style, linewidth=1.0, label=f"{line.name}: {line.value}")


def draw_course(run: Run, path: Path) -> None:
    """Learning rate, gradient norm and speed over tokens, one below the other."""
    figure = Figure(figsize=(8, 6.4), layout="constrained", facecolor="white")
    steps = run.history.steps
    batch = run.recipe.data.total_batch_tokens
    curves = {
        "Learning rate": [s.learning_rate for s in steps],
        "Gradient norm before clipping": [s.gradient_norm for s in steps],
        "Tokens per second": [batch / s.seconds for s in steps],
    }
    for place, (name, values) in enumerate(curves.items()):
        axes = figure.add_subplot(3, 1, place + 1)
        dress(axes, name)
        axes.plot([s.step * batch for s in steps], values, color=COLORS[0], linewidth=1.2)
        axes.set_ylim(bottom=0)
        if place < 2:
            axes.set_xlabel("")
            axes.set_xticklabels([])
    save(figure, path)


def plain(name: str) -> str:
    """A name as it is, where matplotlib would read formulas between dollar signs."""
    return name.replace("$", r"\$")


def page(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.8), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    dress(axes, title)
    return figure, axes


def dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("training tokens", color=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tokens_in_short(value)))
    axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean of each value and those just before it."""
    return [
        sum(values[max(0, i - SMOOTHING_STEPS + 1) : i + 1]) / len(values[max(0, i - SMOOTHING_STEPS + 1) : i + 1])
        for i in range(len(values))
    ]


def tokens_in_short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"
