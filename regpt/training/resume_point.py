"""Find where a run is resumed, and what has changed since the checkpoint: settings, learning rate, machine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regpt.base.errors import CheckpointError, DataError
from regpt.checkpoint import store
from regpt.console.training import Console
from regpt.data.shards import Manifest, read_manifest, relative_to
from regpt.machine.compute import ComputeEnvironment
from regpt.machine.env import current_launch
from regpt.optimizer.schedule import learning_rate
from regpt.preparation.existing import refuse_other_settings
from regpt.recipe.differences import changes
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import as_tables, build_recipe, load_resolved_recipe
from regpt.tracking.environment import Environment
from regpt.tracking.events import Resumed, Started
from regpt.tracking.journal import History, RunState, read_history
from regpt.tracking.layout import RunPaths


@dataclass(frozen=True)
class ResumePoint:
    """Where a run is resumed, and what has changed since. Changes are [before, now]."""

    step: int
    changed: dict[str, list[Any]]  # by setting
    skipped_checkpoints: list[str] = field(default_factory=list)  # newer ones that are damaged, and why
    is_complete: bool = False  # whether nothing is left to train
    learning_rate_changed: list[float] = field(default_factory=list)  # of the next step; empty: unchanged
    compute_changed: dict[str, list[Any]] = field(default_factory=dict)  # by field of ComputeEnvironment

    def event(self) -> Resumed:
        return Resumed(
            changed=self.changed,
            skipped_checkpoints=self.skipped_checkpoints,
            learning_rate_changed=self.learning_rate_changed,
            compute_changed=self.compute_changed,
        )


def find_resume_point(recipe: Recipe, run: Path, compute: ComputeEnvironment, console: Console) -> ResumePoint:
    """Find the newest valid checkpoint; compare its settings with the recipe, and its machine with this one.

    Raises CheckpointError without one, unless torchrun restarts lost ranks: then the run restarts at step 0. Raises
    UserError if a word of the command line contradicts the dataset.
    """
    store.remove_partial(run)
    manifest = open_dataset(recipe, run)
    refuse_other_settings(recipe, manifest)
    if current_launch().elastic and not store.list_checkpoints(run):
        return ResumePoint(0, changes_before_first_checkpoint(recipe, run, manifest))
    skipped: list[str] = []
    path = store.newest_valid(run, skipped.append)
    for problem in skipped:
        console.note(f"{problem}; resuming from an earlier checkpoint, {path.name}")
    state, history = store.load_state(path), read_history(run)
    step = int(state["step"])
    changed = allowed_changes(path, state, recipe, manifest)
    return ResumePoint(
        step,
        changed,
        skipped,
        is_complete=history.status is RunState.FINISHED and step == recipe.run.max_steps,
        learning_rate_changed=learning_rate_change(step, state["settings"], recipe),
        compute_changed=compute_changes(state.get("compute") or compute_of_last_attempt(history), compute),
    )


def open_dataset(recipe: Recipe, run: Path) -> Manifest:
    """Return the manifest of the run's dataset. Raises DataError where it is not at data.path any more."""
    directory = recipe.data.directory
    if not directory.is_dir():
        raise DataError(
            f"data.path = '{recipe.data.path}': there is no such folder{relative_to(directory)}",
            f"say where the dataset is now: regpt resume {run} data.path=…",
        )
    return read_manifest(directory)


def learning_rate_change(step: int, before: dict[str, Any], recipe: Recipe) -> list[float]:
    """Return [before, now] of the rate of the step after `step`, where the recipe's schedule has changed; else []."""
    old, problems = build_recipe(recipe.name, before)
    if old is None or problems:
        return []
    rates = [learning_rate(step, old), learning_rate(step, recipe)]
    return rates if rates[0] != rates[1] else []


def compute_of_last_attempt(history: History) -> dict[str, Any]:
    """Return what the journal knows, for a checkpoint of an earlier version."""
    starts = history.details(Started)
    known = {"precision": starts[-1].precision, "torch": starts[-1].torch} if starts else {}
    return {name: value for name, value in known.items() if value}


def compute_changes(before: dict[str, Any], now: ComputeEnvironment) -> dict[str, list[Any]]:
    """Return [before, now] of each fact that differs and that both know."""
    return {name: [before[name], value] for name, value in now.to_json().items() if before.get(name, value) != value}


def changes_before_first_checkpoint(recipe: Recipe, run: Path, manifest: Manifest) -> dict[str, list[Any]]:
    """Do the same as `allowed_changes` for a run that was lost before its first checkpoint."""
    paths = RunPaths(run)
    if not paths.environment.exists():
        return {}
    state = {
        "step": 0,
        "settings": as_tables(load_resolved_recipe(paths.recipe)),
        "data": Environment.read(run).data.digest,
    }
    return allowed_changes(run, state, recipe, manifest)


def allowed_changes(path: Path, state: dict[str, Any], recipe: Recipe, manifest: Manifest) -> dict[str, list[Any]]:
    """Return the settings that differ from the checkpoint's: setting -> [before, now].

    Raises CheckpointError with the values where a resume must not change them.
    """
    refused, allowed = changes(state["settings"], recipe)
    problems = [f"{name} was {then}, is {now}" for name, (then, now) in refused.items()]
    if state["data"] != manifest.digest:
        problems.append(f"data digest was {state['data'][:12]}…, is {manifest.digest[:12]}… in {recipe.data.path}")
    if problems:
        raise CheckpointError(
            f"{path}: was made with another {'recipe' if refused else 'dataset'} ({'; '.join(problems)})",
            "restore it, or start a new run",
        )
    if recipe.run.max_steps < state["step"]:
        raise CheckpointError(
            f"{path}: has {state['step']:,} steps, more than run.max_steps = {recipe.run.max_steps:,}",
            "set it higher",
        )
    return allowed
