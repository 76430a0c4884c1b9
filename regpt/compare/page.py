"""`regpt compare`: the page that holds models against each other, with pictures: comparison.md, comparison.html."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from regpt.base.files import write_text
from regpt.base.settings import run_settings
from regpt.compare.caveats import lines_of
from regpt.compare.fairness import find_caveats
from regpt.compare.figures import draw_hellaswag_curves, draw_learning_curves, hellaswag_of, seconds_in_short
from regpt.compare.learning_curves import (
    LearningCurve,
    Reading,
    alike,
    at_equal_time,
    at_equal_tokens,
    learning_curve,
    reached,
)
from regpt.compare.models import ComparedModel
from regpt.compare.tables import NONE, against, head, left_out, row, scores, with_error
from regpt.rendering.figure_style import as_markdown, in_both_lights
from regpt.rendering.html import html_page
from regpt.rendering.markdown import fenced, inline
from regpt.report.summary import model_sentence
from regpt.tracking.journal import SampleRecord
from regpt.tracking.layout import IMAGES_DIR

FOLDER = "comparisons"
Rows = Callable[[Sequence[LearningCurve]], list[tuple[float, list[Reading | None]]]]


def write_comparison(models: Sequence[ComparedModel], folder: Path, html: bool = False) -> list[Path]:
    """Write comparison.md and its pictures, and where it is asked for the same as one page that needs no other file;
    returns their paths. Works on live runs too."""
    images = folder / IMAGES_DIR
    images.mkdir(parents=True, exist_ok=True)
    courses = [course for model in models if (course := learning_curve(model)) and course.steps]
    pictures = {"tokens": courses, "seconds": courses}
    if len({course.flops_per_token for course in courses}) > 1:
        pictures["flops"] = courses
    for over, drawn in pictures.items():
        if drawn:
            draw_learning_curves(drawn, over, images / f"loss-over-{over}.png")
    if any(hellaswag_of(model) for model in models):
        draw_hellaswag_curves(models, images / "hellaswag.png")
    found = contents(models, courses, list(pictures) if courses else [])
    paths = [folder / "comparison.md"]
    write_text(paths[0], render(found, in_both_lights))
    if html:
        paths.append(folder / "comparison.html")
        write_text(paths[1], html_page(render(found, as_markdown), folder))
    return paths


def render(found: dict[str, Any], picture: Callable[[str, str], str]) -> str:
    template = Environment(
        loader=PackageLoader("regpt.compare", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    ).get_template("comparison.md.j2")
    return template.render(**found, picture=picture)


def folder_of(models: Sequence[ComparedModel], beside: Path) -> Path:
    """Where a comparison goes that nobody gave a place."""
    return beside / FOLDER / name_of(models)


def name_of(models: Sequence[ComparedModel]) -> str:
    """A folder's, of what systems allow in one."""
    names = [re.sub(r"[^\w.-]+", "-", model.name).strip("-.") or "model" for model in models]
    return "-vs-".join(names)[:120].rstrip("-.")


def contents(
    models: Sequence[ComparedModel], courses: Sequence[LearningCurve], pictures: Sequence[str]
) -> dict[str, Any]:
    """Everything that the template asks for."""
    same = alike(courses)
    return {
        "title": ", ".join(inline(model.name) for model in models),
        "runs": [model_sentence(model.run) for model in models if model.is_run and model.run],
        "fairness": list(lines_of(find_caveats(models))),
        "scores": list(scores(models)),
        "left_out": list(left_out(models)),
        "tests": [line for other in models[1:] for line in against(models[0], other)],
        "pictures": pictures,
        "hellaswag": any(hellaswag_of(model) for model in models),
        "alone": [inline(course.name) for course in courses if course not in same],
        "equal_tokens": list(table_of(same, "Training tokens", at_equal_tokens)) if len(same) > 1 else [],
        "equal_time": list(table_of(same, "Time", at_equal_time)) if len(same) > 1 else [],
        "reached": list(table_of_reached(same)) if len(same) > 1 else [],
        "differences": list(table_of_differences(models)),
        **samples(models),
    }


def table_of(courses: Sequence[LearningCurve], what: str, rows: Rows) -> Iterator[str]:
    yield from head(what, courses)
    in_words = seconds_in_short if rows is at_equal_time else "{:,.0f}".format
    yield from (row(in_words(place), [cell_of(found) for found in read]) for place, read in rows(courses))


def cell_of(found: Reading | None) -> str:
    if found is None:
        return NONE
    return with_error(found.loss, found.standard_error) if found.exact else f"≈ {found.loss:.4f} (interpolated)"


def table_of_reached(courses: Sequence[LearningCurve]) -> Iterator[str]:
    """When each first had the last loss of each."""
    yield from head("To reach", courses)
    for course in courses:
        target = course.evaluations[-1].loss
        cells = []
        for other in courses:
            found = reached(other, target)
            about = "" if found is None or found.exact else "≈ "
            lowest = min(look.loss for look in other.evaluations)
            cells.append(
                f"{about}{found.tokens:,.0f} tokens, {about}{seconds_in_short(found.seconds)}"
                if found
                else f"not reached (lowest {lowest:.4f})"
            )
        yield row(f"{target:.4f}, the last of {inline(course.name)}", cells)


def table_of_differences(models: Sequence[ComparedModel]) -> Iterator[str]:
    """Where recipes, machines and versions are not all the same; nothing where all are, or where fewer than two are
    known."""
    known = [model for model in models if model.recipe is not None]
    if len(known) < 2:
        return
    settings = [settings_of(model) for model in known]
    rows = {name: [in_relation(one[name], settings[0][name]) for one in settings] for name in settings[0]}
    made = [made_with(model) for model in known]
    rows |= {name: [one.get(name, NONE) for one in made] for name in {name: None for one in made for name in one}}
    found = [row(name, cells) for name, cells in rows.items() if len(set(cells)) > 1]
    if found:
        yield from head("Setting", known)
        yield from found


def settings_of(model: ComparedModel) -> dict[str, Any]:
    return {f"`{name}`": value for name, value in run_settings(model.recipe).items()} if model.recipe else {}


def in_relation(value: Any, first: Any) -> str:
    """A value, and how many times the first one it is."""
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (value, first))
    return inline(value) + (f" (× {value / first:.3g})" if numbers and first and value != first else "")


def made_with(model: ComparedModel) -> dict[str, str]:
    """What a run's environment says, in words."""
    if model.run is None:
        return {}
    environment = model.run.environment
    return {
        "Data": f"{inline(environment.data.source.description)}, digest {environment.data.digest[:12]}",
        "Device": inline(model.device),
        "Precision": environment.device.precision,
        "torch.compile": "on" if environment.device.compiled else "off",
        "Ranks": ", then ".join(map(str, dict.fromkeys(model.run.ranks or [environment.ranks]))),
        "System": inline(environment.system),
        "Code": f"regpt {inline(environment.code_version)}",
        **{name: inline(version) for name, version in asdict(environment.packages).items()},
    }


def samples(models: Sequence[ComparedModel]) -> dict[str, Any]:
    """The last of each, of one prompt and seed where all have such; else each its own, which is said."""
    drawn = [
        (model, found)
        for model in models
        if model.run and (found := [one for one in model.run.history.samples if one.step <= (model.step or 0)])
    ]
    if not drawn:
        return {"sample_notes": ["None were drawn yet."], "samples": []}
    shared = set.intersection(*({kind_of(one) for one in found} for _, found in drawn))
    kind = next((kind_of(one) for one in reversed(drawn[0][1]) if kind_of(one) in shared), None)
    chosen = [(model, next(one for one in reversed(found) if kind in (None, kind_of(one)))) for model, found in drawn]
    notes = [
        f"All with the {how(chosen[0][1])}."
        if kind
        else "They were not drawn with the same prompt, seed and top-k, so they do not compare: "
        + "; ".join(f"{inline(model.name)} with the {how(one)}" for model, one in chosen)
        + "."
    ]
    if len({one.step for _, one in chosen}) > 1:
        steps = ", ".join(f"{inline(model.name)} after step {one.step:,}" for model, one in chosen)
        notes.append(f"They were not drawn after the same step: {steps}.")
    having = [model.name for model, _ in chosen]
    if lacking := [inline(model.name) for model in models if model.name not in having]:
        notes.append(f"None is kept of {', '.join(lacking)}.")
    return {
        "sample_notes": notes,
        "samples": [
            [(f"{inline(m.name)}, step {one.step:,}", fenced(one.texts[n])) for m, one in chosen if n < len(one.texts)]
            for n in range(max(len(one.texts) for _, one in chosen))
        ],
    }


def kind_of(sample: SampleRecord) -> tuple[str, int, int]:
    return sample.prompt, sample.seed, sample.top_k


def how(sample: SampleRecord) -> str:
    return f"prompt “{inline(sample.prompt)}”, seed {sample.seed} and top-k {sample.top_k}"
