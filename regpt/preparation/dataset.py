"""The dataset of a recipe: prepared from its text, or opened if it exists."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from regpt.base.errors import DataError, UserError
from regpt.base.files import flush_directory, write_json
from regpt.conversations.dataset import prepare_conversations
from regpt.corpus.corpora import Corpus, open_corpus
from regpt.corpus.progress import NoPreparationProgress, PreparationProgress
from regpt.corpus.text_files import FilePart
from regpt.data.loss_masks import refuse_other_rows
from regpt.data.shard_writer import FOLDER
from regpt.data.shards import MANIFEST_FILE, PREPARATION_FILE, Manifest, read_manifest
from regpt.data.sizes import check_manifest_fits, check_rows
from regpt.data.tokenizer import NAME
from regpt.filesystem.locks import locked
from regpt.filesystem.operations import check_file_system
from regpt.preparation.changed_files import record_of_files
from regpt.preparation.existing import (
    RECORDED,
    SOURCE,
    find_differences,
    is_imported,
    note_changes,
    refuse,
    refuse_other_settings,
    setting_word,
)
from regpt.preparation.hub import PREFIX, HubPart, open_hub
from regpt.preparation.job import Preparation, staging_folder
from regpt.recipe.recipe import Recipe
from regpt.tokenization.chat_tokens import with_chat_tokens
from regpt.tokenization.opening import open_tokenizer


def prepare(recipe: Recipe, progress: PreparationProgress | None = None) -> Manifest:
    """Prepare the dataset at `data.path` from `data.source`, or resume its preparation. Return its manifest.

    A dataset that exists with the same settings is left as it is. Raise UserError if it has other settings, DataError
    if the text cannot be read or is too short for the recipe. Finished work is kept for the next attempt, except where
    the text is too short.
    """
    progress = progress or NoPreparationProgress()
    if (existing := finished_dataset(recipe, progress)) is not None:
        return existing
    pieces = pieces_folder(recipe)
    if pieces.exists():
        raise DataError(
            f"{pieces}: a cluster has started to prepare data.path = '{recipe.data.path}'",
            "continue with the same --executor, or delete that folder",
        )
    prepare_format = prepare_text if recipe.data.format == "text" else prepare_packed
    with exclusive(recipe, progress):
        manifest, seconds = prepare_format(recipe, progress)
    progress.finished(recipe.data.path, manifest, seconds)
    return manifest


def prepare_text(recipe: Recipe, progress: PreparationProgress) -> tuple[Manifest, float]:
    """Prepare text, or resume its preparation. Return the manifest and the seconds of all attempts together."""
    return Preparation(recipe, progress, partial(open_source, recipe)).run()


def prepare_packed(recipe: Recipe, progress: PreparationProgress) -> tuple[Manifest, float]:
    """Prepare conversations, from their first row on. Return the manifest and the seconds."""
    started_at = time.monotonic()
    tokenizer = with_chat_tokens(open_tokenizer(recipe.data.tokenizer))
    check_rows(recipe, tokenizer.vocabulary)
    files = record_of_files(recipe.data.source)
    corpus = open_source(recipe)
    for note in corpus.notes:
        progress.note(note)
    target, folder = recipe.data.directory, staging_folder(recipe.data.directory)
    try:
        discard(folder)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = prepare_conversations(recipe, corpus, tokenizer, folder, progress)
        check_manifest_fits(manifest, recipe.batch_windows, recipe.model.block_size)
        asked = {key: getattr(recipe.data, key) for key in ("source", "validation_tokens", *RECORDED)}
        seconds = time.monotonic() - started_at
        write_json(folder / PREPARATION_FILE, {"seconds": round(seconds, 1), "asked": asked, "files": files})
    except BaseException:
        discard(folder)
        raise
    shutil.rmtree(folder / "raw", ignore_errors=True)
    flush_directory(folder)
    folder.rename(target)
    flush_directory(target.parent)
    return manifest, seconds


def discard(folder: Path) -> None:
    """Remove what an attempt has written, except files that it downloaded."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file():
            path.unlink()
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def finished_dataset(recipe: Recipe, progress: PreparationProgress) -> Manifest | None:
    """Return the manifest of the dataset at `data.path` if it has the recipe's settings; None if nothing is there.

    Raise UserError if the dataset has other settings, DataError if something else is there.
    """
    directory = recipe.data.directory
    if not (directory / MANIFEST_FILE).is_file():
        refuse_existing(recipe)
        return None
    manifest = read_manifest(directory)
    if is_imported(manifest):
        raise UserError(
            f"data.path = '{recipe.data.path}' has imported shards, which are not prepared from data.source",
            "train on them, or set another data.path",
        )
    refuse(recipe, list(find_differences(recipe, manifest)))
    refuse_other_rows(directory, manifest.row_tokens, recipe.model.block_size)
    progress.note(f"data.path = '{recipe.data.path}' is already prepared with these settings")
    note_changes(recipe, manifest, progress)
    return manifest


def open_or_prepare(recipe: Recipe, progress: PreparationProgress | None = None) -> Manifest:
    """Return the manifest of the dataset at `data.path`; prepare it first if it is missing and its text is local.

    Raise DataError if it is missing and its text is on the hub or was not named by the user who named the path;
    UserError if the user gave a setting another value than the dataset has.
    """
    progress = progress or NoPreparationProgress()
    if not recipe.data.directory.exists():
        refuse_unknown_text(recipe)
        return prepare(recipe, progress)
    manifest = read_manifest(recipe.data.directory)
    refuse_other_settings(recipe, manifest)
    note_changes(recipe, manifest, progress)
    return manifest


def refuse_unknown_text(recipe: Recipe) -> None:
    """Raise DataError if a missing dataset must be downloaded, or if the user named its path but not its text.

    Who names only a path means a dataset that exists; the path may be misspelled.
    """
    data, given = recipe.data, recipe.given
    if data.source.startswith(PREFIX):
        words = setting_word("data.path", data.path)
        raise DataError(
            f"data.path = '{data.path}' does not exist",
            f"prepare it from data.source = '{data.source}': regpt prepare {recipe.name} {words}; or set data.path to a"
            " dataset you have",
        )
    if given is not None and "data.path" in given.anywhere and SOURCE not in given.anywhere:
        raise DataError(
            f"data.path = '{data.path}' does not exist, and no data.source is given for it",
            f"correct data.path, or set {setting_word(SOURCE, data.source)} or other text to prepare it from",
        )


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
        corpus: Corpus = open_hub(data.source, data.revision, data.text_column, folder, data.keep_raw, separator)
    else:
        corpus = open_corpus(data.source, data.text_column, data.document_separator)
    if data.tokenizer == NAME:
        return corpus
    parts = (replace(p, behind_words=True) if isinstance(p, FilePart | HubPart) else p for p in corpus.parts)
    return replace(corpus, parts=tuple(parts))
