"""Compute the disk space of a run: its checkpoints, and the tokens while its dataset is prepared."""

from regpt.data.shards import read_manifest
from regpt.data.sizes import train_tokens
from regpt.optimizer.sizes import checkpoint_bytes
from regpt.recipe.recipe import Recipe

TOKEN_BYTES = 2  # in a shard


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


def dataset_bytes(recipe: Recipe) -> int | None:
    """Return the bytes of the dataset's tokens in both splits; None if their number is not known."""
    tokens = train_tokens(recipe)
    if tokens is None:
        return None
    validation = (
        read_manifest(recipe.data.directory).tokens("val") if tokens.prepared else recipe.data.validation_tokens
    )
    return TOKEN_BYTES * (tokens.count + validation)


def dataset_copies(recipe: Recipe) -> int:
    """Return how many times the preparation stores the tokens; 0 where the dataset is prepared.

    Dividing by whole documents keeps the encoded text until both splits are written (`preparation/split.py`).
    """
    tokens = train_tokens(recipe)
    if tokens is not None and tokens.prepared:
        return 0
    return 2 if recipe.data.split_rule == "documents" else 1
