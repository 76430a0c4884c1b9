"""Write the page of a comparison: comparison.md with its figures, and comparison.html."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regpt.base.files import write_text
from regpt.comparison.figures import draw_hellaswag_curves, draw_learning_curves, hellaswag_records
from regpt.comparison.tables import (
    differences_table,
    equal_time_table,
    equal_tokens_table,
    final_metrics_table,
    first_reached_table,
    markdown_table,
)
from regpt.fairness.checks import find_caveats
from regpt.fairness.claims import paired_tests
from regpt.fairness.learning_curves import (
    LearningCurve,
    comparable_curves,
    learning_curve,
    losses_at_equal_time,
    losses_at_equal_tokens,
)
from regpt.fairness.models import ComparedModel
from regpt.fairness.wording import caveat_lines, problem_lines, significance_lines
from regpt.rendering.figure_style import as_markdown, in_both_lights
from regpt.rendering.html import html_page
from regpt.rendering.markdown import escaped, fenced
from regpt.rendering.markup import MARKDOWN
from regpt.rendering.templates import render_template
from regpt.reporting.summary import model_sentence
from regpt.tracking.journal import SampleRecord
from regpt.tracking.layout import IMAGES_DIR

COMPARISONS_DIR = "comparisons"
LONGEST_NAME = 120  # of a directory
FIGURE_TITLES = {
    "loss_over_tokens": "Loss over training tokens",
    "loss_over_seconds": "Loss over training time",
    "loss_over_flops": "Loss over training FLOPs",
    "hellaswag": "HellaSwag accuracy over training tokens",
}


def write_comparison(models: Sequence[ComparedModel], folder: Path, html: bool = False) -> list[Path]:
    """Write comparison.md and its figures, optionally comparison.html; return the paths of the pages.

    The HTML page needs no other file. Runs may be active.
    """
    images = folder / IMAGES_DIR
    images.mkdir(parents=True, exist_ok=True)
    curves = [curve for model in models if (curve := learning_curve(model)) and curve.steps]
    figures = draw_figures(models, curves, images)
    values = template_values(models, curves, figures)
    paths = [folder / "comparison.md"]
    write_text(paths[0], render(values, in_both_lights))
    if html:
        paths.append(folder / "comparison.html")
        write_text(paths[1], html_page(render(values, as_markdown), folder))
    return paths


def draw_figures(models: Sequence[ComparedModel], curves: Sequence[LearningCurve], images: Path) -> list[str]:
    """Draw the figures that have data; return their names."""
    axes = ["tokens", "seconds"] if curves else []
    if len({curve.flops_per_token for curve in curves}) > 1:
        axes.append("flops")
    for axis in axes:
        draw_learning_curves(curves, axis, images / f"loss_over_{axis}.png")
    if not any(hellaswag_records(model) for model in models):
        return [f"loss_over_{axis}" for axis in axes]
    draw_hellaswag_curves(models, images / "hellaswag.png")
    return [*(f"loss_over_{axis}" for axis in axes), "hellaswag"]


def render(values: dict[str, Any], figure: Callable[[str, str], str]) -> str:
    values = {**values, "figure": lambda name: figure(name, FIGURE_TITLES[name])}
    return render_template("regpt.comparison", "comparison.md.j2", values)


def default_directory(models: Sequence[ComparedModel], parent: Path) -> Path:
    """Return the directory of a comparison without --into: parent/comparisons/A-vs-B."""
    names = [re.sub(r"[^\w.-]+", "-", model.name).strip("-.") or "model" for model in models]
    return parent / COMPARISONS_DIR / "-vs-".join(names)[:LONGEST_NAME].rstrip("-.")


def template_values(
    models: Sequence[ComparedModel], curves: Sequence[LearningCurve], figures: Sequence[str]
) -> dict[str, Any]:
    """Return the values of all variables of the template."""
    comparable = comparable_curves(curves)
    has_tables = len(comparable) > 1
    samples = compare_samples(models)
    return {
        "title": ", ".join(escaped(model.name) for model in models),
        "runs": [model_sentence(model.run) for model in models if model.is_run and model.run],
        "caveats": caveat_lines(find_caveats(models), MARKDOWN),
        "final_metrics": list(markdown_table(final_metrics_table(models))),
        "problems": problem_lines(models, MARKDOWN),
        "tests": [
            line for other in models[1:] for line in significance_lines(paired_tests(models[0], other), MARKDOWN)
        ],
        "loss_figures": [name for name in figures if name != "hellaswag"],
        "has_hellaswag": "hellaswag" in figures,
        "excluded": [escaped(curve.name) for curve in curves if curve not in comparable],
        "equal_tokens": equal_tokens_table(comparable, losses_at_equal_tokens(comparable)) if has_tables else None,
        "equal_time": equal_time_table(comparable, losses_at_equal_time(comparable)) if has_tables else None,
        "first_reached": first_reached_table(comparable) if has_tables else None,
        "differences": differences_table(models),
        "table": lambda table: "\n".join(markdown_table(table)),
        "sample_notes": sample_notes(samples),
        "samples": sample_blocks(samples),
    }


@dataclass(frozen=True)
class ComparedSamples:
    """The last samples of each model, with the same prompt, seed and top-k if all models have any."""

    drawn: list[tuple[str, SampleRecord]]  # (name of the model, samples)
    without: list[str]  # names of models without samples
    same_sampling: bool

    @property
    def same_step(self) -> bool:
        return len({record.step for _, record in self.drawn}) < 2


def compare_samples(models: Sequence[ComparedModel]) -> ComparedSamples:
    """Choose the samples to show."""
    own = [
        (model.name, records)
        for model in models
        if model.run and (records := [r for r in model.run.history.samples if r.step <= (model.step or 0)])
    ]
    names = [name for name, _ in own]
    without = [model.name for model in models if model.name not in names]
    if not own:
        return ComparedSamples([], without, same_sampling=True)
    shared = set.intersection(*({sampling_of(record) for record in records} for _, records in own))
    chosen = next((sampling_of(r) for r in reversed(own[0][1]) if sampling_of(r) in shared), None)
    drawn = [(name, next(r for r in reversed(records) if chosen in (None, sampling_of(r)))) for name, records in own]
    return ComparedSamples(drawn, without, same_sampling=chosen is not None)


def sampling_of(record: SampleRecord) -> tuple[str, int, int]:
    return record.prompt, record.seed, record.top_k


def sample_notes(samples: ComparedSamples) -> list[str]:
    """Describe how the samples were drawn, and which models have none."""
    if not samples.drawn:
        return ["No samples yet."]
    if samples.same_sampling:
        notes = [f"All samples: {sampling_text(samples.drawn[0][1])}."]
    else:
        each = "; ".join(f"{escaped(name)}: {sampling_text(record)}" for name, record in samples.drawn)
        notes = [f"Not comparable, because prompt, seed or top-k differ: {each}."]
    if not samples.same_step:
        steps = ", ".join(f"{escaped(name)} at step {record.step:,}" for name, record in samples.drawn)
        notes.append(f"From different steps: {steps}.")
    if samples.without:
        notes.append(f"No samples of {', '.join(map(escaped, samples.without))}.")
    return notes


def sampling_text(record: SampleRecord) -> str:
    return f"prompt “{escaped(record.prompt)}”, seed {record.seed}, top-k {record.top_k}"


def sample_blocks(samples: ComparedSamples) -> list[list[tuple[str, str]]]:
    """Return, for each sample number, the titles and texts of all models."""
    return [
        [
            (f"{escaped(name)}, step {record.step:,}", fenced(record.texts[number]))
            for name, record in samples.drawn
            if number < len(record.texts)
        ]
        for number in range(max((len(record.texts) for _, record in samples.drawn), default=0))
    ]
