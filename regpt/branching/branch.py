"""Branch a trapezoid run at a checkpoint: a new run with the same history that cools down from there.

The run that is branched may be training meanwhile. It is only read.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from regpt.base.errors import CheckpointError, UserError
from regpt.base.files import new_directory, sha256_of_file, write_text
from regpt.branching.journal import write_branch_journal
from regpt.checkpoint import store
from regpt.console.training import Console
from regpt.filesystem.operations import check_file_system
from regpt.machine.env import current_launch
from regpt.optimizer.schedule import GroupKind, cooldown_start
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import build_recipe, load_resolved_recipe, to_toml
from regpt.tracking.events import Branched
from regpt.tracking.layout import RESULTS_FILE, RunPaths, parse_step, step_directories
from regpt.training.resume_point import allowed_changes, open_dataset
from regpt.training.start import RUNS_OPTION, TrainResult, open_session, resume_from

DEFAULT_SHARE = 4  # of the steps before it, one in this number, if the recipe has no cooldown: a fifth of the new run
GIVEN_BY_OPTIONS = ("run.max_steps", "optimizer.cooldown_steps")


def start_cooldown(
    source: Path,
    target: Path | None,
    at: int | None,
    steps: int | None,
    overrides: Sequence[str] = (),
    *,
    console: Console | None = None,
    handle_signals: bool = False,
) -> TrainResult:
    """Branch the run `source` after `at` steps into the new run `target`, and train it through its cooldown.

    `at` None: at the newest intact checkpoint. `steps` None: the recipe's cooldown_steps, or a quarter of `at`.
    `target` None: next to the source, named after it and the step. Raises UserError if the run is no trapezoid, cools
    down already, or `target` exists; CheckpointError if there is no intact checkpoint of that step.
    """
    refuse_given_by_options(overrides)
    recipe = load_resolved_recipe(RunPaths(source).recipe, overrides)
    if recipe.optimizer.schedule != "trapezoid":
        raise UserError(
            f"{source}: optimizer.schedule = '{recipe.optimizer.schedule}' has no constant part to cool down from",
            "start another run with optimizer.schedule=trapezoid",
        )
    with open_session(recipe, console) as (device, ranks, console):
        step = ranks.on_main(lambda: branch_step(source, at, recipe.name))
        target = target or source.with_name(f"{source.resolve().name}-cooldown-{step}")
        recipe = branch_recipe(source, step, steps, overrides)
        if not (ranks.on_main(target.exists) and current_launch().elastic):
            ranks.on_main(lambda: write_branch(source, step, recipe, target))
            console.print_line(
                f"{target}: {source} after step {step:,}, with a cooldown of {recipe.run.max_steps - step:,} steps"
            )
        return resume_from(recipe, target, device, ranks, console, handle_signals)


def refuse_given_by_options(overrides: Sequence[str]) -> None:
    for word in overrides:
        if word.partition("=")[0].strip() in GIVEN_BY_OPTIONS:
            raise UserError(f"'{word}': --at and --steps decide it", "use them instead")


def branch_step(source: Path, at: int | None, name: str) -> int:
    """Return the step of an intact checkpoint from before the cooldown.

    Raises CheckpointError if there is not, UserError if the run was cooling down already.
    """
    known = [step for step, _ in store.list_checkpoints(source)]
    if at is None:
        step = parse_step(store.newest_valid(source).name) or 0
    elif at not in known:
        there = f"there are those of {listed(known)}" if known else "it has none yet"
        raise CheckpointError(f"{source}: has no checkpoint of step {at:,}", f"{there}; see checkpoint.every")
    elif fault := next(store.find_faults(RunPaths(source).checkpoint(step := at)), None):
        raise CheckpointError(fault, "choose another one: --at STEP; `regpt checkpoints` verifies them")
    trained_with, _ = build_recipe(name, store.load_state(RunPaths(source).checkpoint(step))["settings"])
    starts = [cooldown_start(trained_with, group) for group in GroupKind] if trained_with else []
    if starts and step > min(starts):
        earlier = [number for number in known if number <= min(starts)]
        raise UserError(
            f"{source}: step {step:,} is in its cooldown, which began after step {min(starts):,}",
            f"choose an earlier checkpoint: --at {listed(earlier)}" if earlier else "it has no earlier checkpoint",
        )
    return step


def listed(steps: Sequence[int]) -> str:
    """Write out steps; of many, the first and the last ones."""
    words = [str(step) for step in steps]
    return ", ".join(words if len(words) <= 8 else [*words[:2], "…", *words[-5:]])


def branch_recipe(source: Path, step: int, steps: int | None, overrides: Sequence[str]) -> Recipe:
    """Return the recipe of the branch. Adam's own cooldown keeps its share of the other one."""
    before = load_resolved_recipe(RunPaths(source).recipe).optimizer
    length = steps or before.cooldown_steps or max(1, step // DEFAULT_SHARE)
    of_adam = before.adam_cooldown_steps
    if of_adam and before.cooldown_steps:
        of_adam = max(1, round(length * of_adam / before.cooldown_steps))
    words = [f"run.max_steps={step + length}", f"optimizer.cooldown_steps={length}"]
    words.append(f"optimizer.adam_cooldown_steps={min(of_adam, length)}")
    return load_resolved_recipe(RunPaths(source).recipe, [*words, *overrides])


def write_branch(source: Path, step: int, recipe: Recipe, target: Path) -> None:
    """Write the directory of the branch: recipe, environment, the journal until `step`, its evaluations and checkpoint.

    Raises CheckpointError if a setting changes that a resume may not change either. Then nothing is written.
    """
    if target.exists():
        raise UserError(
            f"{target}: a run of this name exists already",
            f"resume it with `regpt resume {target.name}`, or choose another: --name …",
        )
    check_file_system(target, RUNS_OPTION)
    checkpoint, paths = RunPaths(source).checkpoint(step), RunPaths(source)
    manifest = open_dataset(recipe, source)
    try:
        allowed_changes(checkpoint, store.load_state(checkpoint), recipe, manifest)
        with new_directory(target) as folder:
            made = RunPaths(folder)
            write_text(made.recipe, to_toml(recipe))
            if paths.environment.exists():
                shutil.copyfile(paths.environment, made.environment)
            link_files(checkpoint, made.checkpoint(step))
            for earlier, evaluated in step_directories(paths.evaluations):
                if earlier <= step:
                    link_files(evaluated, made.evaluation(earlier))
            digest = sha256_of_file(made.checkpoint(step) / "manifest.json")
            branched = Branched(source=source.resolve().name, checkpoint=digest)
            write_branch_journal(source, step, branched, folder)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename}: was removed while it was copied", "choose a later step, or raise checkpoint.keep_last"
        ) from None


def link_files(source: Path, target: Path) -> None:
    """Link the files of a directory into a new one; copy them where a file system has no hard links.

    Files of a run are replaced, never changed, so both directories stay as they are. The results of `regpt evaluate`
    belong to the source.
    """
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name == RESULTS_FILE or not file.is_file():
            continue
        try:
            os.link(file, target / file.name)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(file, target / file.name)
