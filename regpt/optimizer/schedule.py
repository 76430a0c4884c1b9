"""The learning rate of each step."""

import math
from collections.abc import Callable
from enum import StrEnum

from regpt.recipe.recipe import Recipe


class GroupKind(StrEnum):
    """The kinds of parameter groups that may cool down over different numbers of steps."""

    MATRICES = "matrices"  # all parameters, unless Adam has groups of its own
    ADAM = "adam"  # embedding, head, vectors and scalars, where another optimizer updates the matrices


# The share of (max_lr - min_lr) that is left, by the progress of the decay from 0 to 1.
DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "1-sqrt": lambda progress: 1.0 - math.sqrt(progress),
}


def learning_rate(step: int, recipe: Recipe, group: GroupKind = GroupKind.MATRICES) -> float:
    """Return the learning rate of `step`, from 0: linear warm-up to max_lr, then a decay to min_lr at max_steps.

    The trapezoid holds max_lr before its decay (Hägele et al. 2024, arXiv 2405.18392).
    """
    settings = recipe.optimizer
    if step < settings.warmup_steps:
        return settings.max_lr * (step + 1) / settings.warmup_steps
    shape, start = "cosine", settings.warmup_steps
    if settings.schedule == "trapezoid":
        shape, start = settings.cooldown_shape, cooldown_start(recipe, group)
        if step <= start:
            return settings.max_lr
    progress = (step - start) / max(1, recipe.run.max_steps - start)
    return settings.min_lr + DECAYS[shape](min(1.0, progress)) * (settings.max_lr - settings.min_lr)


def multiplier(step: int, recipe: Recipe, group: GroupKind) -> float:
    """Return the learning rate of a group at `step` as a share of its peak, from 0 to 1."""
    return learning_rate(step, recipe, group) / recipe.optimizer.max_lr


def cooldown_start(recipe: Recipe, group: GroupKind = GroupKind.MATRICES) -> int:
    """Return the completed steps of a trapezoid after which a group cools down; max_steps if it never does."""
    settings = recipe.optimizer
    steps = settings.cooldown_steps
    if group is GroupKind.ADAM:
        steps = settings.adam_cooldown_steps or steps
    return max(settings.warmup_steps, recipe.run.max_steps - steps)


def are_same_rates(steps: int, one: Recipe, other: Recipe) -> bool:
    """Return whether two recipes have the same learning rates in all groups at the first `steps` steps."""
    return all(
        learning_rate(step, one, group) == learning_rate(step, other, group)
        for step in range(steps)
        for group in GroupKind
    )


def cooldown_text(recipe: Recipe) -> str:
    """Describe the cooldown of a trapezoid in one line."""
    settings = recipe.optimizer
    if not (settings.cooldown_steps or settings.adam_cooldown_steps):
        return "none: the rate stays at max_lr; `regpt cooldown` branches a run that cools down"
    of_adam = f"; Adam {settings.adam_cooldown_steps:,}" if settings.adam_cooldown_steps else ""
    return f"{settings.cooldown_shape}, last {settings.cooldown_steps:,} steps{of_adam}"
