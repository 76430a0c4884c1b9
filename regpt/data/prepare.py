"""The data set that a recipe names: made from its text, or opened where it is there already."""

import hashlib
import tempfile
from functools import partial
from pathlib import Path

from regpt.base.errors import DataError
from regpt.base.files import locked
from regpt.base.recipe import Recipe
from regpt.data.corpora import Corpus, open_corpus
from regpt.data.hub import PREFIX, open_hub
from regpt.data.preparation import NoProgress, Preparation, Progress, folder_in_the_making
from regpt.data.shards import Manifest, read_manifest


def prepare(recipe: Recipe, progress: Progress | None = None) -> Manifest:
    """Make the data set at `data.path` from `data.source`, or go on making it.

    Raises DataError where it exists already, where the corpus cannot be read, or where it is too small for the recipe.
    What was done until then is kept, unless it was nothing or cannot be used.
    """
    progress = progress or NoProgress()
    refuse_existing(recipe)
    with locked(lock_of(recipe.data.directory)):
        manifest, seconds = Preparation(recipe, progress, partial(open_source, recipe)).carry_out()
    progress.prepared(recipe.data.path, manifest, seconds)
    return manifest


def refuse_existing(recipe: Recipe) -> None:
    """A data set is never written over."""
    if recipe.data.directory.exists():
        raise DataError(
            f"data.path = '{recipe.data.path}' exists already", "use it as it is, delete it, or name another data.path"
        )


def lock_of(target: Path) -> Path:
    """Where the lock of a data set in the making lies: not beside it, so that a failure leaves nothing there."""
    name = hashlib.sha256(str(target.resolve()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "regpt-preparing" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "lock"


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


def open_or_prepare(recipe: Recipe, progress: Progress | None = None) -> Manifest:
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
