"""Compute how many checkpoints a run keeps and how much disk space they take."""

from regpt.base.recipe import Recipe


def checkpoint_bytes(recipe: Recipe) -> int:
    """Return the bytes of one checkpoint: float32 weights and two optimizer moments."""
    return 12 * recipe.model.parameters


def checkpoints_kept(recipe: Recipe) -> int:
    """Return the maximum number of checkpoints that remain when the run finishes."""
    settings, steps = recipe.checkpoint, recipe.run.max_steps
    written = -(-steps // settings.every) if settings.every else 1
    if not settings.keep_last:
        return written
    multiples = steps // settings.keep_every if settings.keep_every else 0
    return min(written, settings.keep_last + multiples + settings.keep_best)


def disk_needed(recipe: Recipe) -> int:
    """Return the bytes of all checkpoints plus the one being written."""
    return (checkpoints_kept(recipe) + 1) * checkpoint_bytes(recipe)
