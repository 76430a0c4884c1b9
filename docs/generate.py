"""Write the generated parts of the documentation: cli.md, settings.md, and the tables of other pages.

Run it with `make docs-generate`. tests/test_docs.py compares the files with what this script writes.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

DOCS = Path(__file__).parent
LIBRARY = DOCS.parent / "regpt" / "library.py"
LIBRARY_EXAMPLE = DOCS / "library_example.py"
LIBRARY_FUNCTIONS = (
    "load_recipe",
    "prepare",
    "train",
    "resume",
    "cooldown",
    "open_run",
    "load_model",
    "generate",
    "evaluate",
    "compare",
    "report",
)
NOTICE = "<!-- Written by `make docs-generate`. Do not edit. -->"
BLOCK = re.compile(r"(<!-- table: ([\w.]+) -->\n\n).*?(\n\n<!-- end of table -->)", re.DOTALL)
ON_RESUME = {"free": "free", "noted": "recorded", "refused": "fixed"}


def cli_page() -> str:
    from regpt.cli.main import parser

    top = parser()
    parts = [
        "# Commands\n",
        f"{NOTICE}\n",
        "`regpt COMMAND --help` prints the same text in a terminal. [settings.md](settings.md) lists all settings.\n",
        f"```text\n{plain(top.epilog)}\n```\n",
    ]
    for words, command in commands(top):
        parts += command_section(words, command)
    return "\n".join(parts)


def commands(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command below `parser` with its words, subcommands after their command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield (*words, name), command
                yield from commands(command, (*words, name))


def command_section(words: tuple[str, ...], command: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the heading, usage, arguments and examples of one command."""
    yield f"{'#' * (len(words) + 1)} regpt {' '.join(words)}\n"
    if command.description:
        yield f"{text(command.description)}\n"
    yield f"```text\n{usage(words, command)}\n```\n"
    rows = [argument_row(action) for action in command._actions if shown(action)]
    if rows:
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows]) + "\n"
    if command.epilog:
        yield f"```text\n{plain(command.epilog)}\n```\n"


def shown(action: argparse.Action) -> bool:
    return not isinstance(action, argparse._HelpAction | argparse._SubParsersAction) and action.help != "==SUPPRESS=="


def usage(words: tuple[str, ...], command: argparse.ArgumentParser) -> str:
    """Return the usage line, the same for every terminal width and Python version."""
    options, positionals = [], []
    for action in command._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if action.option_strings:
            option = argument_name(action).split(", ")[-1]
            options.append(option if action.required else f"[{option}]")
        else:
            value = str(action.metavar or action.dest)
            positionals.append({"*": f"[{value} ...]", "+": f"{value} ..."}.get(str(action.nargs), value))
    return " ".join(["regpt", *words, *options, *positionals])


def argument_name(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar or action.dest)
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    if action.nargs == 0:
        return ", ".join(action.option_strings)
    several = " ..." if action.nargs in ("+", "*") else ""
    return ", ".join(f"{option} {value}{several}" for option in action.option_strings)


def argument_row(action: argparse.Action) -> str:
    help_text = (action.help or "") % {"default": action.default, "prog": "regpt", "metavar": action.metavar}
    return f"| `{argument_name(action)}` | {cell(help_text)} |"


def settings_page() -> str:
    from regpt.recipe.recipe import SECTIONS, Recipe

    defaults = Recipe(name="defaults")
    parts = [
        "# Settings\n",
        f"{NOTICE}\n",
        "A recipe is a TOML file with these sections. Settings that it does not name are those of the recipe named at\n"
        'its top (`like = "demo-modern"`, or the path of a file), else the defaults. `regpt recipe new my.toml`\n'
        "writes one. Change a setting for a single command with `section.key=value`, for example\n"
        "`regpt train demo-modern run.max_steps=20`.\n",
        "The last column says what a resume does with another value. *free*: accepts it, it changes no result.\n"
        "*recorded*: accepts it and records the change in the journal. *fixed*: rejects it.\n",
    ]
    for section in SECTIONS:
        values = getattr(defaults, section)
        hints = get_type_hints(type(values))
        rows = [
            f"| `{section}.{f.name}` | {default(getattr(values, f.name), hints[f.name])} |"
            f" {cell(f.metadata['help'])} | {resume_rule(section, f.metadata)} |"
            for f in fields(values)
        ]
        head = ["| setting | default | meaning | in a resume |", "|---|---|---|---|"]
        parts += [f"## {section}\n", "\n".join([*head, *rows]) + "\n"]
    return "\n".join(parts)


def resume_rule(section: str, metadata: Any) -> str:
    return "—" if section == "published" else ON_RESUME[metadata["on_resume"]]


def default(value: Any, hint: Any) -> str:
    """Return the default and the other choices, if the setting has choices."""
    from regpt.recipe.settings import toml_value

    others = [choice for choice in get_args(hint) if choice != value] if get_origin(hint) is Literal else []
    choices = f" or {', '.join(f'`{choice}`' for choice in others)}" if others else ""
    return f"`{toml_value(value)}`{choices}"


def library_page() -> str:
    """Return the page of `import regpt`, from the source of its functions: signatures and docstrings."""
    functions = {
        node.name: node
        for node in ast.parse(LIBRARY.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    parts = [
        "# Library\n",
        f"{NOTICE}\n",
        "A run is given as a `Run`, as the name of a folder in `runs/`, or as a path. Functions print nothing unless\n"
        "`progress=True`, install no signal handlers unless `handle_signals=True`, and raise `regpt.UserError` for\n"
        "everything that the caller can fix. All of them in one script:\n",
        f"```python\n{LIBRARY_EXAMPLE.read_text(encoding='utf-8')}```\n",
        "[examples/](../examples) has scripts for your own data, for replacing a part of the model, and for a sweep.\n",
    ]
    for name in LIBRARY_FUNCTIONS:
        node = functions[name]
        parts += [f"## {name}\n", f"```python\n{signature(node)}\n```\n", f"{ast.get_docstring(node)}\n"]
    return "\n".join(parts)


def signature(node: ast.FunctionDef) -> str:
    """Return a function's signature, with one parameter on a line where it is long."""
    names = node.args
    defaults = [None] * (len(names.args) - len(names.defaults)) + names.defaults
    parameters = [parameter(one, value) for one, value in zip(names.args, defaults, strict=True)]
    if names.vararg:
        parameters.append(f"*{parameter(names.vararg, None)}")
    elif names.kwonlyargs:
        parameters.append("*")
    parameters += [parameter(one, value) for one, value in zip(names.kwonlyargs, names.kw_defaults, strict=True)]
    returns = f" -> {annotation(node.returns)}: ..."
    one_line = f"def {node.name}({', '.join(parameters)}){returns}"
    if len(one_line) <= 100:
        return one_line
    return "\n    ".join([f"def {node.name}(", *(f"{one}," for one in parameters)]) + f"\n){returns}"


def parameter(argument: ast.arg, default: ast.expr | None) -> str:
    value = f" = {ast.unparse(default)}" if default is not None else ""
    return f"{argument.arg}: {annotation(argument.annotation)}{value}"


def annotation(hint: ast.expr | None) -> str:
    """Return a type as text. Quotes around types that are imported late are dropped."""
    if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
        return hint.value
    return ast.unparse(hint) if hint else "Any"


def cell(value: str) -> str:
    return text(value).replace("|", "\\|")


def text(value: str) -> str:
    """Return plain text as Markdown that shows the same characters."""
    return re.sub(r"([<*_\[\]])", r"\\\1", " ".join(value.split()))


def plain(value: str | None) -> str:
    return (value or "").strip("\n")


def with_tables(page: str) -> str:
    """Return a page whose table blocks hold what their functions return now."""

    def filled(match: re.Match[str]) -> str:
        return match[1] + "\n".join(table(match[2])) + match[3]

    return BLOCK.sub(filled, page)


def table(name: str) -> list[str]:
    """Return the lines of a table by its function's name, for example `roofline.fit_table`."""
    from benchmarks import improvements, measured, roofline, scale

    group, _, wanted = name.partition(".")
    if group == "measured":
        return list(measured.table(wanted) if wanted in improvements.EXPERIMENTS else measured.lines_of(wanted))
    functions = {
        "roofline.speed_table": roofline.speed_table,
        "roofline.published_table": roofline.published_table,
        "roofline.recipe_table": roofline.recipe_table,
        "roofline.card_table": roofline.card_table,
        "scale.table": scale.table,
    }
    return list(functions[name]())


def generated() -> dict[Path, str]:
    """Return every page with generated parts, by its path."""
    pages = {DOCS / "cli.md": cli_page(), DOCS / "settings.md": settings_page()}
    if LIBRARY.is_file():
        pages[DOCS / "library.md"] = library_page()
    for name in ("plan.md", "scale.md", "improvements.md"):
        pages[DOCS / name] = with_tables((DOCS / name).read_text(encoding="utf-8"))
    return pages


def main() -> None:
    for path, page in generated().items():
        path.write_text(page, encoding="utf-8")
        print(f"written: {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
