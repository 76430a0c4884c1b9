"""What a run is compared with in its report: another run, a recipe with published figures, or any model.

A model that is not a run is measured on the validation windows of the run.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import UserError
from regpt.fairness.loading import load_evaluations
from regpt.fairness.models import ComparedModel
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe, shipped_recipe
from regpt.tracking.layout import RESULTS_FILE, VALIDATION
from regpt.tracking.run import NoSuchRun, Run, find_run, open_run

if TYPE_CHECKING:
    from regpt.interop.open_model import LoadedModel

FOLDER = "against"  # in the evaluations of the run


@dataclass(frozen=True)
class Baseline:
    """What a run is compared with: another run, another model, or a recipe with published figures."""

    name: str
    recipe: Recipe
    run: Run | None
    model: ComparedModel | None = None  # measured on the run's validation windows


def open_baseline(
    where: str, root: Path, of_run: Run | None = None, step: int | None = None, averaged: bool = False
) -> Baseline:
    """Open a run, a model that `regpt evaluate` takes, or a recipe by its .toml file or the name of a shipped one.

    A run comes before a shipped recipe of the same name. A checkpoint, a Hugging Face model, and a run with `step` or
    `averaged` are measured on the windows of `of_run`, if it is given. Raises UserError if there is no such model.
    """
    if of_run is not None and (step is not None or averaged):
        return measured_baseline(measure_model(where, of_run, root, step, averaged))
    if not where.endswith(".toml"):
        try:
            run = open_run(find_run(where, root))
        except NoSuchRun:
            if shipped_recipe(where) is None:
                if of_run is None:
                    raise
                return measured_baseline(measure_model(where, of_run, root))
        else:
            return Baseline(run.id, run.recipe, run)
    recipe = load_recipe(where)
    return Baseline(f"{recipe.name} (recorded)", recipe, None)


def measured_baseline(model: ComparedModel) -> Baseline:
    assert model.recipe is not None
    return Baseline(model.name, model.recipe, None, model)


def measure_model(where: str, run: Run, root: Path, step: int | None = None, averaged: bool = False) -> ComparedModel:
    """Validate a checkpoint, a Hugging Face directory or a model on the hub on the run's windows, and load the result.

    The result is kept in the run, in evaluations/against, and used again for the same weights and windows. Raises
    UserError if there is no such model, or if it has another tokenizer or a shorter context than the run.
    """
    from regpt.distributed.rank_group import RankGroup
    from regpt.evaluation.evaluate import evaluate
    from regpt.interop.open_model import digest_of_weights, open_model
    from regpt.machine.device import open_device_for_evaluation

    opened = with_windows_of(run, open_model(where, root, (), step, averaged))
    into = run.paths.evaluations / FOLDER / opened.name
    if not has_result(into, run, digest_of_weights(opened.model)):
        shutil.rmtree(into, ignore_errors=True)
        evaluate(opened, [VALIDATION], into, open_device_for_evaluation(opened.recipe.run), RankGroup())
    return replace(load_evaluations(into, root), name=opened.name, recipe=opened.recipe)


def with_windows_of(run: Run, opened: "LoadedModel") -> "LoadedModel":
    """Return a model whose recipe has the data, the windows and the precision of a run."""
    ours, theirs = run.recipe, opened.recipe
    block_size = ours.model.block_size
    if theirs.model.block_size < block_size:
        raise UserError(
            f"{opened.name} has a context of {theirs.model.block_size:,} tokens, the windows of {run.id} have"
            f" {block_size:,}",
            "compare it with a run of a shorter model.block_size",
        )
    recipe = replace(
        theirs,
        data=ours.data,
        evaluation=ours.evaluation,
        model=replace(theirs.model, block_size=block_size),
        run=replace(theirs.run, device=ours.run.device, precision=ours.run.precision),
    )
    return replace(opened, recipe=recipe)


def has_result(folder: Path, run: Run, weights: str) -> bool:
    """Return whether a folder has the loss of these weights on the run's windows."""
    try:
        results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        found = results["tasks"][VALIDATION]
        windows = run.history.validations[-1].windows if run.history.validations else found["windows"]
        there = (results["weights"], found["data"], found["block_size"], found["windows"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(there == (weights, run.environment.data.digest, run.recipe.model.block_size, windows))
