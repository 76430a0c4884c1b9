"""Read a recipe from a TOML file and `section.key=value` words, and write it back."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from regpt.base.errors import Problem, RecipeError, UserError
from regpt.recipe.aliases import OTHER_NAMES, current_recipe, current_setting, rename_settings
from regpt.recipe.recipe import SECTIONS, Given, Recipe
from regpt.recipe.schema import mistyped, parse_word, plain_value
from regpt.recipe.vocabulary import GPT2, padded_size, tokenizer_size

LIKE = "like"  # the one key of a recipe outside its sections: the recipe that it inherits from
# The dataclass field of every setting, by section and key.
SETTINGS = {section: {f.name: f for f in fields(get_type_hints(Recipe)[section])} for section in SECTIONS}
KINDS = {section: get_type_hints(get_type_hints(Recipe)[section]) for section in SECTIONS}


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with regpt, by name: next to the package in a clone, inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def shipped_recipe(name: str) -> Path | None:
    """Return the path of a shipped recipe by its name or an old name of it; None if there is no such recipe."""
    return shipped_recipes().get(current_recipe(name))


def load_recipe(where: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe from a TOML file or by a shipped name, and apply overrides such as 'run.max_steps=2'.

    Warns with RenamedSetting if it uses an old setting name. Raises UserError if the file does not exist, RecipeError
    with all problems if its settings cannot be used.
    """
    return read_recipe(find_recipe(where), overrides, warn=True)


def load_resolved_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load the recipe.toml that a run, perhaps of an earlier version, wrote. Old setting names are read silently."""
    return read_recipe(find_recipe(path), overrides, warn=False)


def read_recipe(path: Path, overrides: Sequence[str], *, warn: bool) -> Recipe:
    tables, given = read_tables(path, warn=warn)
    origin = f"{path.name} and the command line" if overrides else str(path)
    # A run's recipe.toml holds every value, not what a user gave.
    return build_with_overrides(path.stem, tables, overrides, origin, Given(given if warn else frozenset()))


def read_tables(path: Path, *, warn: bool, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the tables of a recipe with those of the recipe that it is like, and the settings that the user gave.

    `above` holds the recipes that lead to this one. Raises UserError if one cannot be read or leads to itself.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: is not a TOML file ({error})",
            "fix that line; text needs quotes; recipes/demo-modern.toml shows the format",
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "name a recipe's .toml file") from None
    if doubled := rename_settings(tables, warn=warn):
        raise RecipeError(str(path), doubled)
    is_own = path.resolve() not in map(Path.resolve, shipped_recipes().values())
    given = {f"{section}.{key}" for section, table in tables.items() if isinstance(table, dict) for key in table}
    like = tables.pop(LIKE, None)
    if like is None:
        return tables, frozenset(given if is_own else ())
    if not isinstance(like, str) or path.resolve() in above:
        raise UserError(
            f"{path}: {LIKE} = {like!r} is not another recipe", f"write {LIKE} = 'demo-modern', for example"
        )
    base = find_recipe(path.parent / like if (path.parent / like).is_file() else like)
    inherited, given_there = read_tables(base, warn=warn, above=(*above, path.resolve()))
    inherited.pop("published", None)  # another recipe's results
    return merged(inherited, tables), given_there | given


def merged(base: dict[str, Any], tables: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of two recipes together; the values of the second count."""
    shared = [name for name in tables if isinstance(tables[name], dict) and isinstance(base.get(name), dict)]
    return {**base, **tables, **{name: {**base[name], **tables[name]} for name in shared}}


def override(recipe: Recipe, words: Sequence[str]) -> Recipe:
    """Return a recipe with overrides applied. Raises RecipeError with all problems if it cannot be used."""
    origin = f"{recipe.name} and the command line"
    return build_with_overrides(recipe.name, as_tables(recipe), words, origin, recipe.given)


def build_with_overrides(
    name: str, tables: dict[str, Any], words: Sequence[str], origin: str, given: Given | None
) -> Recipe:
    misspelt = [problem for word in words for problem in apply_override(tables, word)]
    recipe, problems = build_recipe(name, tables)
    if misspelt or recipe is None:
        raise RecipeError(origin, misspelt + problems)
    if given is None:
        return recipe
    typed = {current_setting(word.partition("=")[0].strip(), warn=False) for word in words}
    return replace(recipe, given=replace(given, on_command_line=given.on_command_line | typed))


def find_recipe(where: str | Path) -> Path:
    """Return the path of a recipe: a file, or a shipped name. Raises UserError with the nearest name otherwise."""
    path, shipped = Path(where), shipped_recipes()
    renamed = path.with_stem(current_recipe(path.stem)) if path.name else path
    for file in (path, renamed):
        if file.is_file():
            return file
    if str(renamed) in shipped:
        return shipped[str(renamed)]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"{where}: no such recipe", f"{guess}regpt comes with {', '.join(shipped)}; or name a .toml file")


def apply_override(tables: dict[str, Any], word: str) -> Iterator[Problem]:
    """Put one `section.key=value` into the tables; yield its problem if it is not of that form."""
    name, equals, text = word.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        yield Problem(word, f"'{word}' is not a setting; write section.key=value, as in run.max_steps=100")
        return
    section, _, key = current_setting(f"{section}.{key}", warn=True).partition(".")
    table = tables.setdefault(section, {})
    if isinstance(table, dict):
        table[key] = parse_word(text, KINDS.get(section, {}).get(key, str))


def build_recipe(name: str, tables: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """Build a recipe from tables. Return (recipe, []), or (None, all problems)."""
    hints = get_type_hints(Recipe)
    tables = {section: dict(table) if isinstance(table, dict) else table for section, table in tables.items()}
    problems = rename_settings(tables)
    unknown_values: set[str] = set()  # settings with an unusable value, which would cause further problems
    sections: dict[str, dict[str, Any]] = {}
    for section, table in tables.items():
        if section not in SECTIONS:
            problems.append(unknown_section(section, table))
        elif not isinstance(table, dict):
            problems.append(Problem(section, f"'{section}' is a section; write [{section}] and its settings below it"))
        else:
            kinds = KINDS[section]
            values = {}
            for key, value in table.items():
                setting = f"{section}.{key}"
                if key not in kinds:
                    guess = near_setting(setting)
                    problems.append(unknown("setting", setting, guess))
                    unknown_values.update({guess} - {""})
                elif problem := mistyped(setting, value := plain_value(value, kinds[key]), kinds[key]):
                    problems.append(problem)
                    unknown_values.add(setting)
                else:
                    values[key] = value
            sections[section] = values
    problems += size_vocabulary(sections)
    recipe = Recipe(name=name, **{section: hints[section](**values) for section, values in sections.items()})
    problems += [p for p in recipe.problems() if unknown_values.isdisjoint((p.setting, *p.depends_on))]
    return (None if problems else recipe), problems


def size_vocabulary(sections: dict[str, dict[str, Any]]) -> list[Problem]:
    """Replace `model.vocab_size` = 0 by the size that the tokenizer needs; return a problem if that is unknown."""
    model = sections.get("model", {})
    if model.get("vocab_size") != 0:
        return []
    choice = sections.get("data", {}).get("tokenizer", GPT2)
    tokens = tokenizer_size(choice)
    model["vocab_size"] = padded_size(tokens or 1)
    if tokens is None:
        reason = f"model.vocab_size = 0 takes the size of data.tokenizer = '{choice}', which cannot be read"
        return [Problem("data.tokenizer", f"{reason}; name a tokenizer.json, or set model.vocab_size")]
    return []


def all_settings() -> list[str]:
    return [f"{section}.{key}" for section, keys in SETTINGS.items() for key in keys]


def settings_by_key(key: str) -> list[str]:
    """Return the settings that have this key in any section, and the one that other programs call so."""
    same = [name for name in all_settings() if name.partition(".")[2] == key]
    return [*same, OTHER_NAMES[key]] if key in OTHER_NAMES else same


def search_settings(words: Sequence[str]) -> list[str]:
    """Return the settings whose name, help or name in other programs contains every word, in any case."""
    found = []
    for name in all_settings():
        section, _, key = name.partition(".")
        others = [other for other, ours in OTHER_NAMES.items() if ours == name]
        text = " ".join([name, SETTINGS[section][key].metadata["help"], *others]).lower()
        if all(word.lower() in text for word in words):
            found.append(name)
    return found


def near_setting(name: str) -> str:
    """Return the setting that a misspelt name probably means: the same key elsewhere, else the nearest spelling."""
    same_key = settings_by_key(name.partition(".")[2])
    return next(iter(same_key or difflib.get_close_matches(name, all_settings(), n=1, cutoff=0.5)), "")


def unknown_section(section: str, table: Any) -> Problem:
    """Report a section that does not exist, with the section or the setting that it probably means."""
    near = difflib.get_close_matches(section, SECTIONS, n=1, cutoff=0.6)
    keys = [section, *table] if isinstance(table, dict) else [section]
    elsewhere = [name for key in keys for name in settings_by_key(key)]
    loose = difflib.get_close_matches(section, SECTIONS, n=1, cutoff=0.5)
    return unknown("section", section, next(iter(near or elsewhere or loose), ""))


def unknown(what: str, name: str, guess: str) -> Problem:
    advice = f"did you mean '{guess}'?" if guess else "`regpt recipe help` lists them all"
    return Problem(name, f"no {what} is named '{name}'; {advice}")


def as_tables(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return every value of the recipe, by section and key."""
    return {
        section: {f.name: getattr(getattr(recipe, section), f.name) for f in fields(getattr(recipe, section))}
        for section in SECTIONS
    }


def to_toml(recipe: Recipe) -> str:
    """Write the resolved recipe with every value, as TOML that loads to an equal recipe."""
    parts = [f"# {recipe.name}, resolved"]
    for section, table in as_tables(recipe).items():
        parts.append("\n".join([f"[{section}]", *(f"{key} = {toml_value(value)}" for key, value in table.items())]))
    return "\n\n".join(parts) + "\n"


def toml_value(value: Any) -> str:
    # JSON text is valid TOML, except for the delete character. repr writes floats such as 1e-08, which both accept.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
