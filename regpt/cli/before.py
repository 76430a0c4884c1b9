"""Commands before a run: demo, recipe, plan, doctor, prepare, data."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import DATA, DONE, RecipeError, UserError
from regpt.cli.arguments import Commands, add_directory, add_overrides, add_recipe, add_runs, at_least

if TYPE_CHECKING:
    pass


def add(command: Commands) -> None:
    demo = command("demo", run_demo, "prepare, train classic, train modern, compare: the whole way in miniature")
    add_runs(demo)
    add_overrides(demo)

    recipe = command("recipe", run_recipe_help, "look at recipes and settings")
    looks = recipe.add_subparsers(metavar="show|list|help", required=True)
    show = looks.add_parser("show", help="a recipe, resolved, and what follows from it")
    show.set_defaults(command=run_recipe_show)
    show.add_argument("--against", metavar="RECIPE", help="another one; prints what differs")
    show.add_argument(
        "--ranks", type=at_least(int, 1), default=1, metavar="N", help="that it shall run on (default: 1)"
    )
    add_recipe(show)
    looks.add_parser("list", help="the recipes that regpt comes with").set_defaults(command=run_recipe_list)
    looks.add_parser("help", help="every setting, its default and its meaning").set_defaults(command=run_recipe_help)

    plan = command(
        "plan",
        run_plan,
        "tell what a recipe will take: memory, time, energy, money, disk; and what cannot be",
        "examples: regpt plan gpt2-modern --gpu 'RTX 5090' --price 0.5\n"
        "          regpt plan gpt2-modern --gpu H100 --gpus 8\n"
        "          regpt plan gpt2-modern --gpu all\n"
        "          regpt plan demo-modern           this machine, measured for two seconds\n\n"
        "Nothing is trained and nothing is written. docs/plan.md tells what the ranges rest on.",
    )
    plan.add_argument("--gpu", metavar="NAME", help="a card, or 'all' (default: what this machine has)")
    plan.add_argument("--gpus", type=at_least(int, 1), default=1, metavar="N", help="how many (default: 1)")
    plan.add_argument("--price", type=at_least(float, 0), metavar="USD", help="of one card for an hour")
    add_runs(plan)
    add_recipe(plan)

    doctor = command(
        "doctor",
        run_doctor,
        "rehearse a run: everything it will do, small, before it; green or red, with the remedy",
        "example: regpt doctor demo-modern\n\n"
        "A few small steps with the recipe's own model, data and machine, in a folder that goes afterwards: data\n"
        "verified, first loss, one batch overfitted, two starts equal, saved, killed, resumed, ranks, evaluated,\n"
        "sampled, exported, reported; memory, disk and time. A minute for the miniature on two CPU cores.\n"
        "docs/plan.md shows what it says. The exit code is that of the first red.",
    )
    doctor.add_argument(
        "--ranks",
        type=at_least(int, 1),
        metavar="N",
        help="that the run shall have (default: as many as there are cards)",
    )
    add_runs(doctor)
    add_recipe(doctor)

    prepare = command(
        "prepare",
        run_prepare,
        "turn text into a sealed data set of token shards",
        "example: regpt prepare demo-modern data.source=my-texts data.path=data/mine data.validation_tokens=20000\n\n"
        "data.source is a file or a folder of text (.txt, .md, .py …), JSON lines (.jsonl, .jsonl.gz, .jsonl.zst)\n"
        "or parquet; 'stdlib', the sources of Python's standard library; or hub:OWNER/NAME/FOLDER.\n\n"
        "Stopped or killed, the same command goes on where it was. docs/data.md tells the whole way.",
    )
    prepare.add_argument(
        "--executor",
        choices=["local", "slurm"],
        help="prepare by datatrove, a file a task, on a cluster (pip install 'regpt[cluster]')",
    )
    prepare.add_argument("--tasks", type=at_least(int, 1), metavar="N", help="of the executor (default: 14)")
    prepare.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="of the executor, such as partition=cpu, time=04:00:00, cpus_per_task=2",
    )
    add_recipe(prepare)

    data = command("data", run_data_show, "take over other people's shards; verify and look at data sets")
    handled = data.add_subparsers(metavar="import|verify|show", required=True)
    taken_over = handled.add_parser(
        "import",
        help="use a folder of build-nanogpt's .npy, or llm.c's or modded-nanogpt's .bin shards",
        description="Read a folder of token shards once and give it a manifest. The shards stay as they are.",
        epilog="example: regpt data import edu_fineweb10B && regpt train gpt2-modern data.path=edu_fineweb10B",
    )
    taken_over.set_defaults(command=run_data_import)
    add_directory(taken_over)
    taken_over.add_argument(
        "--into", type=Path, metavar="FOLDER", help="make a folder of links instead, where DIR cannot be written"
    )
    verified = handled.add_parser("verify", help="read all of a data set again and hold it against its manifest")
    verified.set_defaults(command=run_data_verify)
    add_directory(verified)
    shown = handled.add_parser(
        "show",
        help="what is in a data set",
        epilog="example: regpt data show data/fineweb-edu-10BT --window 12 --text",
    )
    shown.set_defaults(command=run_data_show)
    add_directory(shown)
    shown.add_argument("--window", type=at_least(int, 0), metavar="N", help="print this window's tokens")
    shown.add_argument("--text", action="store_true", help="… as text")
    shown.add_argument("--split", choices=["train", "val"], default="train", help="of the window (default: train)")
    shown.add_argument(
        "--block-size", type=at_least(int, 1), default=1024, metavar="N", help="tokens in a window (default: 1024)"
    )


def run_demo(arguments: argparse.Namespace) -> int:
    from regpt.cli.demo import demo

    return demo(arguments.runs, arguments.overrides)


def run_recipe_show(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import differences, load_recipe, to_toml
    from regpt.data.sizes import epochs_text

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    print(to_toml(recipe))
    micro_batch = f"{recipe.data.micro_batch} x {recipe.model.block_size} tokens"
    if problems := list(recipe.batch_problems(arguments.ranks)):
        raise RecipeError(recipe.name, problems)
    on = f"each of {arguments.ranks} ranks" if arguments.ranks > 1 else "one device"
    follows = {
        "parameters": f"{recipe.model.parameters:,}",
        "accumulation": f"{recipe.accumulation_steps(arguments.ranks)} micro-batches of {micro_batch} on {on}",
        "tokens": f"{recipe.total_tokens:,} in {recipe.run.max_steps:,} steps",
        "warm-up": f"{recipe.warmup_tokens:,} tokens in {recipe.optimizer.warmup_steps:,} steps",
        "FLOPs per token": f"{recipe.model.flops_per_token:,}",
        "FLOPs in all": f"{recipe.total_tokens * recipe.model.flops_per_token:.3g}",
        "epochs": epochs_text(recipe),
    }
    print("# What follows")
    print("\n".join(f"#   {name:<16} {value}" for name, value in follows.items()))
    if arguments.against:
        other = load_recipe(arguments.against)
        print(f"\n# What differs from {other.name}")
        for setting, ours, theirs in differences(recipe, other) or [("nothing", "", "")]:
            print(f"#   {setting:<32} {ours}{f'   (there: {theirs})' if theirs != '' else ''}")
    return DONE


def run_recipe_list(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import shipped_recipes

    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"{name:<16} {first}")
    return DONE


def run_recipe_help(arguments: argparse.Namespace) -> int:
    from dataclasses import fields

    from regpt.base.recipe import SECTIONS, Recipe
    from regpt.base.settings import toml_value

    for section in SECTIONS:
        print(f"[{section}]")
        for f in fields(getattr(Recipe(name="defaults"), section)):
            print(f"  {f.name} = {toml_value(f.default)}\n      {f.metadata['help']}")
    return DONE


def run_plan(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import load_recipe
    from regpt.plan.summary import plan_for_cards, plan_for_this_machine
    from regpt.plan.wording import plan_lines

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    price = arguments.price
    if price is None and recipe.run.price_per_hour:
        price = recipe.run.price_per_hour / arguments.gpus
    name = arguments.gpu
    if name is None:
        from regpt.distributed.device import free_memory, known_card, open_device

        device = open_device(recipe.run)
        card = known_card(device.torch_device)
        if card is None:
            from regpt.plan.measure_cpu import measured_rates

            if device.torch_device.type == "cuda":
                raise UserError(f"{device.name}: its peak is not known here", "name a card that is near: --gpu NAME")
            if arguments.gpus > 1:
                raise UserError(f"--gpus {arguments.gpus}: this machine has no card", "say which: --gpu NAME")
            seconds = measured_rates(recipe, device).step_seconds(recipe)
            bfloat16 = device.precision_name == "bfloat16"
            plan = plan_for_this_machine(
                recipe, device.name, seconds, free_memory(device.torch_device), bfloat16, arguments.runs
            )
            print("\n".join(plan_lines(plan)))
            return DONE
        name = card.name
    plan = plan_for_cards(recipe, name, arguments.gpus, price, arguments.runs)
    print("\n".join(plan_lines(plan)))
    return DONE


def run_doctor(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from rich.console import Console as Terminal

    from regpt.distributed.device import local_device_count
    from regpt.doctor.runner import doctor

    ranks = arguments.ranks or local_device_count(recipe.run)
    return doctor(recipe, arguments.runs, ranks, Terminal(highlight=False, soft_wrap=True))


def run_prepare(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import load_recipe
    from regpt.console.preparation import PreparationConsole
    from regpt.console.training import Console
    from regpt.preparation.dataset import prepare

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.executor is None and (arguments.option or arguments.tasks is not None):
        raise UserError("--tasks and --option are for an executor", "add --executor local or slurm")
    if arguments.executor is not None:
        from regpt.preparation.cluster import logs_folder, prepare_on

        options = dict(option_of_executor(word) for word in arguments.option)
        made = prepare_on(arguments.executor, recipe, arguments.tasks or 14, options)
        if made is None:
            print(f"queued; {recipe.data.path} is there when the last job has ended. Logs: {logs_folder(recipe)}")
            return DONE
        manifest = made
    else:
        with Console() as console, console.stoppable():
            manifest = prepare(recipe, PreparationConsole(console))
    print(f"digest {manifest.digest}")
    return DONE


def option_of_executor(word: str) -> tuple[str, str | int]:
    key, equals, value = word.partition("=")
    if not (key and equals):
        raise UserError(f"--option {word}: is no KEY=VALUE", "write it as in --option partition=cpu")
    return key, int(value) if value.isdecimal() else value


def run_data_import(arguments: argparse.Namespace) -> int:
    from regpt.console.preparation import ReadingConsole
    from regpt.console.training import Console
    from regpt.data.import_shards import find_shards, import_shards

    found = find_shards(arguments.directory)
    with Console() as console:
        manifest = import_shards(arguments.directory, found, arguments.into, ReadingConsole(console, "import"))
    where = arguments.into or arguments.directory
    print(
        f"{where}: {manifest.tokens('train'):,} training and {manifest.tokens('val'):,} validation tokens"
        f" in {len(manifest.shards)} shards; train on it with data.path={where}"
    )
    print(f"digest {manifest.digest}")
    return DONE


def run_data_verify(arguments: argparse.Namespace) -> int:
    from regpt.console.preparation import ReadingConsole
    from regpt.console.training import Console
    from regpt.data.import_shards import verify
    from regpt.data.shards import read_manifest

    shards = read_manifest(arguments.directory).shards
    with Console() as console:
        problems = list(verify(arguments.directory, ReadingConsole(console, "verify")))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        fix = "get or make these again before training on them"
        print(f"error: {len(problems)} of {len(shards)} shards are not what was sealed — {fix}", file=sys.stderr)
        return DATA
    print(f"{arguments.directory}: all {len(shards)} shards are what was sealed")
    return DONE


def run_data_show(arguments: argparse.Namespace) -> int:
    from regpt.data.inspect import describe, describe_window

    if arguments.window is None:
        lines = describe(arguments.directory, arguments.block_size)
    else:
        wanted = (arguments.split, arguments.window, arguments.block_size, arguments.text)
        lines = describe_window(arguments.directory, *wanted)
    for line in lines:
        print(line)
    return DONE
