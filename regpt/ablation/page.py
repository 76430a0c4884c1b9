"""Write ablation.md with its figure, and ablation.html."""

from collections.abc import Mapping
from pathlib import Path

from regpt.ablation.design import BASE, Design, Trial
from regpt.ablation.effects import effects, final_loss
from regpt.ablation.figures import draw_effects
from regpt.ablation.wording import SOURCES, design_lines, edge_lines, headline, rows
from regpt.base.files import write_text
from regpt.rendering.figure_style import as_markdown, as_picture
from regpt.rendering.html import html_page
from regpt.rendering.templates import render_template
from regpt.tracking.layout import IMAGES_DIR
from regpt.tracking.run import Run

FIGURE = "effects"


def write_page(
    folder: Path, design: Design, runs: Mapping[Trial, Run], best: dict[str, str], smallest: float
) -> list[Path]:
    """Write the report of an ablation, of the seeds that are finished in all arms; return the paths of its pages."""
    found = effects(design, runs, best)
    images = folder / IMAGES_DIR
    images.mkdir(parents=True, exist_ok=True)
    draw_effects(found, images / f"{FIGURE}.png")
    base = [final_loss(runs[trial]) for trial in runs if trial.arm == BASE and not trial.value]
    table = markdown(rows(found, base, best, smallest))
    values = {
        "recipe": design.recipe,
        "headline": [*headline(found, design, smallest), *edge_lines(design, best)],
        "table": table,
        "sources": SOURCES,
        "design": list(design_lines(design)),
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


def table_of(design: Design, runs: Mapping[Trial, Run], best: dict[str, str], smallest: float) -> list[list[str]]:
    """Return the table of effects as text."""
    base = [final_loss(runs[trial]) for trial in runs if trial.arm == BASE and not trial.value]
    return rows(effects(design, runs, best), base, best, smallest)


def markdown(table: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([lines[0], "|---" * len(table[0]) + "|", *lines[1:]])
