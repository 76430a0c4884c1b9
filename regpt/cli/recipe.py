"""The commands demo and recipe."""

import argparse
import sys
from typing import TYPE_CHECKING

from regpt.base.errors import DONE, RecipeError, UserError
from regpt.cli.arguments import add_command, add_overrides, add_recipe, add_runs, at_least

if TYPE_CHECKING:
    from regpt.cli.arguments import Subparsers


def add_demo(commands: "Subparsers") -> None:
    demo = add_command(
        commands,
        "demo",
        run_demo,
        "train two small models and compare them",
        "Prepares Python's own source code, trains demo-classic and demo-modern (about four minutes on two CPU\n"
        "cores), and writes their report and their comparison. The last lines name the files.",
    )
    add_runs(demo)
    add_overrides(demo)


def add_recipe_command(commands: "Subparsers") -> None:
    recipe = add_command(
        commands,
        "recipe",
        run_recipe_help,
        "show recipes and settings",
        "examples: regpt recipe list\n"
        "          regpt recipe show gpt2-modern --against gpt2-classic\n"
        "          regpt recipe help lr",
    )
    actions = recipe.add_subparsers(metavar="show|list|help", required=True)
    show = actions.add_parser("show", help="print a recipe with every value, and derived values")
    show.set_defaults(command=run_recipe_show)
    show.add_argument("--against", metavar="RECIPE", help="also print the differences from this recipe")
    show.add_argument(
        "--ranks", type=at_least(int, 1), default=1, metavar="N", help="number of ranks to compute for (default: 1)"
    )
    add_recipe(show)
    actions.add_parser("list", help="list the shipped recipes").set_defaults(command=run_recipe_list)
    explain = actions.add_parser("help", help="explain every setting, or those that a word finds")
    explain.set_defaults(command=run_recipe_help)
    explain.add_argument(
        "words", metavar="WORD", nargs="*", help="show only settings with these words in their name or help"
    )


def run_demo(arguments: argparse.Namespace) -> int:
    from regpt.cli.demo import demo

    return demo(arguments.runs, arguments.overrides)


def run_recipe_show(arguments: argparse.Namespace) -> int:
    from regpt.base.format import scientific
    from regpt.base.recipe import warmup_advice
    from regpt.base.settings import differences, load_recipe, to_toml
    from regpt.data.sizes import epochs_text

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    print(to_toml(recipe))
    micro_batch = f"{recipe.data.micro_batch} x {recipe.model.block_size} tokens"
    if problems := list(recipe.batch_problems(arguments.ranks)):
        raise RecipeError(recipe.name, problems)
    on = f"each of {arguments.ranks} ranks" if arguments.ranks > 1 else "one device"
    derived = {
        "parameters": f"{recipe.model.parameters:,}",
        "accumulation": f"{recipe.accumulation_steps(arguments.ranks)} micro-batches of {micro_batch} on {on}",
        "tokens": f"{recipe.total_tokens:,} in {recipe.run.max_steps:,} steps",
        "warm-up": f"{recipe.warmup_tokens:,} tokens in {recipe.optimizer.warmup_steps:,} steps",
        "FLOPs per token": f"{recipe.model.flops_per_token:,}",
        "FLOPs of the run": scientific(recipe.total_tokens * recipe.model.flops_per_token, 3),
        "epochs": epochs_text(recipe),
    }
    print("# Derived values")
    print("\n".join(f"#   {name:<16} {value}" for name, value in derived.items()))
    if recipe.is_warmup_too_long:
        advice = warmup_advice(recipe.optimizer.warmup_steps, recipe.run.max_steps)
        print(f"note: {advice}", file=sys.stderr)
    if arguments.against:
        other = load_recipe(arguments.against)
        print(f"\n# Differences from {other.name}")
        for setting, ours, theirs in differences(recipe, other) or [("nothing", "", "")]:
            print(f"#   {setting:<32} {ours}{f'   ({other.name}: {theirs})' if theirs != '' else ''}")
    return DONE


def run_recipe_list(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import shipped_recipes

    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"{name:<16} {first}")
    return DONE


def run_recipe_help(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import SETTINGS, search_settings, toml_value

    found = search_settings(arguments.words)
    if not found:
        raise UserError(
            f"no setting has '{' '.join(arguments.words)}' in its name or help", "`regpt recipe help` lists them all"
        )
    section = ""
    for name in found:
        if name.partition(".")[0] != section:
            section = name.partition(".")[0]
            print(f"[{section}]")
        setting = SETTINGS[section][name.partition(".")[2]]
        print(f"  {setting.name} = {toml_value(setting.default)}\n      {setting.metadata['help']}")
    return DONE
