"""Starting a run and going on with one: what is refused before anything is made, and what a resume allows."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regpt.base.errors import DONE, CheckpointError, DataError, RecipeError, UserError
from regpt.base.files import locked, sha256_of_json, write_json, write_text
from regpt.base.recipe import Recipe
from regpt.base.settings import as_tables, changes, load_recipe, recipe_digest, to_toml
from regpt.checkpoint import store
from regpt.data.shards import Manifest, read_manifest
from regpt.distributed.device import Device, open_device
from regpt.distributed.env import current_launch
from regpt.distributed.ranks import RankGroup, open_rank_group
from regpt.prepare.dataset import open_or_prepare
from regpt.tracking.journal import read_history
from regpt.tracking.layout import RunPaths
from regpt.train.console import Console, quiet_console
from regpt.train.environment import code_version, environment
from regpt.train.trainer import Trainer


def train(recipe: Recipe, run: Path, console: Console | None = None) -> int:
    """Start a run in a directory that does not exist yet; returns the exit code. On every rank that there is.

    Everything that can be refused is refused before the directory is made. Where torchrun starts ranks anew after a
    loss (--max-restarts), a run that is there goes on.
    """
    with open_session(recipe, console) as (device, ranks, console):
        if ranks.on_main(run.exists):
            if current_launch().elastic:
                return resume_from(recipe, run, device, ranks, console)
            raise UserError(
                f"{run}: a run of this name exists already",
                f"go on with `regpt resume {run.name}`, or start another: --name …",
            )
        with console.stoppable(several_ranks=ranks.size > 1):
            ranks.on_main(
                lambda: open_or_prepare(recipe, console).digest, between=console.raise_if_stopped, patience=math.inf
            )
        training = Trainer(recipe, run, device, ranks, check_same_on_all_ranks(recipe, device, ranks), console)
        with new_run_directory(training):
            training.parallel.initialize(recipe.run.seed)
            return training.train(first_step=0, event="started")


def resume(run: Path, overrides: Sequence[str] = (), console: Console | None = None) -> int:
    """Go on from a run's newest whole checkpoint, on as many ranks as there are now; returns the exit code.

    Overrides may ask for more steps and other looks, which is written down; what else would change the run is refused.
    """
    recipe = load_recipe(RunPaths(run).recipe, overrides)
    with open_session(recipe, console) as (device, ranks, console):
        return resume_from(recipe, run, device, ranks, console)


def resume_from(recipe: Recipe, run: Path, device: Device, ranks: RankGroup, console: Console) -> int:
    paths = RunPaths(run)
    with locked(paths.lock) if ranks.is_main else nullcontext():
        found = ranks.on_main(lambda: find_resume_point(recipe, run, console))
        manifest = check_same_on_all_ranks(recipe, device, ranks)
        if found["complete"]:
            steps = recipe.run.max_steps
            console.say(f"{run} is complete: {steps:,} steps; for more: regpt resume {run} run.max_steps=…")
            return DONE
        training = Trainer(recipe, run, device, ranks, manifest, console)
        if found["step"]:
            training.load(paths.checkpoint(found["step"]))
        else:
            training.parallel.initialize(recipe.run.seed)
        if ranks.is_main and (found["changed"] or not paths.environment.exists()):
            write_description(training)
        detail = {"changed": found["changed"], "passed_over": found["passed_over"]}
        return training.train(first_step=found["step"], event="resumed", detail=detail)


def find_resume_point(recipe: Recipe, run: Path, console: Console) -> dict[str, Any]:
    """The newest whole checkpoint's step, and what is asked for otherwise than there.

    Raises CheckpointError where there is none; only where torchrun starts ranks anew, the run begins again at step 0.
    """
    store.remove_partial(run)
    if current_launch().elastic and not store.list_checkpoints(run):
        return {
            "step": 0,
            "changed": changes_before_first_checkpoint(recipe, run),
            "passed_over": [],
            "complete": False,
        }
    passed_over: list[str] = []
    path = store.newest_valid(run, passed_over.append)
    for problem in passed_over:
        console.say(f"note: {problem}; going on from an earlier checkpoint, {path.name}")
    state = store.load_state(path)
    changed = allowed_changes(path, state, recipe, read_manifest(recipe.data.directory))
    complete = read_history(run).status == "finished" and state["step"] == recipe.run.max_steps
    return {"step": state["step"], "changed": changed, "passed_over": passed_over, "complete": complete}


def changes_before_first_checkpoint(recipe: Recipe, run: Path) -> dict[str, list[Any]]:
    """The same as `allowed_changes` for a run that was lost before its first checkpoint."""
    paths = RunPaths(run)
    if not paths.environment.exists():
        return {}
    state = {
        "step": 0,
        "settings": as_tables(load_recipe(paths.recipe)),
        "data": json.loads(paths.environment.read_text(encoding="utf-8"))["data"]["digest"],
    }
    return allowed_changes(run, state, recipe, read_manifest(recipe.data.directory))


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
def open_session(recipe: Recipe, console: Console | None) -> Iterator[tuple[Device, RankGroup, Console]]:
    """What a run computes on, with whom, and where it says so. RecipeError where the ranks cannot share a batch."""
    device = open_device(recipe.run)
    with open_rank_group(device, recipe.run.rank_timeout) as ranks:
        if problems := list(recipe.batch_problems(ranks.size)):
            raise RecipeError(f"{recipe.name}, on {ranks.size} ranks" if ranks.size > 1 else recipe.name, problems)
        with console or (Console() if ranks.is_main else quiet_console()) as console:
            yield device, ranks, console


def check_same_on_all_ranks(recipe: Recipe, device: Device, ranks: RankGroup) -> Manifest:
    """The data set, as this rank sees it. Raises where another rank sees another one, or is to do something else."""
    manifest = read_manifest(recipe.data.directory)
    if ranks.size == 1:
        return manifest
    when_to_save = as_tables(recipe)["checkpoint"]  # changes no result, but all ranks save together
    seen = {
        f"the data set at data.path = '{recipe.data.path}'": manifest.digest,
        "the recipe, with what the command line changes": sha256_of_json([recipe_digest(recipe), when_to_save]),
        "the version of regpt or of torch": sha256_of_json([code_version(), torch.__version__]),
        "the precision or torch.compile": sha256_of_json([device.precision_name, device.compiled]),
    }
    mine = np.array([int(digest[:15], 16) for digest in seen.values()], dtype=np.int64)
    for number, (what, values) in enumerate(zip(seen, ranks.all_gather(mine).T, strict=True)):
        if len(set(values.tolist())) > 1:
            kind = UserError if number else DataError
            raise kind(f"{what}: is not the same on all ranks", "make it the same on all machines")
    return manifest


@contextmanager
def new_run_directory(training: Trainer) -> Iterator[None]:
    """The directory of a new run, made and locked by rank 0; gone again if it ends before its journal begins."""
    run, ranks = training.run_dir, training.ranks
    if not ranks.is_main:
        yield
        return
    run.mkdir(parents=True)
    try:
        write_description(training)
        with locked(RunPaths(run).lock):
            yield
    except BaseException:
        if not RunPaths(run).journal.exists():
            shutil.rmtree(run)
        raise


def write_description(training: Trainer) -> None:
    """Write down what a run is, and where it was begun."""
    paths, recipe = RunPaths(training.run_dir), training.recipe
    write_text(paths.recipe, to_toml(recipe))
    if not paths.environment.exists():
        about = environment(recipe, training.device, training.manifest, training.ranks.size)
        write_json(paths.environment, about)
