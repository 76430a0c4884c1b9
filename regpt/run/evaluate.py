"""What a model is worth: the validation loss over windows that are always the same."""

from collections.abc import Callable

import numpy as np
import torch

from regpt.base.recipe import Recipe
from regpt.data.shards import TokenWindows
from regpt.model.gpt import GPT
from regpt.run.devices import Device


def validation_windows(recipe: Recipe, windows: TokenWindows) -> int:
    """How many windows a validation reads: the recipe's batches, or all there are."""
    return min(len(windows), recipe.evaluation.validation_batches * recipe.evaluation.validation_batch_size)


def validation_loss(
    model: GPT,
    windows: TokenWindows,
    recipe: Recipe,
    device: Device,
    between: Callable[[int, int], None] = lambda done, of: None,
) -> float:
    """Mean loss over the first windows of the split, nats per token, whatever the micro-batch.

    `between(done, of)` is called between micro-batches; it may raise to stop. No random number is drawn.
    """
    count = validation_windows(recipe, windows)
    total = 0.0
    training = model.training
    model.eval()
    try:
        for first in range(0, count, recipe.data.micro_batch):
            between(first, count)
            tokens = windows.rows(range(first, min(count, first + recipe.data.micro_batch)))
            rows = torch.from_numpy(tokens.astype(np.int64)).to(device.place)
            with device.autocast():
                losses = model.losses(rows[:, :-1], rows[:, 1:])
            total += losses.double().sum().item() if device.place.type != "mps" else losses.sum().item()
    finally:
        model.train(training)
    return total / (count * windows.block_size)
