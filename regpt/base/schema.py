"""How a recipe declares and checks its settings."""

from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from regpt.base.errors import Problem

OnResume = Literal["free", "noted", "refused"]


def setting(default: Any, help: str, on_resume: OnResume = "refused") -> Any:
    """Declare a setting: its default, its line in `regpt recipe help`, and whether a resume may change it.

    "free": it says where and when to run, changes no result, and is not part of the recipe's digest.
    "noted": the run continues with the new value, and its journal records the change.
    "refused": the resume ends with an error.
    """
    return field(default=default, metadata={"help": help, "on_resume": on_resume})


def at_least(section: Any, least: int, *keys: str) -> Iterator[Problem]:
    """Check that settings are not below a limit."""
    for key in keys:
        if (value := getattr(section, key)) < least:
            yield Problem(name := f"{section_name(section)}.{key}", f"{name} = {value} is below {least}")


def above_zero(section: Any, *keys: str) -> Iterator[Problem]:
    """Check that settings are positive."""
    for key in keys:
        if not (value := getattr(section, key)) > 0:
            yield Problem(name := f"{section_name(section)}.{key}", f"{name} = {value} is not above 0")


def section_name(section: Any) -> str:
    """Return 'run' for a RunRecipe."""
    return type(section).__name__.removesuffix("Recipe").lower()


def path_problem(text: str) -> str:
    """Describe why a text cannot be a path on any system; empty if it can."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        return "contains characters that no path may have"
    try:
        Path(text).expanduser()
    except RuntimeError:
        return "names the home folder of a user that does not exist"
    return ""
