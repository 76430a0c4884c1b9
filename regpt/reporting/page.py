"""Write the report of a run: report.md, report.html and their figures."""

from collections.abc import Callable, Sequence
from pathlib import Path

from regpt.base.files import write_text
from regpt.base.format import percent, scientific
from regpt.corpus.public_corpora import PublicCorpus
from regpt.fairness.baselines import Baseline
from regpt.optimizer.schedule import cooldown_text
from regpt.rendering.figure_style import Line, as_markdown, as_picture
from regpt.rendering.html import html_page
from regpt.rendering.markdown import code, fenced
from regpt.rendering.templates import render_template
from regpt.reporting.expert_load import draw_expert_load, load_rows
from regpt.reporting.figures import draw_hellaswag, draw_losses, draw_training_dynamics
from regpt.reporting.published import CHANCE, GPT2, GPT3, REFERENCES, RERUNS
from regpt.reporting.sections import report_page
from regpt.reporting.wording import hellaswag_interval, model_type, source_of, tokens_of_steps, validation_steps
from regpt.tracking.run import Run

LOSS_CURVE = "loss_curve"  # names of figures, without .png
HELLASWAG = "hellaswag"
TRAINING_DYNAMICS = "training_dynamics"
EXPERT_LOAD = "expert_load"

LINES_OF_HELLASWAG = [
    Line("chance", CHANCE),
    *(Line(f"{one.name}, all items", one.hellaswag) for one in (GPT2, RERUNS[-2])),
    Line(f"{GPT3.name}, all items, {GPT3.scored}", GPT3.hellaswag),
]

# What the template calls to write a value.
FORMATTERS: dict[str, Callable[..., str]] = {
    "n": lambda value: f"{value:,}",
    "percent": percent,
    "every": lambda steps, otherwise: f"Every {steps:,} steps" if steps else otherwise,
    "code": code,
    "fenced": fenced,
    "scientific": scientific,
    "cooldown_text": cooldown_text,
    "tokens_of_steps": tokens_of_steps,
    "model_type": model_type,
    "validation_steps": validation_steps,
    "hellaswag_interval": hellaswag_interval,
    "source_of": source_of,
}


def write_report(run: Run, others: Sequence[Baseline]) -> Path:
    """Write report.md and its figures into the run's directory and return its path. The run may still be training."""
    images = run.paths.images
    runs = [run, *(other.run for other in others if other.run)]
    own = run.environment.data.tokenizer
    in_same_tokens = [one for one in runs if one.environment.data.tokenizer == own]
    draw_losses(in_same_tokens, images / f"{LOSS_CURVE}.png", lines_of_losses(run))
    draw_training_dynamics(run, images / f"{TRAINING_DYNAMICS}.png")
    if run.history.expert_loads:
        draw_expert_load(run, images / f"{EXPERT_LOAD}.png")
    if run.hellaswag:
        items = run.hellaswag[-1].items
        # a subset does not compare with figures of all items, so they are not drawn
        lines = LINES_OF_HELLASWAG if run.hellaswag[-1].is_full_set else LINES_OF_HELLASWAG[:1]
        draw_hellaswag(runs, images / f"{HELLASWAG}.png", lines, items)
    path = run.paths.report
    write_text(path, render(run, others, as_picture))
    return path


def write_page(run: Run, others: Sequence[Baseline]) -> Path:
    """Write report.html, one self-contained file, with the figures that `write_report` has drawn."""
    markdown = render(run, others, as_markdown)
    path = run.paths.html_report
    write_text(path, html_page(markdown, run.path))
    return path


def render(run: Run, others: Sequence[Baseline], picture: Callable[[str, str], str]) -> str:
    """Return the report as Markdown. `picture` writes a figure from its name and its description."""
    values = {
        **FORMATTERS,
        "page": report_page(run, others),
        "picture": picture,
        "LOSS_CURVE": LOSS_CURVE,
        "HELLASWAG": HELLASWAG,
        "TRAINING_DYNAMICS": TRAINING_DYNAMICS,
        "EXPERT_LOAD": EXPERT_LOAD,
        "load_rows": load_rows(run),
    }
    return render_template("regpt.reporting", "report.md.j2", values)


def lines_of_losses(run: Run) -> list[Line]:
    """Return the published losses on the corpus of this run."""
    compared = [one for one in REFERENCES if one.data is run.corpus and one.validation_loss]
    if run.corpus is PublicCorpus.FINEWEB_EDU:
        compared = [GPT2, RERUNS[0], RERUNS[3]]
    return [Line(one.name, one.validation_loss) for one in compared if one.validation_loss]
