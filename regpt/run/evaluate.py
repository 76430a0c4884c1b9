"""What a model is worth: the validation loss over windows that are always the same."""

from collections.abc import Callable

import numpy as np
import torch

from regpt.base.recipe import Recipe
from regpt.data.shards import TokenWindows
from regpt.model.gpt import GPT
from regpt.run.devices import Device
from regpt.run.ranks import Ranks


def validation_windows(recipe: Recipe, windows: TokenWindows) -> int:
    """How many windows a validation reads: the recipe's batches, or all there are."""
    return min(len(windows), recipe.evaluation.validation_batches * recipe.evaluation.validation_batch_size)


def validation_loss(
    model: GPT,
    windows: TokenWindows,
    recipe: Recipe,
    device: Device,
    between: Callable[[int, int], None] = lambda done, of: None,
    ranks: Ranks | None = None,
) -> float:
    """Mean loss over the first windows of the split, nats per token.

    Micro-batches are dealt to the ranks in turn, and all windows' losses are added in one order, so the sum does not
    depend on how many ranks there are. `between(done, of)` is called on every rank before each of its micro-batches; it
    may raise to stop. No random number is drawn.
    """
    ranks = ranks or Ranks()
    count, size = validation_windows(recipe, windows), recipe.data.micro_batch
    micro_batches = -(-count // size)
    rounds = -(-micro_batches // ranks.count)
    sums = np.zeros((rounds, size))
    training = model.training
    model.eval()
    try:
        for turn in range(rounds):
            between(turn, rounds)
            number = turn * ranks.count + ranks.rank
            # where nothing is left, the last one again: a sharded model gathers its weights from everybody
            first = min(number, micro_batches - 1) * size
            tokens = windows.rows(range(first, min(count, first + size)))
            rows = torch.from_numpy(tokens.astype(np.int64)).to(device.place)
            with device.autocast():
                losses = model.losses(rows[:, :-1], rows[:, 1:])
            if number < micro_batches:
                sums[turn, : len(losses)] = losses.cpu().double().sum(dim=1).numpy()
    finally:
        model.train(training)
    by_window = ranks.gathered(sums).swapaxes(0, 1).reshape(-1)[:count]
    return float(by_window.sum()) / (count * windows.block_size)
