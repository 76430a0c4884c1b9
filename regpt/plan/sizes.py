"""What follows from a recipe in tokens and bytes: the data it reads, and the checkpoints that will lie on the disk."""

from regpt.base.recipe import Recipe


def checkpoint_bytes(recipe: Recipe) -> int:
    """Weights and two moments, float32."""
    return 12 * recipe.model.parameters


def checkpoints_kept(recipe: Recipe) -> int:
    """At the end of the run, at the most."""
    asked, steps = recipe.checkpoint, recipe.run.max_steps
    written = -(-steps // asked.every) if asked.every else 1
    if not asked.keep_last:
        return written
    multiples = steps // asked.keep_every if asked.keep_every else 0
    return min(written, asked.keep_last + multiples + asked.keep_best)


def disk_needed(recipe: Recipe) -> int:
    """Bytes of all checkpoints; one more lies there while it is written."""
    return (checkpoints_kept(recipe) + 1) * checkpoint_bytes(recipe)
