"""Write ablation.md with its figure, and ablation.html."""

import math
from pathlib import Path

from regpt.ablation.effects import Results
from regpt.ablation.wording import (
    INTERPLAY_SOURCE,
    TITLES,
    design_lines,
    headline,
    interaction_rows,
    interplay_lines,
    rows,
    sources,
)
from regpt.base.files import write_text
from regpt.rendering.figure_style import (
    COLORS,
    FAINT,
    INK,
    as_markdown,
    as_picture,
    finish_axes,
    new_figure,
    save_figure,
    short_name,
)
from regpt.rendering.html import html_page
from regpt.rendering.templates import render_template
from regpt.tracking.layout import IMAGES_DIR

FIGURE = "effects"


def write_page(folder: Path, results: Results) -> list[Path]:
    """Write the report of an ablation; return the paths of its pages."""
    images = folder / IMAGES_DIR
    images.mkdir(parents=True, exist_ok=True)
    draw_effects(results, images / f"{FIGURE}.png")
    values = {
        "recipe": results.design.recipe,
        "headline": list(headline(results)),
        "table": markdown(rows(results)),
        "sources": sources(results),
        "interplay": list(interplay_lines(results.interactions)) if results.interactions else [],
        "interactions": markdown(interaction_rows(results.interactions)),
        "interplay_source": INTERPLAY_SOURCE,
        "design": list(design_lines(results.design, results.best)),
    }
    words = "difference of each change from the base"
    pages = {
        folder / "ablation.md": as_picture(FIGURE, words),
        folder / "ablation.html": as_markdown(FIGURE, words),
    }
    for path, figure in pages.items():
        text = render_template("regpt.ablation", "ablation.md.j2", {**values, "figure": figure})
        write_text(path, html_page(text, folder) if path.suffix == ".html" else text)
    return list(pages)


def markdown(table: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([lines[0], "|---" * len(table[0]) + "|", *lines[1:]])


def draw_effects(results: Results, path: Path) -> None:
    """Draw one row for each change, the first on top; write the figure in light and dark."""
    found = results.effects
    figure, axes = new_figure(f"Difference of the {TITLES[results.measure]}")
    figure.set_figheight(max(2.2, 1.2 + 0.42 * len(found)))
    axes.axvline(0.0, color=INK, linewidth=1.0)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    for place, effect in enumerate(reversed(found)):
        color = COLORS[0] if effect.is_significant and effect.mean < 0 else COLORS[1]
        half = effect.half_width
        if math.isfinite(half):
            axes.plot([effect.mean - half, effect.mean + half], [place, place], color=color, linewidth=2.2)
        axes.plot(effect.differences, [place] * len(effect.differences), "o", color=color, markersize=3.5, alpha=0.5)
        axes.plot([effect.mean], [place], "o", color=color, markersize=7)
    axes.set_yticks(range(len(found)), [short_name(effect.arm) for effect in reversed(found)])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel("arm − base; bars: 95 % intervals over seeds, small dots: seeds", color=INK, fontsize=9.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.3g}" if value else "0")
    finish_axes(axes)
    save_figure(figure, path)
