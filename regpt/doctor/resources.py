"""Check the resources of a run: machine, data, memory, disk and time."""

import contextlib
import math
import shutil
import statistics
import time

import torch

from regpt.base.format import CENTURY, byte_size, duration, percent, teraflops
from regpt.base.progress import NoProgress
from regpt.data.import_shards import verify
from regpt.data.shards import TokenWindows
from regpt.data.sizes import check_fits
from regpt.doctor.checks import CheckFailed
from regpt.doctor.rehearsal import HELLASWAG_ITEMS, Rehearsal
from regpt.filesystem.operations import check_file_system
from regpt.machine.device import free_memory
from regpt.machine.limits import memory_limit
from regpt.optimizer.sizes import checkpoint_bytes
from regpt.plan.memory import USABLE_SHARE, ParallelLayout, estimate_memory
from regpt.plan.sizes import checkpoints_kept, disk_needed
from regpt.preparation.dataset import open_or_prepare
from regpt.recipe.recipe import Recipe
from regpt.tasks import catalog
from regpt.tracking.events import OutOfMemory
from regpt.tracking.journal import read_history

VERIFY_SECONDS = 40.0  # limit for verifying the data; of a large dataset only a part is read
MAX_DAYS = 60.0


def check_machine(rehearsal: Rehearsal) -> str:
    """Open the device and divide the batch among the ranks."""
    device = rehearsal.device
    if problems := list(rehearsal.recipe.batch_problems(rehearsal.ranks)):
        raise CheckFailed(
            "; ".join(problem.text for problem in problems),
            "change the recipe, or override settings as section.key=value",
        )
    return (
        f"{device.name}, {device.precision_name}{', compiled' if device.compiled else ''};"
        f" {teraflops(device.peak_flops) if device.peak_flops else 'peak unknown'} ({device.peak_source})"
    )


class TimeLimit(NoProgress):
    """Stop work with TimeoutError after some seconds; `share` is the part that was done."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.share = 0.0

    def update(self, done: int, total: int) -> None:
        self.share = done / total

    def raise_if_stopped(self) -> None:
        if time.monotonic() > self.until:
            raise TimeoutError


def check_data(rehearsal: Rehearsal) -> str:
    """Prepare the data if it is local, and compare the shards with the manifest."""
    manifest = open_or_prepare(rehearsal.recipe)
    progress = TimeLimit(VERIFY_SECONDS)
    problems: list[str] = []
    with contextlib.suppress(TimeoutError):
        problems.extend(verify(rehearsal.recipe.data.directory, progress))
    if problems:
        raise CheckFailed(
            "; ".join(problems[:3]), "download or prepare these shards again; `regpt data verify` checks all of them"
        )
    tokens = {"train": manifest.tokens("train"), "val": manifest.tokens("val")}
    directory, block = rehearsal.recipe.data.directory, rehearsal.recipe.model.block_size
    windows = {
        "train": len(TokenWindows(directory, manifest, "train", block)),
        "val": len(TokenWindows(directory, manifest, "val", block)),
    }
    check_fits(tokens, windows, rehearsal.recipe.batch_windows, block)
    part = f"{percent(progress.share)} of the bytes (all: regpt data verify)"
    checked = "all shards" if progress.share >= 1.0 else part
    return f"{checked} match the manifest; {tokens['train']:,} training and {tokens['val']:,} validation tokens"


def check_memory(rehearsal: Rehearsal) -> str:
    """Compare the estimated memory with the free memory, and look for out-of-memory retries."""
    device, recipe = rehearsal.device, rehearsal.recipe
    on_cpu = device.torch_device.type == "cpu"
    layout = ParallelLayout(
        rehearsal.ranks,
        recipe.data.micro_batch,
        recipe.accumulation_steps(rehearsal.ranks),
        recipe.run.parallel == "fsdp" and rehearsal.ranks > 1,
        device.precision == torch.bfloat16,
        on_cpu,
        device.compiled,
    )
    needed = estimate_memory(recipe, layout).total
    room = free_memory(device.torch_device) * (1.0 if on_cpu else USABLE_SHARE)
    limit = memory_limit() if on_cpu else math.inf
    limited = f" below the container's limit of {byte_size(limit)}" if math.isfinite(limit) else ""
    message = f"estimated {byte_size(needed)} of {byte_size(room)} free{limited}; `regpt plan` shows the parts"
    if needed > room:
        raise CheckFailed(
            message, "reduce data.micro_batch, set run.activation_checkpointing=true, or use a smaller model"
        )
    if halved := read_history(rehearsal.run).details(OutOfMemory):
        raise CheckFailed(
            f"out of memory with data.micro_batch = {halved[0].micro_batch_before}",
            f"set data.micro_batch={halved[-1].micro_batch_after}",
        )
    return message


def check_disk(rehearsal: Rehearsal) -> str:
    """Try what a run does with files, and compare the size of all checkpoints with the free disk space."""
    check_file_system(rehearsal.folder, "--runs FOLDER")
    free, needed = shutil.disk_usage(rehearsal.folder).free, disk_needed(rehearsal.recipe)
    count, size = checkpoints_kept(rehearsal.recipe), checkpoint_bytes(rehearsal.recipe)
    kept = f"{count:,} checkpoints of {byte_size(size)}, plus one being written"
    message = f"{byte_size(needed)} of {byte_size(free)} free ({kept})"
    if needed > free:
        raise CheckFailed(message, "set checkpoint.keep_last, or use another disk with --runs")
    return message


def check_time(rehearsal: Rehearsal) -> str:
    """Estimate the time of the real run."""
    seconds = expected_seconds(rehearsal)
    steps, ranks = rehearsal.recipe.run.max_steps, rehearsal.ranks
    estimate = duration(seconds) if seconds < CENTURY else "more than 100 years"
    message = f"estimated {estimate} for {steps:,} steps on {ranks} rank{'s' * (ranks > 1)}"
    if not seconds < 86_400 * MAX_DAYS:
        raise CheckFailed(message, "use a faster machine (regpt plan RECIPE --gpu all), a smaller model or fewer steps")
    limit = rehearsal.recipe.run.time_limit_seconds
    return message + (f"; run.time_limit stops the run every {duration(limit)}" if seconds > limit else "")


def expected_seconds(rehearsal: Rehearsal) -> float:
    """Estimate the seconds of the real run from the rehearsal on the same number of ranks.

    Training scales with tokens, evaluation with windows and items. Checkpoints are written in the background.
    """
    recipe, small = rehearsal.recipe, rehearsal.small
    history = read_history(rehearsal.on_ranks if rehearsal.ranks > 1 else rehearsal.run)
    token_seconds = statistics.median(record.seconds for record in history.steps[1:]) / small.data.total_batch_tokens
    training = token_seconds * rehearsal.token_time_ratio() * recipe.total_tokens
    validation, evaluation = history.validations[-1], recipe.evaluation
    windows = evaluation.validation_batches * evaluation.validation_batch_size
    validating = evaluations(recipe, evaluation.validation_every) * validation.seconds * windows / validation.windows
    items = evaluation.hellaswag_items or catalog.HELLASWAG_ITEMS
    hellaswag = 0.0
    if history.tasks:
        seconds = history.tasks[-1].seconds * items / HELLASWAG_ITEMS
        hellaswag = evaluations(recipe, evaluation.hellaswag_every) * seconds
    return training + validating + hellaswag


def evaluations(recipe: Recipe, every: int) -> int:
    """Return the number of evaluations: one before the first step, then one whenever it is due."""
    return 1 + recipe.times_due(0, every)
