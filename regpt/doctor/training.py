"""Checks of training itself: that the model learns, that the same run is the same run, and that it can be stopped."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import load_file

from regpt.base.recipe import Recipe
from regpt.checkpoint import store
from regpt.data.order import windows_of_step
from regpt.data.shards import TokenWindows, read_manifest
from regpt.doctor.findings import CheckFailed, CheckSkipped
from regpt.doctor.rehearsal import KILLED_AT, SAVED_AT, STEPS, Rehearsal
from regpt.model.gpt import GPT
from regpt.model.optimizer import make_optimizer
from regpt.tracking.journal import StepRecord, read_history
from regpt.tracking.layout import RunPaths

FIRST_LOSS_APART = 0.7  # nats from ln(vocabulary): a tied head guesses repeats, and logits have some spread
OVERFITTING_SECONDS, OVERFITTING_STEPS, OVERFITTED_TOKENS = 30.0, 200, 256
FALLEN = 1.0  # nats; what has fallen so far when the time is over is learning, if not yet by heart
NEARLY = 1e-3  # of the loss, where a device adds up in another order each time


def check_steps(of: Rehearsal) -> str:
    steps, small = read_history(of.run).steps, of.small
    if [record.step for record in steps] != list(range(1, STEPS + 1)):
        skipped = [f"step {record.step}: {record.reason}" for record in read_history(of.run).skipped]
        raise CheckFailed(
            "; ".join(skipped) or "steps are missing", "`regpt replay` and the evidence folder show such steps"
        )
    seconds = statistics.median(record.seconds for record in steps[1:])
    return (
        f"{STEPS} steps of {small.accumulation_steps()} x {small.data.micro_batch} x {small.model.block_size:,} tokens,"
        f" {small.data.total_batch_tokens / seconds:,.0f} tokens/s, loss {steps[0].loss:.2f} to {steps[-1].loss:.2f}"
    )


def check_first_loss(of: Rehearsal) -> str:
    first, guess = read_history(of.run).validations[0].loss, math.log(of.recipe.model.vocab_size)
    said = f"{first:.4f}; a guess among {of.recipe.model.vocab_size:,} tokens costs {guess:.4f}"
    if not abs(first - guess) < FIRST_LOSS_APART:
        raise CheckFailed(
            said,
            "far above: model.init_std is too large; far below: targets are seen, or weights are not new",
        )
    return said


def check_overfitting(of: Rehearsal) -> str:
    """The beginning of one sequence, again and again, until it is known better than by how often its tokens occur."""
    recipe, device = of.small, of.device
    manifest = read_manifest(recipe.data.directory)
    windows = TokenWindows(recipe.data.directory, manifest, "train", recipe.model.block_size)
    row = torch.from_numpy(windows.rows(first_windows(recipe, windows)[:1]).astype(np.int64)).to(device.torch_device)
    row = row[:, : OVERFITTED_TOKENS + 1]
    model = GPT(replace(recipe.model, dropout=0.0)).to(device.torch_device)
    model.initialize(recipe.run.seed)
    optimizer = make_optimizer(model, recipe)
    goal = entropy_of(row[0, 1:])
    losses: list[float] = []
    began_at = time.monotonic()
    while len(losses) < OVERFITTING_STEPS and time.monotonic() - began_at < OVERFITTING_SECONDS:
        with device.autocast():
            loss = model(row[:, :-1], row[:, 1:])
        loss.backward()
        losses.append(loss.item())
        if losses[-1] < goal:
            break
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    said = (
        f"{row.shape[1] - 1} tokens: {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses) - 1} steps at max_lr;"
        f" token frequencies alone give {goal:.2f}"
    )
    if len(losses) < OVERFITTING_STEPS and losses[-1] >= goal and losses[0] - losses[-1] > FALLEN:
        raise CheckSkipped(f"too slow here to tell in {OVERFITTING_SECONDS:.0f} s, but it learns; {said}")
    if not losses[-1] < goal:
        raise CheckFailed(
            said, "the model does not learn: look at optimizer.max_lr and at what was changed in the model"
        )
    return said


def first_windows(recipe: Recipe, windows: TokenWindows) -> list[int]:
    shuffled = recipe.data.order == "shuffled"
    return windows_of_step(0, recipe.batch_windows, len(windows), recipe.run.seed, shuffled).tolist()


def entropy_of(tokens: torch.Tensor) -> float:
    """Nats per token that the tokens' own frequencies leave."""
    shares = tokens.unique(return_counts=True)[1].double() / len(tokens)
    return float(-(shares * shares.log()).sum())


def check_starts(of: Rehearsal) -> str:
    return compared(of, read_history(of.run).steps[:KILLED_AT], read_history(of.killed).steps[:KILLED_AT], "two starts")


def check_saved(of: Rehearsal) -> str:
    found = store.list_checkpoints(of.run)
    faults = [f"step {step}: {fault}" for step, path in found for fault in store.find_faults(path)]
    steps = [step for step, _ in found]
    expected = list(range(SAVED_AT, STEPS + 1, SAVED_AT))
    if faults or steps != expected:
        problem = "; ".join(faults) or f"checkpoints of steps {steps} are there, {expected} should be"
        raise CheckFailed(problem, "the disk loses or changes what is written; try another with --runs")
    size = sum(file.stat().st_size for file in found[-1][1].iterdir())
    return f"{len(found)} checkpoints of {size / 1e6:,.0f} MB, each held against its hashes"


def check_resume(of: Rehearsal) -> str:
    straight, resumed = of.run, of.resumed  # in this order: what fails in the first would fail in the second
    said = compared(of, read_history(straight).steps, read_history(resumed).steps, "straight and resumed")
    one, other = (load_file(RunPaths(run).checkpoint(STEPS) / "model.safetensors") for run in (straight, resumed))
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    if is_exact(of) and apart:
        raise CheckFailed(
            f"losses are equal, weights differ by up to {apart:.2g}", "the optimizer's state is not restored"
        )
    return f"killed by SIGKILL after step {KILLED_AT}, resumed from step {SAVED_AT}: {said}"


def is_exact(of: Rehearsal) -> bool:
    """Whether the device adds up in one order."""
    return of.device.torch_device.type == "cpu" or of.recipe.run.deterministic


def compared(of: Rehearsal, one: Sequence[StepRecord], other: Sequence[StepRecord], what: str) -> str:
    if [record.step for record in one] != [record.step for record in other]:
        raise CheckFailed(
            f"{what}: steps {[r.step for r in one]} and {[r.step for r in other]}", "look into both journals"
        )
    for record, its in zip(one, other, strict=True):
        if record.batch != its.batch:
            raise CheckFailed(
                f"{what}: step {record.step} saw other data", "`regpt data verify`; has the data set changed?"
            )
    apart = max(abs(record.loss - its.loss) / abs(record.loss) for record, its in zip(one, other, strict=True))
    if apart == 0.0:
        return f"the same batches and losses, to the bit, in {len(one)} steps"
    said = f"{what}: the same batches, losses differ by up to {apart:.1e} of themselves"
    if is_exact(of) or apart > NEARLY:
        raise CheckFailed(
            said, "run.deterministic=true; if that does not help, what the steps compute depends on chance"
        )
    return f"{said}; run.deterministic=true makes them the same bits"


def check_ranks(of: Rehearsal) -> str:
    if of.ranks == 1:
        raise CheckSkipped("one rank; --ranks N tries several")
    alone, together = read_history(of.run).steps, read_history(of.on_ranks).steps
    if [record.batch for record in alone] != [record.batch for record in together]:
        raise CheckFailed(f"{of.ranks} ranks saw other batches than one", "all must see the same data.path")
    apart = max(abs(a.loss - b.loss) / abs(a.loss) for a, b in zip(alone, together, strict=True))
    allowed = 1e-5 if of.device.precision == torch.float32 else 5e-3
    losses = "the same losses, to the bit" if apart == 0.0 else f"losses within {apart:.1e} of themselves"
    said = f"{of.ranks} ranks and one: the same batches, {losses}"
    if not apart <= allowed:
        raise CheckFailed(said, "run.strict_sum=true tells rounding from a fault; try NCCL_DEBUG=INFO")
    return said
