"""What makes two recipes differ: the digest of a recipe, its values by name, and changes since a run began."""

from collections.abc import Mapping
from typing import Any

from regpt.base.files import sha256_of_json
from regpt.recipe.aliases import OLD_SETTINGS, current_setting
from regpt.recipe.recipe import Recipe
from regpt.recipe.schema import OnResume
from regpt.recipe.settings import SETTINGS, as_tables, build_recipe


def recipe_digest(recipe: Recipe) -> str:
    """Return the SHA-256 of every setting that can change a result. A renamed setting counts under its old name."""
    off = off_switches()
    return sha256_of_json(
        {
            OLD_SETTINGS.get(name, name): value
            for name, value in run_settings(recipe).items()
            if on_resume(name) != "free" and not (name in off and value == off[name])
        }
    )


def off_switches() -> dict[str, Any]:
    """Return the value of every switch where it is off, as in runs of versions that did not have it."""
    return {
        f"{section}.{key}": declared.default
        for section, settings in SETTINGS.items()
        for key, declared in settings.items()
        if declared.metadata["is_switch"]
    }


def on_resume(name: str) -> OnResume:
    """Return the resume policy of the setting 'section.key'."""
    section, _, key = name.partition(".")
    policy: OnResume = SETTINGS[section][key].metadata["on_resume"]
    return policy


def run_settings(recipe: Recipe) -> dict[str, Any]:
    """Return every value by 'section.key', except the published results, which never change a run."""
    return flat(as_tables(recipe))


def flat(tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, table in tables.items()
        if section != "published"
        for key, value in table.items()
    }


def changes(before: dict[str, dict[str, Any]], recipe: Recipe) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Compare a recipe with the one that a run began with; `before` holds the tables that `as_tables` returned.

    Return (refused changes, changes to note), each as setting -> [before, now]. Free settings are in neither.
    """
    then = off_switches() | {current_setting(name, warn=False): value for name, value in flat(before).items()}
    changed = {name: [then[name], now] for name, now in run_settings(recipe).items() if then.get(name, now) != now}
    refused = {name: pair for name, pair in changed.items() if on_resume(name) == "refused"}
    return refused, {name: pair for name, pair in changed.items() if on_resume(name) == "noted"}


def before_changes(recipe: Recipe, changed: Mapping[str, list[Any]]) -> Recipe | None:
    """Return the recipe as it was before a resume, whose changes are setting -> [before, now]; None if unusable."""
    tables = as_tables(recipe)
    for name, (before, _) in changed.items():
        section, _, key = name.partition(".")
        tables[section][key] = before
    return build_recipe(recipe.name, tables)[0]


def differences(ours: Recipe, theirs: Recipe) -> list[tuple[str, Any, Any]]:
    """List (setting, our value, their value) for each setting in which two recipes differ."""
    their_settings = run_settings(theirs)
    return [
        (name, value, their_settings[name])
        for name, value in run_settings(ours).items()
        if value != their_settings[name]
    ]


def result_differences(ours: Recipe, theirs: Recipe) -> list[tuple[str, Any, Any]]:
    """List the differences that can change a result: those of settings that are not free."""
    return [difference for difference in differences(ours, theirs) if on_resume(difference[0]) != "free"]
