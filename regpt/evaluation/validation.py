"""What a model is worth: the validation loss over windows that are always the same."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.recipe import Recipe
from regpt.data.shards import TokenWindows
from regpt.data.tokenizer import bytes_of_tokens
from regpt.distributed.device import Device
from regpt.distributed.ranks import RankGroup
from regpt.model.gpt import GPT


@dataclass(frozen=True)
class Validation:
    """The loss over fixed windows of the validation split."""

    loss: float  # mean, nats per token
    standard_error: float  # from the spread of the windows' own losses; windows of one document are alike, so a floor
    bits_per_byte: float  # of the windows' text, ends of documents counted as no bytes; 0: no vocabulary at hand
    windows: int
    by_window: NDArray[np.float64]  # each window's own loss, mean over its tokens


def validation_windows(recipe: Recipe, windows: TokenWindows) -> int:
    """How many windows a validation reads: the recipe's batches, or all there are."""
    return min(len(windows), recipe.evaluation.validation_batches * recipe.evaluation.validation_batch_size)


def validation(
    model: GPT,
    windows: TokenWindows,
    recipe: Recipe,
    device: Device,
    between: Callable[[int, int], None] = lambda done, of: None,
    ranks: RankGroup | None = None,
) -> Validation:
    """The loss over the first windows of the split.

    Micro-batches are dealt to the ranks in turn, and all windows' losses are added in one order, so the sum does not
    depend on how many ranks there are. `between(done, of)` is called on every rank before each of its micro-batches; it
    may raise to stop. No random number is drawn.
    """
    ranks = ranks or RankGroup()
    count, size = validation_windows(recipe, windows), recipe.data.micro_batch
    micro_batches = -(-count // size)
    rounds = -(-micro_batches // ranks.size)
    found = np.zeros((rounds, size, 2))  # of each window: summed loss, and bytes of text
    training = model.training
    model.eval()
    try:
        for turn in range(rounds):
            between(turn, rounds)
            number = turn * ranks.size + ranks.rank
            # where nothing is left, the last one again: a sharded model gathers its weights from everybody
            first = min(number, micro_batches - 1) * size
            tokens = windows.rows(range(first, min(count, first + size)))
            rows = torch.from_numpy(tokens.astype(np.int64)).to(device.torch_device)
            with device.autocast():
                losses = model.losses(rows[:, :-1], rows[:, 1:])
            if number < micro_batches:
                found[turn, : len(losses), 0] = losses.cpu().double().sum(dim=1).numpy()
                found[turn, : len(losses), 1] = text_bytes(tokens[:, 1:])
    finally:
        model.train(training)
    by_window = ranks.all_gather(found).swapaxes(0, 1).reshape(-1, 2)[:count]
    sums, size_of_text = by_window[:, 0], float(by_window[:, 1].sum())
    own = sums / windows.block_size  # each window's
    spread = float(own.std(ddof=1)) if count > 1 else 0.0
    return Validation(
        loss=float(sums.sum()) / (count * windows.block_size),
        standard_error=spread / math.sqrt(count),
        bits_per_byte=float(sums.sum()) / math.log(2) / size_of_text if size_of_text else 0.0,
        windows=count,
        by_window=own,
    )


def text_bytes(tokens: NDArray[Any]) -> NDArray[Any]:
    """Bytes of text in each row of tokens; 0 where there is no vocabulary to tell.  (B, T) -> (B)"""
    try:
        return bytes_of_tokens()[np.minimum(tokens, len(bytes_of_tokens()) - 1)].sum(axis=1)
    except DataError:
        return np.zeros(len(tokens))
