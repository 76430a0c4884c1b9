"""Write the report of a run: report.md, report.html and their figures."""

import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from regpt.base.files import write_text
from regpt.data.public_corpora import PublicCorpus
from regpt.rendering.figure_style import Line, as_markdown, in_both_lights
from regpt.rendering.html import html_page
from regpt.rendering.markdown import code, escaped, fenced
from regpt.rendering.templates import render_template
from regpt.reporting.figures import draw_hellaswag, draw_losses, draw_training_dynamics
from regpt.reporting.published import CHANCE, GPT2, GPT3, REFERENCES, RERUNS
from regpt.reporting.recipe_diff import changes, differences_from_gpt2, one_change, rows_of_differences, scientific
from regpt.reporting.scores import (
    Baseline,
    Relation,
    columns,
    headings,
    notes,
    published_row,
    recorded_where,
    relations,
    table_of,
)
from regpt.reporting.summary import summary
from regpt.reporting.wording import (
    architecture,
    cost,
    durations,
    event_line,
    framework,
    gpu_type,
    gpus,
    hellaswag_interval,
    memory,
    model_type,
    place_of,
    source_of,
    tokens_of_steps,
    validation_steps,
)
from regpt.stats.describe import difference_text, identity_text, value_text, verdict_text
from regpt.stats.identical import identical
from regpt.stats.outcome import Quantity
from regpt.stats.verdicts import Verdict, verdicts
from regpt.tracking.run import Run
from regpt.tracking.status import state_of

LINES_OF_HELLASWAG = [
    Line("chance", CHANCE),
    *(Line(f"{one.name}, all items", one.hellaswag) for one in (GPT2, RERUNS[-2])),
    Line(f"{GPT3.name}, all items, {GPT3.scored}", GPT3.hellaswag),
]

ROW_NAMES = {
    Quantity.VALIDATION_LOSS: "Validation Loss",
    Quantity.HELLASWAG: "HellaSwag Accuracy",
    Quantity.SPEED: "Training Efficiency",
}

RELATION_TEXT = {
    Relation.PREVIOUS: "Intended improvements.",
    Relation.EARLIER: "The other run is an earlier one, but not the previous one.",
    Relation.LATER: "The other run is a later one.",
    Relation.RECORDED: "The figures of the other run are recorded, not measured here.",
    Relation.OTHER_DATA: "The other run was trained on other data.",
    Relation.IDENTICAL: "The other run is identical.",
}


def write_report(run: Run, others: Sequence[Baseline]) -> Path:
    """Write report.md and its figures into the run's directory and return its path. The run may still be training."""
    images = run.paths.images
    runs = [run, *(other.run for other in others if other.run)]
    draw_losses(runs, images / "train-val_loss.png", lines_of_losses(run))
    draw_training_dynamics(run, images / "course.png")
    if run.hellaswag:
        items = run.hellaswag[-1].items
        # a subset does not compare with figures of all items, so they are not drawn
        lines = LINES_OF_HELLASWAG if run.hellaswag[-1].is_full_set else LINES_OF_HELLASWAG[:1]
        draw_hellaswag(runs, images / "hellaswag.png", lines, items)
    path = run.paths.report
    write_text(path, render(run, others, in_both_lights))
    return path


def write_page(run: Run, others: Sequence[Baseline]) -> Path:
    """Write report.html, one self-contained file, with the figures that `write_report` has drawn."""
    markdown = render(run, others, as_markdown)
    path = run.paths.html_report
    write_text(path, html_page(markdown, run.path))
    return path


def render(run: Run, others: Sequence[Baseline], picture: Callable[[str, str], str]) -> str:
    return render_template("regpt.reporting", "report.md.j2", {**contents(run, others), "picture": picture})


def contents(run: Run, others: Sequence[Baseline]) -> dict[str, Any]:
    """Return the values of the template."""
    recipe = run.recipe
    events = run.history.events
    found = columns(run, others)
    return {
        "run": run,
        "recipe": recipe,
        "model": recipe.model,
        "data": recipe.data,
        "optimizer": recipe.optimizer,
        "evaluation": recipe.evaluation,
        "environment": run.environment,
        "n": lambda value: f"{value:,}",
        "percent": lambda value: f"{100 * value:.3g} %",
        "every": lambda steps, otherwise: f"Every {steps:,} steps" if steps else otherwise,
        "code": code,
        "fenced": fenced,
        "scientific": scientific,
        "tokens_of_steps": tokens_of_steps,
        "date": f"{datetime.fromtimestamp(events[0].at, UTC):%Y-%m-%d %H:%M} UTC" if events else "not started",
        "state": state_of(run),
        "opening": summary(run, others),
        "model_type": model_type(recipe),
        "architecture": architecture(recipe),
        "validation_steps": validation_steps(run),
        "hellaswag_interval": hellaswag_interval(run),
        "source_of": source_of(run),
        "gpu_type": gpu_type(run),
        "gpus": gpus(run),
        "gpu": place_of(run) == "cuda",
        "durations": durations(run),
        "cost": cost(run),
        "memory": memory(run),
        "framework": framework(run),
        "columns": [escaped(column.name) for column in found],
        "rows": table_of(found),
        "notes": [escaped(note) for note in notes(run, others)],
        "published": [published_row(run, one) for one in REFERENCES],
        "samples": run.history.samples[-1] if run.history.samples else None,
        "from_gpt2": differences_from_gpt2(run),
        "relation_text": RELATION_TEXT,
        "PREVIOUS": Relation.PREVIOUS,
        "others": [
            contents_of(run, other) | {"heading": escaped(name), "relation": found}
            for other, name, found in zip(others, headings(run, others), relations(run, others), strict=True)
        ],
        "command": code(command(run)),
        "attempts": run.history.attempts,
        "skipped": [escaped(f"step {record.step:,}: {record.reason}") for record in run.history.skipped],
        "attempt_lines": [event_line(event) for event in events],
    }


def contents_of(run: Run, other: Baseline) -> dict[str, Any]:
    """Return the values of the template for one baseline."""
    found = changes(run.recipe, other.recipe)
    factors = [change for change in found if change.matters]
    examples = [*(change for change in factors if change.settings[0].startswith("model.")), *factors]
    recipe = other.run.paths.recipe if other.run else f"{other.recipe.name}"
    return {
        "name": escaped(other.name),
        "rate": f"{run.recipe.optimizer.max_lr / other.recipe.optimizer.max_lr:.3g}",
        "improvements": [change for change in found if change.part],
        "changes": found,
        "settings": rows_of_differences(run.recipe, other.recipe),
        "factors": factors,
        "example": code(f"regpt train {recipe} --name one-change {one_change(examples[0], run.recipe, other.recipe)}")
        if examples
        else "",
        "identical": identity_text(same) if other.run and (same := identical(run, other.run)) else "",
        "claims": [verdict_row(one, other.run) for one in verdicts(run, other.run)] if other.run else [],
        "where": escaped(recorded_where(other.recipe)),
    }


def verdict_row(verdict: Verdict, other: Run) -> tuple[str, str, str, str, str]:
    """(name, the other's value, this run's, difference, outcome and test)"""
    theirs, ours = (value_text(verdict.quantity, value) for value in (verdict.theirs, verdict.ours))
    return (
        ROW_NAMES[verdict.quantity],
        theirs,
        ours,
        difference_text(verdict),
        verdict_text(verdict, other.id),
    )


def command(run: Run) -> str:
    """Return the command that started the run, ready to paste."""
    if not run.environment.command:
        return "not recorded"
    program, *words = run.environment.command
    return shlex.join(["python", "-m", "regpt", *words] if program == "__main__.py" else [program, *words])


def lines_of_losses(run: Run) -> list[Line]:
    """Return published losses on the corpus of this run."""
    compared = [one for one in REFERENCES if one.data is run.corpus and one.validation_loss]
    if run.corpus is PublicCorpus.FINEWEB_EDU:
        compared = [GPT2, RERUNS[0], RERUNS[3]]
    return [Line(one.name, one.validation_loss) for one in compared if one.validation_loss]
