"""What follows from a recipe in tokens and bytes: the data it reads, and the checkpoints that will lie on the disk."""

from regpt.base.errors import UserError
from regpt.base.recipe import Recipe
from regpt.data.shards import read_manifest
from regpt.results.references import KNOWN_TRAIN_TOKENS


def train_tokens(recipe: Recipe) -> tuple[int, str]:
    """(training tokens of the data set, where that is known from); 0 where it is not."""
    try:
        return read_manifest(recipe.data.directory).tokens("train"), f"in {recipe.data.path}"
    except UserError:
        return KNOWN_TRAIN_TOKENS.get(recipe.data.source, 0), "by the public preparation, rounded"


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


def digits(value: float) -> str:
    """With three of them: 113,000 or 0.72."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"
