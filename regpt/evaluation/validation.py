"""Validation loss: the mean loss over a fixed set of windows."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.data.batches import Windows
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.sharding import (
    ReportProgress,
    evaluation_mode,
    gather_pieces,
    ignore_progress,
    shares_of_rank,
)
from regpt.machine.device import Device
from regpt.model.gpt import GPT
from regpt.recipe.recipe import Recipe


@dataclass(frozen=True)
class Validation:
    """The loss over fixed windows of the validation split."""

    loss: float  # mean, nats per token
    standard_error: float  # from the spread between windows; too small where windows share a document
    bits_per_byte: float  # per byte of the windows' text, document ends not counted; 0: unknown without the tokenizer
    windows: int
    by_window: NDArray[np.float64]  # (windows), mean loss of each, nats per token


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
) -> Validation:
    """Compute the loss over the first windows of the split.

    The losses of all windows are added in one order, so the result is the same for any number of ranks. Every rank
    calls `progress(done, total)` before each of its micro-batches; it may raise to stop. No random number is drawn.
    """
    ranks = ranks or RankGroup()
    count, size = validation_windows(recipe, windows), recipe.data.micro_batch
    micro_batches = -(-count // size)
    shares = shares_of_rank(micro_batches, ranks)
    by_round = np.zeros((len(shares), size, 2))  # of each window: summed loss, and bytes of text
    with evaluation_mode(model):
        for turn, (piece, is_repeat) in enumerate(shares):
            progress(turn, len(shares))
            first = piece * size
            tokens = windows.rows(range(first, min(count, first + size)))
            rows = torch.from_numpy(tokens.astype(np.int64)).to(device.torch_device)
            with device.autocast():
                losses = model.losses(rows[:, :-1], rows[:, 1:])
            if not is_repeat:
                by_round[turn, : len(losses), 0] = losses.cpu().double().sum(dim=1).numpy()
                by_round[turn, : len(losses), 1] = text_bytes(tokens[:, 1:], tokenizer)
    by_window = gather_pieces(by_round, micro_batches, ranks).reshape(-1, 2)[:count]
    return summarize(by_window[:, 0], float(by_window[:, 1].sum()), windows.block_size)


def summarize(sums: NDArray[np.float64], text_bytes: float, block_size: int) -> Validation:
    """Return the result of a validation from each window's summed loss, nats."""
    count = len(sums)
    by_window = sums / block_size
    spread = float(by_window.std(ddof=1)) if count > 1 else 0.0
    return Validation(
        loss=float(sums.sum()) / (count * block_size),
        standard_error=spread / math.sqrt(count),
        bits_per_byte=float(sums.sum()) / math.log(2) / text_bytes if text_bytes else 0.0,
        windows=count,
        by_window=by_window,
    )


def text_bytes(tokens: NDArray[Any], tokenizer: Tokenizer = GPT2_TOKENIZER) -> NDArray[Any]:
    """Count the bytes of text in each row of tokens; 0 where they are unknown.  (B, T) -> (B)"""
    sizes = known_bytes_of_tokens(tokenizer)
    return np.zeros(len(tokens)) if sizes is None else sizes[np.minimum(tokens, len(sizes) - 1)].sum(axis=1)


@cache
def known_bytes_of_tokens(tokenizer: Tokenizer) -> NDArray[np.int64] | None:
    """Return `bytes_of_tokens`; None without the vocabulary, which is looked for once: a download may take minutes."""
    try:
        return tokenizer.bytes_of_tokens()
    except DataError:
        return None
