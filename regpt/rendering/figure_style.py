"""The style of all figures: light and dark colors, axes in tokens, labels that do not overlap, PNG and SVG files."""

import math
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any

from regpt.base.format import short_count
from regpt.rendering.matplotlib_import import Axes, Figure, FuncFormatter, MaxNLocator, matplotlib, to_hex
from regpt.tracking.layout import IMAGES_DIR

INK, FAINT, PAPER = "#30343b", "#e2e5ea", "#ffffff"
# The run itself, then the runs it is compared with. Neighbouring colors also differ in lightness.
COLORS = ("#c2571a", "#2766b1", "#3d8a4e", "#8456a5", "#0f7f8a", "#b0306e", "#86700c", "#6e5d55")
DARK_COLORS = ("#f0894a", "#6aa6f0", "#6cc382", "#bd97e0", "#4fc4ce", "#f07ab2", "#d3bb45", "#b9a69c")
DARK = dict(zip((INK, FAINT, PAPER, *COLORS), ("#d3d9e1", "#2a313a", "#0d1117", *DARK_COLORS), strict=True))
LONGEST_NAME = 44  # characters of a run's name in a legend


@dataclass(frozen=True)
class Line:
    """A published value, drawn as a horizontal line."""

    name: str
    value: float


def new_figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.8, 4.3), layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot()
    style_axes(axes, title)
    return figure, axes


def style_axes(axes: Axes, title: str) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(plain(title), loc="left", fontsize=11, color=INK, pad=9)
    axes.set_xlabel("Training tokens", color=INK, fontsize=9.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.02)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, length=0, labelsize=9.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK)


def finish_axes(axes: Axes, note: str = "") -> None:
    """Add the note below the title and the legend below the axes; without data, say so."""
    figure = figure_of(axes)
    if not math.isfinite(axes.dataLim.x0):
        axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center", color=INK, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
    elif axes.dataLim.x1 <= 0:
        axes.set_xlim(-0.02, 1)
        axes.set_xticks([0])
    if note:
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=11, color=INK, pad=20)
        axes.annotate(
            note, (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points", fontsize=8.5, color=INK
        )
    handles, names = axes.get_legend_handles_labels()
    if names:
        columns = 2 if max(map(len, names)) < 36 else 1
        figure.set_figheight(figure.get_figheight() + 0.2 * (-(-len(names) // columns) - 1))
        figure.legend(
            handles[::-1], names[::-1], loc="outside lower left", frameon=False, fontsize=9.5, labelcolor=INK,
            ncols=columns,
        )  # fmt: skip


def save_figure(figure: Figure, path: Path, kinds: Sequence[str] = ("png", "svg")) -> None:
    """Write NAME.KIND and, in the colors of `DARK`, NAME-dark.KIND, for each kind of file."""
    path.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "regpt"}):
        warnings.filterwarnings("ignore", message="Glyph")  # of a name in a script that the font lacks
        for ending in ("", "-dark"):
            if ending:
                recolor(figure)
            for kind in kinds:
                target = path.with_name(f"{path.stem}{ending}.{kind}")
                figure.savefig(target, dpi=160, metadata={"Date": None} if kind == "svg" else None)
                figure.set_layout_engine("none")  # one layout is enough


def recolor(figure: Figure) -> None:
    """Replace every light color of a figure by its dark one. Transparency stays."""
    for artist in figure.findobj():
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            getter, setter = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
            if getter and setter:
                try:
                    setter(darkened(getter()))
                except (TypeError, ValueError):  # no color, or an artist that stores it elsewhere
                    continue


def darkened(color: Any) -> Any:
    """Return the dark version of one or several colors. Colors outside the palette stay."""
    if hasattr(color, "ndim") and color.ndim == 2:
        return [darkened(tuple(one)) for one in color]
    dark = DARK.get(to_hex(color))
    if dark is None:
        return color
    opacity = color[3] if not isinstance(color, str) and len(color) == 4 else None
    return dark if opacity is None else (dark, float(opacity))


def as_picture(name: str, words: str) -> str:
    """Return HTML for Markdown viewers that shows the light or the dark figure."""
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{IMAGES_DIR}/{name}-dark.png">\n'
        f'  <img alt="{words}" src="{IMAGES_DIR}/{name}.png">\n</picture>'
    )


def as_markdown(name: str, words: str) -> str:
    """Return a Markdown image for `html_page`, which embeds both color schemes."""
    return f"![{words}]({IMAGES_DIR}/{name}.svg)"


def draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw horizontal lines with their names in the right margin, and move names apart that would overlap.

    Call it last: the positions of the names depend on the layout of everything else.
    """
    ordered = sorted(lines, key=lambda line: line.value)
    for line, style in zip(ordered, cycle(((0, (1, 2)), (0, (5, 3)), "-.", (0, (9, 3)))), strict=False):
        axes.axhline(line.value, color=INK, linestyle=style, linewidth=0.9, alpha=0.75)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a name in a script that the font lacks
        figure_of(axes).draw_without_rendering()
    points = 72 / figure_of(axes).dpi  # of a pixel
    heights = [float(axes.transData.transform((0, line.value))[1]) * points for line in ordered]
    texts = ["\n".join(textwrap.wrap(f"{line.value:g} {line.name}", 22)) for line in ordered]
    for line, text, height, place in zip(
        ordered, texts, heights, spread_labels(heights, [10.5 * (1 + text.count("\n")) for text in texts]), strict=True
    ):
        axes.annotate(
            plain(text), (1, line.value), xycoords=("axes fraction", "data"), xytext=(6, place - height),
            textcoords="offset points", fontsize=8, color=INK, va="center", annotation_clip=False,
        )  # fmt: skip


def spread_labels(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Move rising positions apart, as little as possible, until labels of these heights do not overlap."""
    clusters: list[tuple[float, list[float]]] = []  # (middle, heights of the labels stacked there)
    for place, height in zip(places, heights, strict=True):
        clusters.append((place, [height]))
        while len(clusters) > 1 and touching(*clusters[-2:]):
            (lower, below), (upper, above) = clusters[-2:]
            middle = (lower * len(below) + upper * len(above)) / (len(below) + len(above))
            clusters[-2:] = [(middle, below + above)]
    found = []
    for middle, stacked in clusters:
        ends = [*accumulate(stacked)]
        found += [middle - ends[-1] / 2 + end - own / 2 for end, own in zip(ends, stacked, strict=True)]
    return found


def touching(lower: tuple[float, list[float]], upper: tuple[float, list[float]]) -> bool:
    return upper[0] - lower[0] < (sum(lower[1]) + sum(upper[1])) / 2


def figure_of(axes: Axes) -> Figure:
    """Return the figure of these axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def short_name(name: str) -> str:
    """Return a run's name without its middle if it is long, escaped for matplotlib."""
    half = LONGEST_NAME // 2
    return plain(name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half + 1 :]}")


def plain(name: str) -> str:
    """Escape dollar signs, between which matplotlib would read a formula."""
    return name.replace("$", r"\$")
