"""Write the page of a comparison: comparison.md with its figures, and comparison.html."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from regpt.base.files import write_text
from regpt.comparison.figures import draw_hellaswag_curves, draw_learning_curves, hellaswag_records
from regpt.comparison.sections import HELLASWAG_FIGURE, ComparisonPage, comparison_page
from regpt.comparison.seed_curves import draw_mean_hellaswag, mean_curve
from regpt.comparison.seed_sections import group_page
from regpt.comparison.tables import markdown_table
from regpt.fairness.learning_curves import LearningCurve, learning_curve
from regpt.fairness.models import ComparedModel
from regpt.fairness.seed_groups import SeedGroup, seed_groups
from regpt.rendering.figure_style import as_markdown, as_picture
from regpt.rendering.html import html_page
from regpt.rendering.templates import render_template
from regpt.reporting.findings import listed
from regpt.tracking.layout import IMAGES_DIR

COMPARISONS_DIR = "comparisons"
LONGEST_NAME = 120  # of a directory
FIGURE_TITLES = {
    "loss_over_tokens": "Loss over training tokens",
    "loss_over_seconds": "Loss over training time",
    "loss_over_flops": "Loss over training FLOPs",
    HELLASWAG_FIGURE: "HellaSwag accuracy over training tokens",
}


def write_comparison(models: Sequence[ComparedModel], folder: Path, html: bool = False) -> list[Path]:
    """Write comparison.md and its figures, optionally comparison.html; return the paths of the pages.

    Runs of one recipe with different seeds are one group if there are two such groups; then groups are compared. The
    HTML page needs no other file. Runs may be active.
    """
    images = folder / IMAGES_DIR
    images.mkdir(parents=True, exist_ok=True)
    page = drawn_group_page(groups, models, images) if (groups := seed_groups(models)) else drawn_page(models, images)
    paths = [folder / "comparison.md"]
    write_text(paths[0], render(page, as_picture))
    if html:
        paths.append(folder / "comparison.html")
        write_text(paths[1], html_page(render(page, as_markdown), folder))
    return paths


def drawn_page(models: Sequence[ComparedModel], images: Path) -> ComparisonPage:
    """Draw the figures of single models, and return the values of their page."""
    curves = [curve for model in models if (curve := learning_curve(model)) and curve.steps]
    figures = draw_losses(curves, images)
    if any(hellaswag_records(model) for model in models):
        draw_hellaswag_curves(models, images / f"{HELLASWAG_FIGURE}.png")
        figures.append(HELLASWAG_FIGURE)
    return comparison_page(models, curves, figures)


def drawn_group_page(groups: Sequence[SeedGroup], models: Sequence[ComparedModel], images: Path) -> ComparisonPage:
    """Draw the figures of groups of runs, and return the values of their page."""
    curves = [curve for group in groups if (curve := mean_curve(group)) and curve.steps]
    figures = draw_losses(curves, images)
    if draw_mean_hellaswag(groups, images / f"{HELLASWAG_FIGURE}.png"):
        figures.append(HELLASWAG_FIGURE)
    return group_page(groups, models, curves, figures)


def draw_losses(curves: Sequence[LearningCurve], images: Path) -> list[str]:
    """Draw the figures of losses that have data and compare; return their names."""
    axes = ["tokens"] if curves else []
    if curves and all(curve.has_known_speed for curve in curves):
        axes.append("seconds")
    if len({curve.flops_per_token for curve in curves}) > 1:
        axes.append("flops")
    for axis in axes:
        draw_learning_curves(curves, axis, images / f"loss_over_{axis}.png")
    return [f"loss_over_{axis}" for axis in axes]


def render(page: ComparisonPage, figure: Callable[[str, str], str]) -> str:
    """Return the comparison as Markdown. `figure` writes a figure from its name and its description."""
    values: dict[str, object] = {
        "page": page,
        "listed": listed,
        "figure": lambda name: figure(name, FIGURE_TITLES[name]),
        "table": lambda table: "\n".join(markdown_table(table)),
    }
    return render_template("regpt.comparison", "comparison.md.j2", values)


def default_directory(models: Sequence[ComparedModel], parent: Path) -> Path:
    """Return the directory of a comparison without --into: parent/comparisons/A-vs-B."""
    compared = seed_groups(models) or models
    names = [re.sub(r"[^\w.-]+", "-", one.name).strip("-.") or "model" for one in compared]
    return parent / COMPARISONS_DIR / "-vs-".join(names)[:LONGEST_NAME].rstrip("-.")
