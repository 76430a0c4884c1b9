"""Start a run or resume one: what is refused before anything is written, and what a resume may change."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from regpt.base.errors import DataError, RecipeError, UserError
from regpt.base.files import sha256_of_json, write_json, write_text
from regpt.console.preparation import PreparationConsole
from regpt.console.training import Console, quiet_console
from regpt.data.shard_writer import copy_tokenizer
from regpt.data.shards import Manifest, read_manifest
from regpt.distributed.rank_group import RankGroup
from regpt.distributed.rendezvous import open_rank_group
from regpt.distributed.signals import STOP_REASONS
from regpt.filesystem.locks import locked
from regpt.filesystem.operations import check_file_system
from regpt.interop.initial import check_tokenizer, origin_of, with_source_model, write_initial_checkpoint
from regpt.interop.open_model import LoadedModel, open_model
from regpt.machine.compute import compute_environment
from regpt.machine.device import Device, open_device
from regpt.machine.env import current_launch
from regpt.preparation.dataset import open_or_prepare
from regpt.preparation.existing import with_fixed_settings
from regpt.recipe.differences import recipe_digest
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import as_tables, load_resolved_recipe, to_toml
from regpt.tracking.environment import Origin
from regpt.tracking.events import Started
from regpt.tracking.layout import RunPaths
from regpt.tracking.resume_changes import changes_of_resume
from regpt.tracking.run import Run, open_run
from regpt.training.environment import code_version, environment
from regpt.training.resume_point import ResumePoint, find_resume_point
from regpt.training.trainer import Trainer

RUNS_OPTION = "--runs FOLDER"  # where another folder for runs is named


@dataclass(frozen=True)
class TrainResult:
    """How training ended: finished, or stopped by a signal or the time limit after a checkpoint was saved."""

    run_dir: Path
    is_main: bool  # whether this process is rank 0; others may not see the run directory
    stopped_by: str = ""  # a name in `STOP_REASONS`; empty: finished

    @property
    def exit_code(self) -> int:
        return STOP_REASONS[self.stopped_by]

    def open(self) -> Run | None:
        """Read the run; None on ranks other than the main one."""
        return open_run(self.run_dir) if self.is_main else None


def train(recipe: Recipe, run_dir: Path, *, console: Console | None = None, handle_signals: bool = False) -> Run | None:
    """Train a new run in `run_dir`, which must not exist yet, until it is finished or stopped.

    Returns the run on the main rank, None on the others. Missing data is prepared first. Prints nothing unless a
    console is given. With `handle_signals` SIGINT, SIGTERM, SIGHUP and SIGUSR1 save a checkpoint and stop the run;
    otherwise no signal handler is installed. Under torchrun, call it on every rank, once in a process.

    Raises UserError for anything that the caller can fix: an unusable recipe or dataset, a run directory that exists,
    a batch that does not fit into memory, a loss that stays NaN or infinite.
    """
    return start_training(recipe, run_dir, console=console, handle_signals=handle_signals).open()


def resume(
    run_dir: Path, overrides: Sequence[str] = (), *, console: Console | None = None, handle_signals: bool = False
) -> Run | None:
    """Resume a run from its newest valid checkpoint, on any number of ranks; otherwise like `train`.

    `overrides` ("section.key=value") may change settings that leave the results as they are, and may ask for more
    steps and other evaluations, which is recorded in the journal. Raises CheckpointError for any other change.
    """
    return resume_training(run_dir, overrides, console=console, handle_signals=handle_signals).open()


def start_training(
    recipe: Recipe, run_dir: Path, *, console: Console | None = None, handle_signals: bool = False
) -> TrainResult:
    """Do the work of `train` and return how it ended, which a command needs for its exit code.

    Whatever can be refused is refused before the directory is made. Where torchrun restarts lost ranks
    (--max-restarts), a run that exists is resumed. Raises StopRequested where a signal stops the preparation of data.
    """
    if current_launch().elastic and recipe.run.init_from and RunPaths(run_dir).recipe.is_file():
        recipe = load_resolved_recipe(RunPaths(run_dir).recipe)  # without its source
    else:
        recipe = with_source_model(recipe, run_dir.parent)
    with open_session(recipe, console) as (device, ranks, console):
        if ranks.on_main(run_dir.exists):
            if current_launch().elastic:
                return resume_from(recipe, run_dir, device, ranks, console, handle_signals)
            raise UserError(
                f"{run_dir}: a run of this name exists already",
                f"resume it with `regpt resume {run_dir.name}`, or start another: --name …",
            )
        ranks.on_main(lambda: check_file_system(run_dir, RUNS_OPTION))
        progress = PreparationConsole(console)
        with console.stoppable(several_ranks=ranks.size > 1) if handle_signals else nullcontext():
            ranks.on_main(
                lambda: open_or_prepare(recipe, progress).digest,
                while_waiting=console.raise_if_stopped,
                timeout=math.inf,
            )
        manifest = check_same_on_all_ranks(recipe, device, ranks)
        recipe = with_fixed_settings(recipe, manifest)
        source = open_source(recipe, run_dir.parent, manifest, ranks)
        training = Trainer(recipe, run_dir, device, ranks, manifest, console, handle_signals)
        with new_run_directory(training, origin_of(source) if source else None):
            save_source(training, source)
            del source  # frees its memory
            training.restore(0)
            stopped_by = training.train(first_step=0, start=Started())
        return TrainResult(run_dir, ranks.is_main, stopped_by)


def resume_training(
    run_dir: Path, overrides: Sequence[str] = (), *, console: Console | None = None, handle_signals: bool = False
) -> TrainResult:
    """Do the work of `resume` and return how it ended."""
    recipe = load_resolved_recipe(RunPaths(run_dir).recipe, overrides)
    with open_session(recipe, console) as (device, ranks, console):
        return resume_from(recipe, run_dir, device, ranks, console, handle_signals)


def resume_from(
    recipe: Recipe, run_dir: Path, device: Device, ranks: RankGroup, console: Console, handle_signals: bool
) -> TrainResult:
    paths = RunPaths(run_dir)
    with locked_run(run_dir, console.note) if ranks.is_main else nullcontext():
        compute = compute_environment(device, ranks.size)
        found = ResumePoint(**ranks.on_main(lambda: asdict(find_resume_point(recipe, run_dir, compute, console))))
        manifest = check_same_on_all_ranks(recipe, device, ranks)
        recipe = with_fixed_settings(recipe, manifest)
        if found.is_complete:
            steps = recipe.run.max_steps
            console.print_line(
                f"{run_dir} is complete: {steps:,} steps; for more: regpt resume {run_dir} run.max_steps=…"
            )
            return TrainResult(run_dir, ranks.is_main)
        start = found.event()
        console.print_line(f"resuming {run_dir} after step {found.step:,} of {recipe.run.max_steps:,}")
        for line in changes_of_resume(start):
            console.note(line)
        training = Trainer(recipe, run_dir, device, ranks, manifest, console, handle_signals)
        training.restore(found.step)
        if ranks.is_main and (found.changed or not paths.environment.exists()):
            write_description(training)
        elif ranks.is_main:
            record_data_path(paths.recipe, recipe)
        stopped_by = training.train(first_step=found.step, start=start)
        return TrainResult(run_dir, ranks.is_main, stopped_by)


@contextmanager
def open_session(recipe: Recipe, console: Console | None) -> Iterator[tuple[Device, RankGroup, Console]]:
    """Open the device, the group of ranks and the console, which prints on the main rank only and only if given.

    Raises RecipeError where the ranks cannot share a batch evenly.
    """
    device = open_device(recipe.run)
    with open_rank_group(device, recipe.run.rank_timeout) as ranks:
        if problems := list(recipe.batch_problems(ranks.size)):
            raise RecipeError(f"{recipe.name}, on {ranks.size} ranks" if ranks.size > 1 else recipe.name, problems)
        with console if console is not None and ranks.is_main else quiet_console() as console:
            yield device, ranks, console


def check_same_on_all_ranks(recipe: Recipe, device: Device, ranks: RankGroup) -> Manifest:
    """Open the dataset and return its manifest.

    Raises DataError or UserError where another rank has another dataset, recipe, version or precision.
    """
    manifest = read_manifest(recipe.data.directory)
    if ranks.size == 1:
        return manifest
    saving = as_tables(recipe)["checkpoint"]  # not part of the digest, but all ranks save together
    seen = {
        f"the dataset at data.path = '{recipe.data.path}'": manifest.digest,
        "the recipe, with the settings of the command line": sha256_of_json([recipe_digest(recipe), saving]),
        "the version of regpt or of torch": sha256_of_json([code_version(), torch.__version__]),
        "the precision or torch.compile": sha256_of_json([device.precision_name, device.compiled]),
    }
    mine = np.array([int(digest[:15], 16) for digest in seen.values()], dtype=np.int64)
    for number, (what, values) in enumerate(zip(seen, ranks.all_gather(mine).T, strict=True)):
        if len(set(values.tolist())) > 1:
            kind = UserError if number else DataError
            raise kind(f"{what} is not the same on all ranks", "make it the same on all machines")
    return manifest


def open_source(recipe: Recipe, root: Path, manifest: Manifest, ranks: RankGroup) -> LoadedModel | None:
    """Open the model of `run.init_from` on rank 0; None on the others, and without one.

    Raises UserError on all ranks if its tokenizer is not that of the dataset.
    """
    found: list[LoadedModel] = []

    def open_checked() -> None:
        found.append(open_model(recipe.run.init_from, root))
        check_tokenizer(found[0], manifest, recipe)

    if recipe.run.init_from:
        ranks.on_main(open_checked, timeout=math.inf)
    return found[0] if found else None


def save_source(training: Trainer, source: LoadedModel | None) -> None:
    """Write the weights of `run.init_from`, which rank 0 has opened, as the checkpoint of step 0; others wait."""

    def write() -> None:
        assert source is not None
        write_initial_checkpoint(training.run_dir, source, training.recipe, training.state.to_json(best=None))

    if training.recipe.run.init_from:
        training.ranks.on_main(write, timeout=math.inf)


@contextmanager
def new_run_directory(training: Trainer, origin: Origin | None = None) -> Iterator[None]:
    """Create and lock the directory of a new run on rank 0; remove it if the run ends before its journal begins."""
    run, ranks = training.run_dir, training.ranks
    if not ranks.is_main:
        yield
        return
    run.mkdir(parents=True)
    try:
        write_description(training, origin)
        with locked_run(run, training.console.note):
            yield
    except BaseException:
        if not RunPaths(run).journal.exists():
            shutil.rmtree(run)
        raise


@contextmanager
def locked_run(run: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a run. Raise LockedError if another process does, UserError if the file system cannot work."""
    with locked(RunPaths(run).lock) as held:
        if held.note:
            note(held.note)
        check_file_system(run, RUNS_OPTION)
        yield


def record_data_path(file: Path, recipe: Recipe) -> None:
    """Write where the dataset is now into recipe.toml. Other settings of place and time hold for one attempt."""
    stored = load_resolved_recipe(file)
    if stored.data.path != recipe.data.path:
        write_text(file, to_toml(replace(stored, data=replace(stored.data, path=recipe.data.path))))


def write_description(training: Trainer, origin: Origin | None = None) -> None:
    """Write recipe.toml, and environment.json unless it exists."""
    paths, recipe = RunPaths(training.run_dir), training.recipe
    write_text(paths.recipe, to_toml(recipe))
    copy_tokenizer(recipe.data.directory, training.run_dir)
    if not paths.environment.exists():
        about = environment(recipe, training.device, training.manifest, training.ranks.size, origin)
        write_json(paths.environment, about.to_json())
