"""The commands demo and recipe."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from regpt.base.errors import DONE, RecipeError, UserError
from regpt.cli.arguments import add_command, add_overrides, add_recipe, add_runs, at_least, with_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from regpt.cli.arguments import Subparsers
    from regpt.recipe.recipe import Recipe

Answer = TypeVar("Answer")


def add_demo(commands: "Subparsers") -> None:
    demo = add_command(
        commands,
        "demo",
        run_demo,
        "train three small models and compare them",
        "Prepares Python's own source code, trains demo-classic, demo-modern and demo-next (about six\n"
        "minutes on two CPU cores), and writes their reports and their comparison. The last lines name the files.",
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
        "          regpt recipe new my.toml --like demo-modern\n"
        "          regpt recipe help lr",
    )
    actions = recipe.add_subparsers(metavar="show|new|list|help", required=True)
    show = actions.add_parser("show", help="print a recipe with every value, and derived values")
    show.set_defaults(command=run_recipe_show)
    show.add_argument("--against", metavar="RECIPE", help="also print the differences from this recipe")
    show.add_argument(
        "--ranks", type=at_least(int, 1), default=1, metavar="N", help="number of ranks to compute for (default: 1)"
    )
    add_recipe(show)
    add_new_recipe(actions)
    actions.add_parser("list", help="list the shipped recipes").set_defaults(command=run_recipe_list)
    explain = actions.add_parser("help", help="explain every setting, or those that a word finds")
    explain.set_defaults(command=run_recipe_help)
    explain.add_argument(
        "words", metavar="WORD", nargs="*", help="show only settings with these words in their name or help"
    )


def add_new_recipe(actions: "Subparsers") -> None:
    new = actions.add_parser(
        "new",
        help="write a recipe of your own that is like another one",
        description="Write a recipe that inherits from another one, with warm-up, intervals and HellaSwag items that"
        " suit its length and size. In a terminal, it asks for what the options do not say.",
        epilog="example: regpt recipe new my.toml --like demo-modern --text my-texts --steps '10 minutes'",
    )
    new.set_defaults(command=run_recipe_new)
    new.add_argument("file", type=Path, metavar="FILE", help="the recipe to write, such as my.toml")
    new.add_argument(
        "--like", default="demo-modern", metavar="RECIPE", help="the recipe to inherit from (default: demo-modern)"
    )
    new.add_argument(
        "--text",
        metavar="TEXT",
        help="a file, a folder, hub:OWNER/NAME/FOLDER, or a prepared dataset (default: its text)",
    )
    new.add_argument(
        "--tokenizer",
        metavar="TOKENIZER",
        help="gpt2, cl100k, o200k, or a tokenizer.json; the vocabulary follows (default: its tokenizer)",
    )
    new.add_argument(
        "--steps",
        metavar="LENGTH",
        help="steps (600), tokens ('2M tokens') or time on this machine ('10 minutes') (default: its steps)",
    )
    new.add_argument(
        "--size", metavar="SIZE", help="same, smaller (two thirds of layers and width) or larger (3/2) (default: same)"
    )


def run_demo(arguments: argparse.Namespace) -> int:
    from regpt.cli.demo import demo

    return demo(arguments.runs, arguments.overrides)


def run_recipe_new(arguments: argparse.Namespace) -> int:
    from regpt.base.format import short_count
    from regpt.new_recipe.draft import (
        Size,
        check_name,
        parse_size,
        size_values,
        text_of,
        tokenizer_values,
        values_of,
        write_recipe,
    )
    from regpt.new_recipe.intervals import with_values
    from regpt.new_recipe.length import Unit, parse_length, steps_of
    from regpt.recipe.settings import load_recipe

    file: Path = arguments.file
    check_name(file)
    base = load_recipe(arguments.like)
    question = "Text to train on: a file, a folder, hub:OWNER/NAME/FOLDER, or a prepared dataset"
    text = ask(question, base.data.source, arguments.text, lambda answer: text_of(answer, base, file.stem))
    if arguments.tokenizer is None and (text.tokenizer or base.run.init_from):
        tokenizer = tokenizer_values("", base, text)
    else:
        question = "Tokenizer: gpt2, cl100k, o200k, or the path of a tokenizer.json"
        parse = partial(tokenizer_values, base=base, text=text)
        tokenizer = ask(question, base.data.tokenizer, arguments.tokenizer, parse)
    once = base.batch_sizes.steps_for(text.tokens)
    question = "Length: in steps, in tokens (2M tokens) or in time (10 minutes)"
    question += f"; {once:,} steps read the text once" if once else ""
    default = f"{base.run.max_steps:,} steps"
    length = ask(question, default, arguments.steps, lambda answer: parse_length(answer) if answer else None)
    sizes = {size: with_values(base, [*text.values, *tokenizer, *size_values(base, size)]) for size in Size}
    question = ", ".join(
        f"{size} ({short_count(recipe.model.parameters)} parameters)" for size, recipe in sizes.items()
    )
    size = ask(f"Size: {question}", Size.SAME, arguments.size, parse_size)
    steps = steps_of(length, sizes[size]) if length else base.run.max_steps
    write_recipe(file, arguments.like, base, values_of(base, text, tokenizer, size, steps))
    speed = " at this machine's present speed" if length and length.unit is Unit.SECONDS else ""
    print(f"{file}: like {base.name}, {steps:,} steps{speed}; next: regpt plan {file}, regpt train {file}")
    return DONE


def ask(question: str, default: str, given: str | None, parse: "Callable[[str], Answer]") -> "Answer":
    """Return the parsed answer: the given one, or what the user writes in a terminal. Empty stands for the default.

    A wrong answer is an error if it was given, and asked for again in a terminal.
    """
    if given is not None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return parse(given or "")
    while True:
        try:
            return parse(input(f"{question} [Enter: {default}]: ").strip())
        except UserError as error:
            print(f"  {error}")
        except EOFError:
            raise KeyboardInterrupt from None


def run_recipe_show(arguments: argparse.Namespace) -> int:
    from regpt.base.format import scientific
    from regpt.data.sizes import epochs_text
    from regpt.interop.form import form_of, form_text
    from regpt.optimizer.schedule import cooldown_text
    from regpt.recipe.differences import differences
    from regpt.recipe.recipe import warmup_advice
    from regpt.recipe.settings import load_recipe, to_toml

    recipe = with_source(load_recipe(arguments.recipe, arguments.overrides), Path("runs"))
    print(to_toml(recipe))
    micro_batch = f"{recipe.data.micro_batch} x {recipe.model.block_size} tokens"
    if problems := list(recipe.batch_problems(arguments.ranks)):
        raise RecipeError(recipe.name, problems)
    on = f"each of {arguments.ranks} ranks" if arguments.ranks > 1 else "one device"
    model = recipe.model
    derived = {
        "parameters": f"{model.parameters:,}",
        **({"active": f"{model.active_parameters:,} ({model.experts_text} per token)"} if model.experts else {}),
        "accumulation": f"{recipe.accumulation_steps(arguments.ranks)} micro-batches of {micro_batch} on {on}",
        "tokens": f"{recipe.total_tokens:,} in {recipe.run.max_steps:,} steps",
        "warm-up": f"{recipe.warmup_tokens:,} tokens in {recipe.optimizer.warmup_steps:,} steps",
        **({"cooldown": cooldown_text(recipe)} if recipe.optimizer.schedule == "trapezoid" else {}),
        "FLOPs per token": f"{model.flops_per_token:,}",
        "FLOPs of the run": scientific(recipe.total_tokens * model.flops_per_token, 3),
        "epochs": epochs_text(recipe),
        "export": form_text(form_of(model)),
    }
    print("# Derived values")
    print("\n".join(f"#   {name:<16} {value}" for name, value in derived.items()))
    print("# Parameter groups")
    print("\n".join(f"#   {line}" for line in group_lines(recipe)))
    if recipe.is_warmup_too_long:
        advice = warmup_advice(recipe.optimizer.warmup_steps, recipe.run.max_steps)
        print(f"note: {advice}", file=sys.stderr)
    if arguments.against:
        other = load_recipe(arguments.against)
        print(f"\n# Differences from {other.name}")
        for setting, ours, theirs in differences(recipe, other) or [("nothing", "", "")]:
            print(f"#   {setting:<32} {ours}{f'   ({other.name}: {theirs})' if theirs != '' else ''}")
    return DONE


def group_lines(recipe: "Recipe") -> list[str]:
    """Describe each parameter group: its optimizer, peak rate and weight decay, and how much is in it.

    The two groups of plain AdamW are described without their sizes, which only the model knows: loading torch to build
    it takes seconds.
    """
    settings = recipe.optimizer
    if not settings.has_role_groups:
        decays = {"matrices": settings.weight_decay, "vectors": 0.0}
        return [f"{name:<16} AdamW, peak rate {settings.max_lr:g}, decay {decay:g}" for name, decay in decays.items()]
    from regpt.optimizer.groups import groups_of_recipe

    return [
        f"{group.name:<16} {group.method}, peak rate {group.peak_rate:g}, decay {group.decay:g}:"
        f" {group.size:,} parameters in {len(group.parameters)} tensor{'s' if len(group.parameters) > 1 else ''}"
        for group in groups_of_recipe(recipe)
    ]


def run_recipe_list(arguments: argparse.Namespace) -> int:
    from regpt.recipe.settings import shipped_recipes

    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"{name:<16} {first}")
    return DONE


def run_recipe_help(arguments: argparse.Namespace) -> int:
    from regpt.recipe.settings import SETTINGS, search_settings, toml_value

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
