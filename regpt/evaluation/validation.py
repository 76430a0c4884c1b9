"""Validation loss: the mean loss over a fixed set of windows."""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.data.batches import Windows
from regpt.data.loss_masks import IGNORED, targets_of
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.sharding import (
    ReportProgress,
    gather_pieces,
    ignore_progress,
    shares_of_rank,
)
from regpt.machine.device import Device
from regpt.model.evaluation_mode import evaluation_mode
from regpt.model.gpt import GPT
from regpt.recipe.recipe import Recipe


@dataclass(frozen=True)
class Validation:
    """The loss over fixed windows of the validation split."""

    loss: float  # mean, nats per token
    standard_error: float  # from the spread between windows; too small where windows share a document
    bits_per_byte: float  # per byte of the windows' text, document ends not counted; 0: unknown without the tokenizer
    windows: int
    by_window: NDArray[np.float64]  # (windows), summed loss of each, nats, per token of an average window
    by_token: NDArray[np.float32] | None = None  # (windows, block_size), nats, NaN for tokens that do not count


def validation_windows(recipe: Recipe, windows: Windows) -> int:
    """Return how many windows a validation reads: as the recipe asks, at most all of the split."""
    return min(len(windows), recipe.evaluation.validation_batches * recipe.evaluation.validation_batch_size)


def validation(
    model: GPT,
    windows: Windows,
    recipe: Recipe,
    device: Device,
    progress: ReportProgress = ignore_progress,
    ranks: RankGroup | None = None,
    tokenizer: Tokenizer = GPT2_TOKENIZER,
    keep_tokens: bool = False,
) -> Validation:
    """Compute the loss over the first windows of the split.

    Tokens that do not count in training, as the questions in conversations, do not count here either.

    The losses of all windows are added in one order, so the result is the same for any number of ranks. Every rank
    calls `progress(done, total)` before each of its micro-batches; it may raise to stop. No random number is drawn.
    With `keep_tokens` the result has the loss of each token.
    """
    ranks = ranks or RankGroup()
    count, size = validation_windows(recipe, windows), recipe.data.micro_batch
    micro_batches = -(-count // size)
    shares = shares_of_rank(micro_batches, ranks)
    by_round = np.zeros((len(shares), size, 3))  # of each window: summed loss, bytes of text, targets that count
    tokens_by_round = np.zeros((len(shares), size, windows.block_size if keep_tokens else 0), dtype=np.float32)
    with evaluation_mode(model), device.shared_casts():
        for turn, (piece, is_repeat) in enumerate(shares):
            progress(turn, len(shares))
            first = piece * size
            numbers = range(first, min(count, first + size))
            tokens = windows.rows(numbers)
            targets = targets_of(tokens, windows.counted(numbers))
            inputs = torch.from_numpy(tokens[:, :-1].astype(np.int64)).to(device.torch_device)
            losses = model.losses(inputs, torch.from_numpy(targets).to(device.torch_device))
            if not is_repeat:
                by_round[turn, : len(losses), 0] = losses.cpu().double().sum(dim=1).numpy()
                by_round[turn, : len(losses), 1] = text_bytes(tokens[:, 1:], tokenizer, targets != IGNORED)
                by_round[turn, : len(losses), 2] = np.count_nonzero(targets != IGNORED, axis=1)
                if keep_tokens:
                    kept = losses.float().cpu().numpy()
                    tokens_by_round[turn, : len(losses)] = np.where(targets != IGNORED, kept, np.nan)
    by_window = gather_pieces(by_round, micro_batches, ranks).reshape(-1, 3)[:count]
    found = summarize(by_window[:, 0], float(by_window[:, 1].sum()), by_window[:, 2])
    if not keep_tokens:
        return found
    by_token = gather_pieces(tokens_by_round, micro_batches, ranks).reshape(-1, windows.block_size)[:count]
    return replace(found, by_token=by_token)


def summarize(sums: NDArray[np.float64], text_bytes: float, targets: NDArray[np.float64]) -> Validation:
    """Return the result of a validation from each window's summed loss, nats, and number of targets that count.

    The standard error is that of a ratio of two sums (Cochran 1977, section 6.3), which is that of a mean where the
    numbers are equal.
    """
    count, per_window = len(sums), float(targets.mean())
    by_window = sums / per_window
    loss = float(sums.sum()) / float(targets.sum())
    spread = float((by_window - loss * (targets / per_window - 1.0)).std(ddof=1)) if count > 1 else 0.0
    return Validation(
        loss=loss,
        standard_error=spread / math.sqrt(count),
        bits_per_byte=float(sums.sum()) / math.log(2) / text_bytes if text_bytes else 0.0,
        windows=count,
        by_window=by_window,
    )


def text_bytes(
    tokens: NDArray[Any], tokenizer: Tokenizer = GPT2_TOKENIZER, counted: NDArray[np.bool_] | bool = True
) -> NDArray[Any]:
    """Count the bytes of text in each row's tokens that count; 0 where they are unknown.  (B, T), (B, T) -> (B)"""
    sizes = known_bytes_of_tokens(tokenizer)
    if sizes is None:
        return np.zeros(len(tokens))
    return (sizes[np.minimum(tokens, len(sizes) - 1)] * counted).sum(axis=1)


@cache
def known_bytes_of_tokens(tokenizer: Tokenizer) -> NDArray[np.int64] | None:
    """Return `bytes_of_tokens`; None without the vocabulary, which is looked for once: a download may take minutes."""
    try:
        return tokenizer.bytes_of_tokens()
    except DataError:
        return None
