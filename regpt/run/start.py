"""Starting a run and going on with one: what is refused before anything is made, and what a resume allows."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from regpt.base.errors import DONE, CheckpointError, DataError, RecipeError, UserError
from regpt.base.files import locked, write_json, write_text
from regpt.base.recipe import Recipe
from regpt.base.settings import changes, load_recipe, to_toml
from regpt.data.prepare import open_or_prepare
from regpt.data.shards import Manifest, read_manifest
from regpt.run import checkpoint
from regpt.run.console import Console, quiet_console
from regpt.run.devices import Device, open_device
from regpt.run.environment import environment
from regpt.run.journal import read_history
from regpt.run.launch import launched
from regpt.run.ranks import Ranks, open_ranks
from regpt.run.train import Training


def train(recipe: Recipe, run: Path, console: Console | None = None) -> int:
    """Start a run in a directory that does not exist yet; returns the exit code. On every rank that there is.

    Everything that can be refused is refused before the directory is made. Where torchrun starts ranks anew after a
    loss (--max-restarts), a run that is there goes on.
    """
    with opened(recipe, console) as (device, ranks, console):
        if ranks.by_first(run.exists):
            if launched().restarted:
                return go_on(recipe, run, device, ranks, console)
            raise UserError(
                f"{run}: a run of this name exists already",
                f"go on with `regpt resume {run.name}`, or start another: --name …",
            )
        with console.stoppable(several_ranks=ranks.count > 1):
            ranks.by_first(lambda: open_or_prepare(recipe, console).digest, between=console.check, patience=math.inf)
        training = Training(recipe, run, device, ranks, same_data(recipe, ranks), console)
        with started(training):
            training.parallel.initialize(recipe.run.seed)
            return training.go(first_step=0, event="started")


def resume(run: Path, overrides: Sequence[str] = (), console: Console | None = None) -> int:
    """Go on from a run's newest whole checkpoint, on as many ranks as there are now; returns the exit code.

    Overrides may ask for more steps and other looks, which is written down; what else would change the run is refused.
    """
    recipe = load_recipe(run / "recipe.toml", overrides)
    with opened(recipe, console) as (device, ranks, console):
        return go_on(recipe, run, device, ranks, console)


def go_on(recipe: Recipe, run: Path, device: Device, ranks: Ranks, console: Console) -> int:
    with locked(run / "lock") if ranks.first else nullcontext():
        found = ranks.by_first(lambda: where_to_go_on(recipe, run, console))
        manifest = same_data(recipe, ranks)
        if found["complete"]:
            steps = recipe.run.max_steps
            console.say(f"{run} is complete: {steps:,} steps; for more: regpt resume {run} run.max_steps=…")
            return DONE
        training = Training(recipe, run, device, ranks, manifest, console)
        if found["step"]:
            training.load(checkpoint.path_of(run, found["step"]))
        else:
            training.parallel.initialize(recipe.run.seed)
        if ranks.first and (found["changed"] or not (run / "environment.json").exists()):
            describe(training)
        detail = {"changed": found["changed"], "passed_over": found["passed_over"]}
        return training.go(first_step=found["step"], event="resumed", detail=detail)


def where_to_go_on(recipe: Recipe, run: Path, console: Console) -> dict[str, Any]:
    """The newest whole checkpoint's step, and what is asked for otherwise than there.

    Raises CheckpointError where there is none; only where torchrun starts ranks anew, the run begins again at step 0.
    """
    checkpoint.clean(run)
    if launched().restarted and not checkpoint.all_of(run):
        return {"step": 0, "changed": {}, "passed_over": [], "complete": False}
    passed_over: list[str] = []
    path = checkpoint.newest(run, passed_over.append)
    for problem in passed_over:
        console.say(f"note: {problem}; going on from an earlier checkpoint, {path.name}")
    state = checkpoint.load_state(path)
    changed = allowed_changes(path, state, recipe, read_manifest(recipe.data.directory))
    complete = read_history(run).status == "finished" and state["step"] == recipe.run.max_steps
    return {"step": state["step"], "changed": changed, "passed_over": passed_over, "complete": complete}


def allowed_changes(path: Path, state: dict[str, Any], recipe: Recipe, manifest: Manifest) -> dict[str, list[Any]]:
    """What the recipe asks for otherwise than the checkpoint's, as far as that is allowed: setting -> [before, now].

    Raises CheckpointError with the values where it is not.
    """
    refused, allowed = changes(state["settings"], recipe)
    problems = [f"{name} = {then} there, {now} now" for name, (then, now) in refused.items()]
    if state["data"] != manifest.digest:
        problems.append(f"data digest {state['data'][:12]}… there, {manifest.digest[:12]}… in {recipe.data.path}")
    if problems:
        raise CheckpointError(
            f"{path}: was made with another {'recipe' if refused else 'data set'} ({'; '.join(problems)})",
            "put that back, or start a new run",
        )
    if recipe.run.max_steps < state["step"]:
        raise CheckpointError(
            f"{path}: has {state['step']:,} steps, more than run.max_steps = {recipe.run.max_steps:,}",
            "ask for more steps",
        )
    return allowed


@contextmanager
def opened(recipe: Recipe, console: Console | None) -> Iterator[tuple[Device, Ranks, Console]]:
    """What a run computes on, with whom, and where it says so. RecipeError where the ranks cannot share a batch."""
    device = open_device(recipe.run)
    with open_ranks(device, recipe.run.rank_timeout) as ranks:
        if problems := list(recipe.batch_problems(ranks.count)):
            raise RecipeError(recipe.name, problems)
        with console or (Console() if ranks.first else quiet_console()) as console:
            yield device, ranks, console


def same_data(recipe: Recipe, ranks: Ranks) -> Manifest:
    """The data set, as this rank sees it. Raises DataError where another rank sees another one."""
    manifest = read_manifest(recipe.data.directory)
    mine = np.array([int(manifest.digest[:15], 16)], dtype=np.int64)
    if len(set(ranks.gathered(mine).ravel().tolist())) > 1:
        raise DataError(
            f"data.path = '{recipe.data.path}' is not the same data set for all ranks", "copy one to all machines"
        )
    return manifest


@contextmanager
def started(training: Training) -> Iterator[None]:
    """The directory of a new run, made and locked by rank 0; gone again if it ends before its journal begins."""
    run, ranks = training.run, training.ranks
    if not ranks.first:
        yield
        return
    run.mkdir(parents=True)
    try:
        describe(training)
        with locked(run / "lock"):
            yield
    except BaseException:
        if not (run / "journal.jsonl").exists():
            shutil.rmtree(run)
        raise


def describe(training: Training) -> None:
    """Write down what a run is, and where it was begun."""
    run, recipe = training.run, training.recipe
    write_text(run / "recipe.toml", to_toml(recipe))
    if not (run / "environment.json").exists():
        about = environment(recipe, training.device, training.manifest, training.ranks.count)
        write_json(run / "environment.json", about)
