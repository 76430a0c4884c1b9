"""What the commands' arguments have in common: runs, recipes, settings, numbers."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

Run = Callable[[argparse.Namespace], int]


class Commands(Protocol):
    """Adds a command: its name, what carries it out, a line of help, examples; and whether torchrun may start it."""

    def __call__(
        self, name: str, run: Run, help: str, more: str = "", on_ranks: bool = False
    ) -> argparse.ArgumentParser: ...


def adding_to(commands: Any) -> Commands:
    """`commands` is what argparse's add_subparsers gave."""

    def command(name: str, run: Run, help: str, more: str = "", on_ranks: bool = False) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=run, on_ranks=on_ranks)
        return added

    return command


def add_recipe(to: argparse.ArgumentParser) -> None:
    to.add_argument("recipe", metavar="RECIPE", help="a .toml file, or the name of one that regpt comes with")
    add_overrides(to)


def add_directory(to: argparse.ArgumentParser) -> None:
    to.add_argument("directory", type=Path, metavar="DIR", help="the folder of shards")


def add_overrides(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="settings to change (`regpt recipe help`)"
    )


def add_run(to: argparse.ArgumentParser) -> None:
    to.add_argument("run", metavar="RUN", help="a run's name or folder")
    add_runs(to)


def add_runs(to: argparse.ArgumentParser) -> None:
    to.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="where runs lie (default: runs)")


def at_least(kind: Callable[[str], float], least: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    number.__name__ = "whole number" if kind is int else "number"
    return number
