"""The data set that a recipe names: made from its text, or opened where it is there already."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from regpt.base.errors import DataError
from regpt.base.files import locked
from regpt.base.recipe import Recipe
from regpt.data.shards import Manifest, read_manifest
from regpt.prepare.corpora import Corpus, open_corpus
from regpt.prepare.hub import PREFIX, open_hub
from regpt.prepare.job import Preparation, folder_in_the_making
from regpt.prepare.progress import NoPreparationProgress, PreparationProgress


def prepare(recipe: Recipe, progress: PreparationProgress | None = None) -> Manifest:
    """Make the data set at `data.path` from `data.source`, or go on making it.

    Raises DataError where it exists already, where the corpus cannot be read, or where it is too small for the recipe.
    What was done until then is kept, unless it was nothing or cannot be used.
    """
    progress = progress or NoPreparationProgress()
    refuse_existing(recipe)
    pieces = folder_in_the_making(recipe.data.directory) / "pieces"
    if pieces.exists():
        raise DataError(
            f"{pieces}: a cluster prepares data.path = '{recipe.data.path}', or has begun to",
            "go on with the same --executor; or delete that folder",
        )
    with being_made(recipe):
        manifest, seconds = Preparation(recipe, progress, partial(open_source, recipe)).run()
    progress.finished(recipe.data.path, manifest, seconds)
    return manifest


@contextmanager
def being_made(recipe: Recipe) -> Iterator[None]:
    """One process at a time makes a data set. The lock lies beside it, so that all machines see it, and goes after.

    Raises LockedError where another has it, DataError where the data set is there by now.
    """
    target = recipe.data.directory
    made = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f".{target.name}.lock")
    try:
        with locked(lock, target):
            try:
                refuse_existing(recipe)
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows does not let go of an open file
                    lock.unlink()
    finally:
        for parent in made:  # innermost first; those that hold something stay
            with contextlib.suppress(OSError):
                parent.rmdir()


def refuse_existing(recipe: Recipe) -> None:
    """A data set is never written over."""
    if os.path.lexists(recipe.data.directory):
        raise DataError(
            f"data.path = '{recipe.data.path}' exists already", "use it as it is, delete it, or name another data.path"
        )


def folder_of_raw_files(recipe: Recipe) -> Path:
    """Where files of the hub are put: beside the data set to stay, or inside what is in the making."""
    target = recipe.data.directory
    return target.with_name(f"{target.name}-raw") if recipe.data.keep_raw else folder_in_the_making(target) / "raw"


def open_source(recipe: Recipe) -> Corpus:
    """The corpus that the recipe names, on this machine or on the hub."""
    data = recipe.data
    if data.source.startswith(PREFIX):
        return open_hub(data.source, data.revision, data.text_column, folder_of_raw_files(recipe), data.keep_raw)
    return open_corpus(data.source, data.text_column)


def open_or_prepare(recipe: Recipe, progress: PreparationProgress | None = None) -> Manifest:
    """The data set at `data.path`; made first where it is missing and `data.source` is at hand.

    Raises DataError where it was made from other text than a source that is at hand.
    """
    path, source = recipe.data.directory, recipe.data.source
    if not path.exists():
        if source.startswith(PREFIX):
            raise DataError(
                f"data.path = '{recipe.data.path}' is not there yet",
                f"regpt prepare {recipe.name} makes it of {source}; or name one that you have: data.path=…",
            )
        return prepare(recipe, progress)
    manifest = read_manifest(path)
    made_from = manifest.source["asked"]
    if made_from != source and not source.startswith(PREFIX) and not manifest.source.get("imported"):
        raise DataError(
            f"data.path = '{recipe.data.path}' was made from '{made_from}', not from data.source = '{source}'",
            f"name another data.path, or write data.source={made_from} to use it as it is",
        )
    return manifest
