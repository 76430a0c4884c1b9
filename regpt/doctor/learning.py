"""Check that the model learns: steps without errors, a plausible first loss, and one batch that is overfitted."""

import math
import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from regpt.base.format import duration
from regpt.data.order import windows_of_step
from regpt.data.shards import TokenWindows, read_manifest
from regpt.doctor.checks import CheckFailed, CheckSkipped
from regpt.doctor.rehearsal import STEPS, Rehearsal
from regpt.model.gpt import GPT
from regpt.optimizer.making import make_optimizer
from regpt.recipe.recipe import Recipe
from regpt.tracking.journal import read_history

FIRST_LOSS_TOLERANCE = 0.7  # nats from ln(vocabulary): a tied head favors repeats, and logits have some spread
OVERFIT_SECONDS, OVERFIT_STEPS, OVERFIT_TOKENS = 30.0, 200, 256
LEARNING_NATS = 1.0  # a model whose loss fell this far within the time limit is learning, only slowly


def check_steps(rehearsal: Rehearsal) -> str:
    """Train a few steps; none may be skipped."""
    steps, small = read_history(rehearsal.run).steps, rehearsal.small
    if [record.step for record in steps] != list(range(1, STEPS + 1)):
        skipped = [f"step {record.step}: {record.reason}" for record in read_history(rehearsal.run).skipped]
        raise CheckFailed("; ".join(skipped) or "steps are missing", "see the evidence folder and `regpt replay`")
    seconds = statistics.median(record.seconds for record in steps[1:])
    return (
        f"{STEPS} steps of {small.accumulation_steps()} x {small.data.micro_batch} x {small.model.block_size:,} tokens,"
        f" {small.data.total_batch_tokens / seconds:,.0f} tokens/s, loss {steps[0].loss:.2f} to {steps[-1].loss:.2f}"
    )


def check_first_loss(rehearsal: Rehearsal) -> str:
    """Compare the loss of the untrained model with a uniform guess."""
    first, guess = read_history(rehearsal.run).validations[0].loss, math.log(rehearsal.recipe.model.vocab_size)
    message = f"{first:.4f}; a uniform guess among {rehearsal.recipe.model.vocab_size:,} tokens is {guess:.4f}"
    if not abs(first - guess) < FIRST_LOSS_TOLERANCE:
        raise CheckFailed(
            message,
            "if far above: reduce model.init_std; if far below: the model sees its targets, or the weights are not new",
        )
    return message


def check_overfitting(rehearsal: Rehearsal) -> str:
    """Train on the start of one sequence until its loss is below the entropy of its token frequencies."""
    recipe, device = rehearsal.small, rehearsal.device
    manifest = read_manifest(recipe.data.directory)
    windows = TokenWindows(recipe.data.directory, manifest, "train", recipe.model.block_size)
    row = torch.from_numpy(windows.rows(first_windows(recipe, windows)[:1]).astype(np.int64)).to(device.torch_device)
    row = row[:, : OVERFIT_TOKENS + 1]
    model = GPT(replace(recipe.model, dropout=0.0)).to(device.torch_device)
    model.initialize(recipe.run.seed)
    optimizer = make_optimizer(model, recipe)
    goal = frequency_entropy(row[0, 1:])
    losses: list[float] = []
    began_at = time.monotonic()
    while len(losses) < OVERFIT_STEPS and time.monotonic() - began_at < OVERFIT_SECONDS:
        with device.autocast():
            loss = model(row[:, :-1], row[:, 1:])
        loss.backward()
        losses.append(loss.item())
        if losses[-1] < goal:
            break
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    message = (
        f"{row.shape[1] - 1} tokens: {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses) - 1} steps at max_lr;"
        f" their frequencies alone give {goal:.2f}"
    )
    if len(losses) < OVERFIT_STEPS and losses[-1] >= goal and losses[0] - losses[-1] > LEARNING_NATS:
        raise CheckSkipped(
            f"inconclusive after {duration(OVERFIT_SECONDS)} on this machine, but the loss falls; {message}"
        )
    if not losses[-1] < goal:
        raise CheckFailed(message, "the model does not learn: check optimizer.max_lr and your changes to the model")
    return message


def first_windows(recipe: Recipe, windows: TokenWindows) -> list[int]:
    """Return the windows of the first step."""
    shuffled = recipe.data.order == "shuffled"
    return windows_of_step(0, recipe.batch_windows, len(windows), recipe.run.seed, shuffled).tolist()


def frequency_entropy(tokens: torch.Tensor) -> float:
    """Return the entropy of the token frequencies, in nats per token."""
    shares = tokens.unique(return_counts=True)[1].double() / len(tokens)
    return float(-(shares * shares.log()).sum())
