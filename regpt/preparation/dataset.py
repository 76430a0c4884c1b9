"""The dataset of a recipe: prepared from its text, or opened if it exists."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from regpt.base.errors import DataError
from regpt.base.recipe import Recipe
from regpt.corpus.corpora import Corpus, open_corpus
from regpt.corpus.progress import NoPreparationProgress, PreparationProgress
from regpt.data.shards import Manifest, read_manifest
from regpt.data.validation_split import SplitRule
from regpt.filesystem.locks import locked
from regpt.filesystem.operations import check_file_system
from regpt.preparation.hub import PREFIX, open_hub
from regpt.preparation.job import Preparation, staging_folder


def prepare(recipe: Recipe, progress: PreparationProgress | None = None) -> Manifest:
    """Prepare the dataset at `data.path` from `data.source`, or resume its preparation. Return its manifest.

    Raise DataError if the dataset exists, if the text cannot be read, or if it is too short for the recipe. Finished
    work is kept for the next attempt, except where the text is too short.
    """
    progress = progress or NoPreparationProgress()
    refuse_existing(recipe)
    pieces = pieces_folder(recipe)
    if pieces.exists():
        raise DataError(
            f"{pieces}: a cluster has started to prepare data.path = '{recipe.data.path}'",
            "continue with the same --executor, or delete that folder",
        )
    with exclusive(recipe, progress):
        manifest, seconds = Preparation(recipe, progress, partial(open_source, recipe)).run()
    progress.finished(recipe.data.path, manifest, seconds)
    return manifest


def open_or_prepare(recipe: Recipe, progress: PreparationProgress | None = None) -> Manifest:
    """Return the manifest of the dataset at `data.path`; prepare it first if it is missing and its text is local.

    Raise DataError if it is missing and its text is on the hub, or if it was made from another local text or divided
    by another rule than the recipe's.
    """
    path, source = recipe.data.directory, recipe.data.source
    if not path.exists():
        if source.startswith(PREFIX):
            raise DataError(
                f"data.path = '{recipe.data.path}' does not exist",
                f"prepare it from {source}: regpt prepare {recipe.name}; or set data.path to a dataset you have",
            )
        return prepare(recipe, progress)
    manifest = read_manifest(path)
    made_from = manifest.source["asked"]
    if made_from != source and not source.startswith(PREFIX) and not manifest.source.get("imported"):
        raise DataError(
            f"data.path = '{recipe.data.path}' was made from '{made_from}', not from data.source = '{source}'",
            f"set another data.path, or data.source={made_from} to use the dataset as it is",
        )
    rule = manifest.validation.rule
    if recipe.data.validation not in ("auto", rule) and rule is not SplitRule.FILES:
        raise DataError(
            f"data.path = '{recipe.data.path}' was divided by the rule '{rule}', not by data.validation ="
            f" '{recipe.data.validation}'",
            f"set data.validation={rule} to use the dataset as it is, or prepare another: set another data.path",
        )
    return manifest


@contextmanager
def exclusive(recipe: Recipe, progress: PreparationProgress) -> Iterator[None]:
    """Hold the lock of a dataset: one process at a time prepares it, on any machine that shares the disk.

    Raise LockedError if another process holds it, DataError if the dataset exists by now, UserError if the file system
    cannot do what a preparation needs.
    """
    target = recipe.data.directory
    new_folders = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f".{target.name}.lock")
    try:
        with locked(lock, target) as held:
            if held.note:
                progress.note(held.note)
            try:
                refuse_existing(recipe)
                check_file_system(target, "data.path")
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows does not delete an open file
                    lock.unlink()
    finally:
        for folder in new_folders:  # innermost first; folders that are not empty stay
            with contextlib.suppress(OSError):
                folder.rmdir()


def refuse_existing(recipe: Recipe) -> None:
    """Raise DataError if `data.path` exists: a dataset is never overwritten."""
    path = recipe.data.directory
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"data.path = '{recipe.data.path}' is a link to {path.readlink()}, which does not exist",
            f"set data.path={path.readlink()}, or delete the link",
        )
    if os.path.lexists(path):
        is_empty = path.is_dir() and not any(path.iterdir())
        raise DataError(
            f"data.path = '{recipe.data.path}' exists already{' and is empty' if is_empty else ''}",
            "set data.path to a new folder in it, or delete it"
            if is_empty
            else "use it, delete it, or set another data.path",
        )


def pieces_folder(recipe: Recipe) -> Path:
    """Return the folder of the encoded files of a preparation on a cluster."""
    return staging_folder(recipe.data.directory) / "pieces"


def downloads_folder(recipe: Recipe) -> Path:
    """Return the folder of files from the hub: next to the dataset with `data.keep_raw`, else in the staging folder."""
    target = recipe.data.directory
    return target.with_name(f"{target.name}-raw") if recipe.data.keep_raw else staging_folder(target) / "raw"


def open_source(recipe: Recipe) -> Corpus:
    """Open the corpus of a recipe, on this machine or on the hub."""
    data = recipe.data
    if data.source.startswith(PREFIX):
        folder, separator = downloads_folder(recipe), data.document_separator
        return open_hub(data.source, data.revision, data.text_column, folder, data.keep_raw, separator)
    return open_corpus(data.source, data.text_column, data.document_separator)
