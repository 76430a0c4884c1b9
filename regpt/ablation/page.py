"""Write ablation.md with its figure, and ablation.html."""

from pathlib import Path

from regpt.ablation.effects import Results
from regpt.ablation.figures import draw_effects
from regpt.ablation.wording import (
    INTERPLAY_SOURCE,
    SOURCES,
    design_lines,
    headline,
    interaction_rows,
    interplay_lines,
    rows,
)
from regpt.base.files import write_text
from regpt.rendering.figure_style import as_markdown, as_picture
from regpt.rendering.html import html_page
from regpt.rendering.templates import render_template
from regpt.tracking.layout import IMAGES_DIR

FIGURE = "effects"


def write_page(folder: Path, results: Results) -> list[Path]:
    """Write the report of an ablation; return the paths of its pages."""
    images = folder / IMAGES_DIR
    images.mkdir(parents=True, exist_ok=True)
    draw_effects(results.effects, images / f"{FIGURE}.png")
    values = {
        "recipe": results.design.recipe,
        "headline": list(headline(results)),
        "table": markdown(rows(results)),
        "sources": SOURCES,
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
