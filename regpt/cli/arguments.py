"""Arguments that several commands share: recipes, settings, runs, numbers."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import DataError

if TYPE_CHECKING:
    from regpt.generation.drawing import Sampling
    from regpt.recipe.recipe import Recipe

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
Run = Callable[[argparse.Namespace], int]


def add_command(
    commands: "Subparsers", name: str, run: Run, help: str, more: str = "", on_ranks: bool = False
) -> argparse.ArgumentParser:
    """Add a command: the function that runs it, one line of help, and examples and details after the options.

    With `on_ranks`, torchrun may start the command on several ranks.
    """
    parser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run, on_ranks=on_ranks)
    return parser


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a .toml file, or the name of a shipped recipe")
    add_overrides(parser)


def add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory of the dataset")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="settings to change (`regpt recipe help` lists them)"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name or directory of a run")
    add_runs(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a run, a checkpoint, a Hugging Face directory, or hub:OWNER/NAME"
    )
    add_step(parser)
    add_runs(parser)


def add_step(parser: argparse.ArgumentParser, named_by: str = "") -> None:
    """Add the choice between the models of a run; `named_by` is the option that names the run, if one does."""
    of_run = f"of a run in {named_by}" if named_by else "of a run"
    parser.add_argument(
        "--step",
        type=at_least(int, 0),
        metavar="N",
        help=f"{of_run}, use the checkpoint after N steps (default: the newest intact one)",
    )
    parser.add_argument(
        "--averaged",
        action="store_true",
        help=f"{of_run} with optimizer.average_steps, use the averaged weights instead of the last ones",
    )


def add_sampling(parser: argparse.ArgumentParser, temperature: float) -> None:
    parser.add_argument(
        "--temperature",
        type=at_least(float, 0),
        default=temperature,
        metavar="X",
        help=f"sampling temperature; 0 takes the most likely token (default: {temperature:g})",
    )
    parser.add_argument(
        "--top-k", type=at_least(int, 0), default=50, metavar="K", help="sample from the K best; 0: all (default: 50)"
    )
    parser.add_argument(
        "--top-p", type=at_least(float, 0), default=1.0, metavar="P", help="nucleus sampling; 1: off (default: 1)"
    )
    parser.add_argument("--seed", type=at_least(int, 0), default=42, metavar="N", help="random seed (default: 42)")
    add_float32(parser)


def add_float32(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--float32",
        action="store_true",
        help="draw tokens with weights in float32 (default: in float16 on x86 CPUs, which is faster)",
    )


def sampling_of(arguments: argparse.Namespace) -> "Sampling":
    from regpt.generation.drawing import Sampling

    return Sampling(
        temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p, seed=arguments.seed
    )


def add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="folder that contains the runs (default: runs)",
    )


def at_least(kind: Callable[[str], float], least: float) -> Callable[[str], float]:
    """Return a type for argparse: a number that is not below `least`."""

    def number(text: str) -> float:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    number.__name__ = "whole number" if kind is int else "number"
    return number


def with_source(recipe: "Recipe", runs: Path) -> "Recipe":
    """Return a recipe with the model of `run.init_from`, if it has one. Only then torch is loaded.

    Where the hub does not answer, a note says so, and the model is the one that the recipe itself describes.
    """
    if not recipe.run.init_from:
        return recipe
    from regpt.interop.initial import with_source_model

    try:
        return with_source_model(recipe, runs)
    except DataError as error:
        print(f"note: {error}; until then model.* is that of the recipe {recipe.name}", file=sys.stderr)
        return recipe


def without_source(recipe: "Recipe") -> "Recipe":
    """Return a recipe that starts from initial weights, for a trial of its speed."""
    return replace(recipe, run=replace(recipe.run, init_from=""))
