"""Going on: what a resume finds, what it refuses, and what it allows and writes down."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regpt.base.errors import DONE, CheckpointError
from regpt.base.files import locked, write_text
from regpt.base.recipe import Recipe
from regpt.base.settings import changes, load_recipe, to_toml
from regpt.data.shards import Manifest, read_manifest
from regpt.run import checkpoint
from regpt.run.console import Console
from regpt.run.devices import open_device
from regpt.run.journal import read_history
from regpt.run.train import Training


def resume(run: Path, overrides: Sequence[str] = (), console: Console | None = None) -> int:
    """Go on from a run's newest whole checkpoint; returns the exit code.

    Overrides may ask for more steps and other looks, which is written down; what else would change the run is refused.
    """
    recipe = load_recipe(run / "recipe.toml", overrides)
    with console or Console() as console, locked(run / "lock"):
        checkpoint.clean(run)
        passed_over: list[str] = []
        path = checkpoint.newest(run, passed_over.append)
        for problem in passed_over:
            console.say(f"note: {problem}; going on from an earlier checkpoint, {path.name}")
        state = checkpoint.load_state(path)
        manifest = read_manifest(recipe.data.directory)
        changed = allowed_changes(path, state, recipe, manifest)
        if read_history(run).status == "finished" and state["step"] == recipe.run.max_steps:
            console.say(f"{run} is complete: {state['step']:,} steps; for more: regpt resume {run} run.max_steps=…")
            return DONE
        training = Training(recipe, run, open_device(recipe.run), manifest, console)
        training.load(path)
        if changed:
            write_text(run / "recipe.toml", to_toml(recipe))
        detail = {"changed": changed, "passed_over": passed_over}
        return training.go(first_step=state["step"], event="resumed", detail=detail)


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
