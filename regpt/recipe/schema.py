"""How a recipe declares and checks its settings."""

import datetime
import difflib
import os
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from regpt.base.errors import Problem

OnResume = Literal["free", "noted", "refused"]
TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
EXACT_BELOW = 2.0**53  # from here on, not every whole number is a float


def setting(default: Any, help: str, on_resume: OnResume = "refused") -> Any:
    """Declare a setting: its default, its line in `regpt recipe help`, and whether a resume may change it.

    "free": it says where and when to run, changes no result, and is not part of the recipe's digest.
    "noted": the run continues with the new value, and its journal records the change.
    "refused": the resume ends with an error.
    """
    return field(default=default, metadata={"help": help, "on_resume": on_resume, "is_switch": False})


def switch(off: Any, help: str, on_resume: OnResume = "refused") -> Any:
    """Declare a setting that earlier versions did not have; with its default `off` a run is what it was before.

    While it is off it is not part of the recipe's digest, so that digests of earlier versions stay valid.
    """
    return field(default=off, metadata={"help": help, "on_resume": on_resume, "is_switch": True})


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
    if "\0" in text or has_surrogates(text):
        return "contains characters that no path may have"
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return f"cannot be a path in this locale, whose encoding is {sys.getfilesystemencoding()}; set PYTHONUTF8=1"
    try:
        Path(text).expanduser()
    except RuntimeError:
        return "names the home folder of a user that does not exist"
    return ""


def has_surrogates(text: str) -> bool:
    """Return whether a text holds what Python makes of bytes that it cannot decode. UTF-8 has no such characters."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


# Values


def parse_word(word: str, kind: Any) -> Any:
    """Return the value that a word of the command line has for a setting of this type.

    For a text setting the word is the text, in quotes or not. Other words are TOML, or what Python reads as a number.
    A word that is neither is returned as it is, for `mistyped`.
    """
    word = word.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")  # a locale may have no UTF-8
    try:
        value = tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        value = word
    if kind is str or get_origin(kind) is Literal:
        return value if isinstance(value, str) else word
    if value is word and kind is bool and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if value is word and kind in (int, float):
        try:
            return float(word)
        except ValueError:
            return word
    return value


def plain_value(value: Any, kind: Any) -> Any:
    """Return a TOML value in the type of its setting where that loses nothing; other values as they are.

    An integer becomes a float, 1e9 an integer, and a date or time without quotes the text that was written.
    """
    if kind is float and type(value) is int:
        return as_float(value)
    if kind is int and type(value) is float and value.is_integer() and abs(value) < EXACT_BELOW:
        return int(value)
    if kind is str and type(value) in (datetime.date, datetime.time):
        return value.isoformat()
    return value


def mistyped(setting: str, value: Any, kind: Any) -> Problem | None:
    """Check the type of a value."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if value in choices:
            return None
        near = difflib.get_close_matches(str(value), choices, n=1)
        guess = f"; did you mean '{near[0]}'?" if near else ""
        return Problem(setting, f"{setting} = {value!r} is not one of {', '.join(choices)}{guess}")
    if kind is str and type(value) is str and has_surrogates(value):
        return Problem(setting, f"{setting} = {value!r} holds bytes that are not UTF-8")
    if type(value) is kind:
        return None
    advice = "; write it in quotes" if kind is str else ""
    return Problem(setting, f"{setting} = {value!r} is not {TYPE_NAMES[kind]}{advice}")


def as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")
