"""A dataset that exists: the settings that it fixes, and what happens where a recipe gives them other values."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regpt.base.errors import UserError
from regpt.corpus.progress import PreparationProgress
from regpt.data.shard_writer import FOLDER
from regpt.data.shards import PREPARATION_FILE, Manifest, read_json_or_empty
from regpt.data.validation_split import SplitRule
from regpt.preparation.changed_files import is_local, note_about_changes
from regpt.recipe.recipe import Recipe
from regpt.recipe.sections import DataRecipe
from regpt.recipe.settings import toml_value
from regpt.recipe.vocabulary import SIZES
from regpt.tokenization.chat_tokens import CHAT_SUFFIX, with_chat_tokens
from regpt.tokenization.opening import open_tokenizer

RECORDED = ("revision", "text_column", "document_separator", "shard_tokens")  # in the record of the preparation only
SOURCE = "data.source"


@dataclass(frozen=True)
class Difference:
    """A setting whose value in a recipe is not that of the dataset at data.path."""

    setting: str  # 'data.source'
    fixed: Any  # by the dataset
    asked: Any  # by the recipe


def recorded(directory: Path) -> dict[str, Any]:
    return read_json_or_empty(directory / PREPARATION_FILE)


def is_imported(manifest: Manifest) -> bool:
    return bool(manifest.source.get("imported"))


def fixed_settings(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the settings that the dataset fixes, by their keys in [data], as far as it records them."""
    rule, asked = manifest.validation.rule, recorded(directory).get("asked")
    known = {"document_separator": "", **asked} if isinstance(asked, dict) else {}
    if manifest.row_tokens:
        asked_tokens = known.get("validation_tokens", manifest.tokens("val"))
        packed: dict[str, Any] = {"format": "conversations", "validation_tokens": asked_tokens}
    else:
        packed = {"format": "text", "validation_tokens": manifest.tokens("val")}
    return {
        "tokenizer": fixed_tokenizer(directory, manifest),
        "source": manifest.source["asked"],
        **{key: known[key] for key in RECORDED if type(known.get(key)) is type(getattr(DataRecipe(), key))},
        "validation": "auto" if rule in (SplitRule.FILES, SplitRule.CONVERSATIONS) else str(rule),
        **packed,
    }


def find_differences(recipe: Recipe, manifest: Manifest) -> Iterator[Difference]:
    """Yield the settings in which a recipe differs from its dataset. `data.validation = 'auto'` never does."""
    for key, fixed in fixed_settings(recipe.data.directory, manifest).items():
        asked = getattr(recipe.data, key)
        same = (
            asked == fixed
            or (key == "tokenizer" and is_same_tokenizer(asked, manifest))
            or (key == "validation" and "auto" in (asked, fixed) and not is_imported(manifest))
        )
        if not same and not (key == "source" and is_same_place(asked, fixed)):
            yield Difference(f"data.{key}", fixed, asked)


def fixed_tokenizer(directory: Path, manifest: Manifest) -> str:
    """Return the value of data.tokenizer that gives the dataset's: a name, or the folder in the dataset."""
    name = str(manifest.tokenizer["name"]).removesuffix(CHAT_SUFFIX if manifest.row_tokens else "")
    return name if name in SIZES else (directory / FOLDER).as_posix()


def is_same_tokenizer(choice: str, manifest: Manifest) -> bool:
    """Return whether a value of data.tokenizer gives the dataset's tokenizer."""
    try:
        found = open_tokenizer(choice)
        return (with_chat_tokens(found) if manifest.row_tokens else found).record == manifest.tokenizer
    except UserError:
        return False


def is_same_place(one: str, other: str) -> bool:
    """Return whether two sources are the same file or folder, as a relative and an absolute path may be."""
    if not (is_local(one) and is_local(other)):
        return False
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def is_given(recipe: Recipe, manifest: Manifest, setting: str) -> bool:
    """Return whether the user gave the dataset's setting. The file of a recipe may name the text of imported shards."""
    given = recipe.given
    if is_imported(manifest) and setting == SOURCE:
        return given is not None and setting in given.on_command_line
    return given is None or setting in given.about_dataset


def refuse_other_settings(recipe: Recipe, manifest: Manifest) -> None:
    """Raise UserError, with both values, if the user gave a setting another value than the dataset's."""
    refuse(recipe, [found for found in find_differences(recipe, manifest) if is_given(recipe, manifest, found.setting)])


def refuse(recipe: Recipe, found: list[Difference]) -> None:
    """Raise UserError if there are differences."""
    if found:
        fixed, asked = (
            " and ".join(f"{one.setting} = {value!r}" for one, value in zip(found, values, strict=True))
            for values in ([one.fixed for one in found], [one.asked for one in found])
        )
        raise UserError(
            f"data.path = '{recipe.data.path}' exists with {fixed}; the recipe asks for {asked}",
            f"to use it as it is, set {' '.join(setting_word(one.setting, one.fixed) for one in found)};"
            " to prepare another dataset, set another data.path",
        )


def setting_word(name: str, value: Any) -> str:
    """Return the word of the command line that gives a setting a value, in quotes where a shell needs them."""
    return shlex.quote(f"{name}={value if isinstance(value, str) else toml_value(value)}")


def with_fixed_settings(recipe: Recipe, manifest: Manifest) -> Recipe:
    """Return the recipe with the values that its dataset fixes."""
    fixed = {found.setting.partition(".")[2]: found.fixed for found in find_differences(recipe, manifest)}
    return replace(recipe, data=replace(recipe.data, **fixed))


def note_changes(recipe: Recipe, manifest: Manifest, progress: PreparationProgress) -> None:
    """Note where a recipe names another text than its dataset's and nobody chose the path, and files that changed."""
    directory, source = recipe.data.directory, manifest.source["asked"]
    is_shipped_path = recipe.given is not None and "data.path" not in recipe.given.anywhere
    if is_shipped_path and not is_imported(manifest):
        for found in find_differences(recipe, manifest):
            if found.setting == SOURCE:
                progress.note(
                    f"data.path = '{recipe.data.path}' was made from '{found.fixed}', not from the recipe's"
                    f" data.source = '{found.asked}'; the dataset is used as it is"
                )
    if note := note_about_changes(source, recipe.data.path, recorded(directory).get("files") or {}):
        progress.note(note)
