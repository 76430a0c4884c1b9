"""Find a model by the name that a user gives: a run, a checkpoint, a Hugging Face directory, or a model on the hub."""

from dataclasses import dataclass
from enum import Enum
from os import PathLike
from pathlib import Path

from regpt.base.errors import CheckpointError, UserError
from regpt.checkpoint import store
from regpt.data.shard_writer import FOLDER
from regpt.data.tokenizer import GPT2_TOKENIZER, NAME
from regpt.interop.configuration import is_pretrained, read_config, recipe_from_config
from regpt.interop.hub_model import HUB, download_model
from regpt.interop.pretrained_tokenizer import load_tokenizer
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import build_recipe
from regpt.tracking.layout import RunPaths
from regpt.tracking.run import find_run


class SourceKind(Enum):
    CHECKPOINT = "of regpt"
    PRETRAINED = "a Hugging Face directory"


@dataclass(frozen=True)
class ModelSource:
    """Where a model lies."""

    kind: SourceKind
    path: Path  # of the checkpoint, or of the Hugging Face directory
    name: str  # of the model
    exact_name: str  # that finds the same weights again: a path, or hub:OWNER/NAME@COMMIT


def find_source(
    where: str | PathLike[str], root: Path, step: int | None = None, averaged: bool = False, weights: bool = True
) -> ModelSource:
    """Find a model; of a run, the checkpoint after `step`, by default the newest intact one.

    `averaged` is asked of checkpoints only. Without `weights` those of a model on the hub are not downloaded. Raises
    UserError or CheckpointError if the model is missing.
    """
    path = Path(where).expanduser()
    is_checkpoint = (path / "state.json").is_file()
    on_hub = str(where).startswith(HUB)
    if is_checkpoint or on_hub or is_pretrained(path):
        if step is not None:
            raise UserError(f"--step {step}: {where} is one model, not a run", "name a run, or leave out --step")
        if is_checkpoint:
            return ModelSource(SourceKind.CHECKPOINT, path, path.resolve().name, str(path))
        if averaged:
            raise UserError(f"--averaged: {where} is a Hugging Face model, which has no other weights", "leave it out")
        exact_name = str(path)
        if on_hub:
            path, exact_name = download_model(str(where), weights)
            return ModelSource(SourceKind.PRETRAINED, path, exact_name.partition("@")[0].rpartition("/")[2], exact_name)
        return ModelSource(SourceKind.PRETRAINED, path, path.resolve().name, exact_name)
    try:
        run = find_run(str(where), root)
    except UserError as error:
        raise UserError(
            f"'{where}' is not a run in {root}, a checkpoint or a Hugging Face directory",
            f"{error.fix}; a model on the hub is hub:OWNER/NAME",
        ) from None
    found = store.newest_valid(run) if step is None else checkpoint_of_step(run, step)
    return ModelSource(SourceKind.CHECKPOINT, found, run.name, str(found))


def checkpoint_of_step(run: Path, step: int) -> Path:
    """Return the checkpoint of a run after a step. Raises CheckpointError, which lists the others, if it is missing."""
    found = dict(store.list_checkpoints(run))
    if step not in found:
        steps = ", ".join(f"{step:,}" for step in found) or "none"
        raise CheckpointError(f"{run}: has no checkpoint of step {step:,}", f"choose one of these steps: {steps}")
    return found[step]


def run_of_checkpoint(path: Path) -> Path | None:
    """Return the run in which a checkpoint lies; None for a copy elsewhere."""
    run = path.resolve().parent.parent
    return run if RunPaths(run).recipe.is_file() else None


def recipe_of_checkpoint(path: Path) -> Recipe:
    """Return the recipe with which a checkpoint was made. Raises UserError where this version cannot use it."""
    run = run_of_checkpoint(path)
    state = store.load_state(path)
    recipe, problems = build_recipe(run.name if run else path.resolve().name, state["settings"])
    if recipe is None:
        raise UserError(
            f"{path}: {'; '.join(problem.text for problem in problems)}", "it was made by another version of regpt"
        )
    return recipe


def shape_of(source: ModelSource) -> ModelRecipe:
    """Return the architecture of a model, without reading its weights."""
    if source.kind is SourceKind.CHECKPOINT:
        return recipe_of_checkpoint(source.path).model
    return recipe_from_config(read_config(source.path), source.path)


def tokenizer_setting(source: ModelSource) -> str:
    """Return the value of data.tokenizer that gives a model's tokenizer: a name, or a folder."""
    if source.kind is SourceKind.PRETRAINED:
        config = read_config(source.path)
        found = load_tokenizer(source.path, recipe_from_config(config, source.path), config)
        return NAME if found is GPT2_TOKENIZER else str(source.path)
    run = run_of_checkpoint(source.path)
    if run is not None and (run / FOLDER).is_dir():
        return str(run / FOLDER)
    return recipe_of_checkpoint(source.path).data.tokenizer
