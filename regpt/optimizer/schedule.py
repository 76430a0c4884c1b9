"""The learning rate of each step."""

import math

from regpt.recipe.recipe import Recipe


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate of `step`, from 0: linear warm-up to max_lr, then cosine to min_lr at max_steps."""
    settings = recipe.optimizer
    if step < settings.warmup_steps:
        return settings.max_lr * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, recipe.run.max_steps - settings.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return settings.min_lr + cosine * (settings.max_lr - settings.min_lr)
