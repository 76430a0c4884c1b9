"""Checks of what a run needs: a machine, data, memory, disk, and time."""

import contextlib
import shutil
import statistics
import time
from datetime import timedelta

import torch

from regpt.base.progress import NoProgress
from regpt.base.recipe import Recipe
from regpt.data.import_shards import verify
from regpt.data.shards import TokenWindows, check_fits
from regpt.distributed.device import free_memory
from regpt.doctor.findings import CheckFailed
from regpt.doctor.rehearsal import ITEMS, Rehearsal
from regpt.plan.memory import USABLE_SHARE, ParallelLayout, estimate_memory
from regpt.plan.sizes import checkpoint_bytes, checkpoints_kept, disk_needed
from regpt.prepare.dataset import open_or_prepare
from regpt.tracking.events import OutOfMemory
from regpt.tracking.journal import read_history

VERIFYING_SECONDS = 40.0  # of a large data set as much is read as this allows
LONGEST_DAYS = 60.0
HELLASWAG_ITEMS = 10_042


def check_machine(of: Rehearsal) -> str:
    device = of.device
    if problems := list(of.recipe.batch_problems(of.ranks)):
        raise CheckFailed(
            "; ".join(problem.text for problem in problems), "change the recipe, or override it as section.key=value"
        )
    return (
        f"{device.name}, {device.precision_name}{', compiled' if device.compiled else ''};"
        f" {device.peak_flops / 1e12:.3g} TFLOP/s ({device.peak_source})"
    )


class TimeLimit(NoProgress):
    """Stops a piece of work after some seconds with TimeoutError; `share` of it was done."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.share = 0.0

    def update(self, done: int, total: int) -> None:
        self.share = done / total

    def raise_if_stopped(self) -> None:
        if time.monotonic() > self.until:
            raise TimeoutError


def check_data(of: Rehearsal) -> str:
    manifest = open_or_prepare(of.recipe)
    reading = TimeLimit(VERIFYING_SECONDS)
    problems: list[str] = []
    with contextlib.suppress(TimeoutError):
        problems.extend(verify(of.recipe.data.directory, reading))
    if problems:
        raise CheckFailed("; ".join(problems[:3]), "get or make these shards again; `regpt data verify` reads all")
    tokens = {"train": manifest.tokens("train"), "val": manifest.tokens("val")}
    directory, block = of.recipe.data.directory, of.recipe.model.block_size
    windows = {
        "train": len(TokenWindows(directory, manifest, "train", block)),
        "val": len(TokenWindows(directory, manifest, "val", block)),
    }
    check_fits(tokens, windows, of.recipe.batch_windows, block)
    of_it = "all" if reading.share >= 1.0 else f"{reading.share:.0%} of the bytes (the rest: regpt data verify)"
    return f"{of_it} as sealed; {tokens['train']:,} training and {tokens['val']:,} validation tokens"


def check_memory(of: Rehearsal) -> str:
    device, recipe = of.device, of.recipe
    on_cpu = device.torch_device.type == "cpu"
    placing = ParallelLayout(
        of.ranks,
        recipe.data.micro_batch,
        recipe.accumulation_steps(of.ranks),
        recipe.run.parallel == "fsdp" and of.ranks > 1,
        device.precision == torch.bfloat16,
        on_cpu,
    )
    needed = estimate_memory(recipe, placing).total
    room = free_memory(device.torch_device) * (1.0 if on_cpu else USABLE_SHARE)
    said = f"about {needed / 1e9:.2f} GB, by part in `regpt plan`; {room / 1e9:.1f} GB are free"
    if needed > room:
        raise CheckFailed(said, "a smaller data.micro_batch, run.activation_checkpointing=true, or a smaller model")
    if halved := read_history(of.run).details(OutOfMemory):
        raise CheckFailed(
            f"out of memory with data.micro_batch = {halved[0].micro_batch_before}",
            f"set data.micro_batch={halved[-1].micro_batch_after}",
        )
    return said


def check_disk(of: Rehearsal) -> str:
    free, needed = shutil.disk_usage(of.folder).free, disk_needed(of.recipe)
    kept = f"{checkpoints_kept(of.recipe):,} checkpoints of {checkpoint_bytes(of.recipe) / 1e9:.2f} GB"
    said = f"{kept}, and one in the making: {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free"
    if needed > free:
        raise CheckFailed(said, "set checkpoint.keep_last, or name another disk with --runs")
    return said


def check_time(of: Rehearsal) -> str:
    seconds = expected_seconds(of)
    said = f"about {spoken(seconds)} for {of.recipe.run.max_steps:,} steps on {of.ranks} rank{'s' * (of.ranks > 1)}"
    if not seconds < 86_400 * LONGEST_DAYS:
        raise CheckFailed(said, "another machine: regpt plan RECIPE --gpu all; or a smaller model, fewer steps")
    limit = of.recipe.run.time_limit_seconds
    return said + (f"; run.time_limit stops it every {spoken(limit)}" if seconds > limit else "")


def expected_seconds(of: Rehearsal) -> float:
    """Of the real run: steps by tokens, looks by what they read, on as many ranks. Saving goes on beside the steps."""
    recipe, small = of.recipe, of.small
    history = read_history(of.on_ranks if of.ranks > 1 else of.run)
    a_token = statistics.median(record.seconds for record in history.steps[1:]) / small.data.total_batch_tokens
    training = a_token * of.tokens_take() * recipe.total_tokens
    validation, asked = history.validations[-1], recipe.evaluation
    windows = asked.validation_batches * asked.validation_batch_size
    validating = times(recipe, asked.validation_every) * validation.seconds * windows / validation.windows
    items = asked.hellaswag_items or HELLASWAG_ITEMS
    examining = sum(times(recipe, asked.hellaswag_every) * task.seconds * items / ITEMS for task in history.tasks[-1:])
    return training + validating + examining


def times(recipe: Recipe, every: int) -> int:
    """How often the run looks: before the first step, and then where it is due."""
    return 1 + recipe.times_due(0, every)


def spoken(seconds: float) -> str:
    if seconds < 3600:
        return str(timedelta(seconds=round(seconds)))
    return f"{seconds / 3600:,.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:,.1f} days"
