"""The commands train, resume, cooldown, replay and reproduce."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import DONE, NUMERICS, UserError
from regpt.cli.arguments import add_command, add_overrides, add_recipe, add_run, add_runs, at_least
from regpt.recipe.schema import has_surrogates

if TYPE_CHECKING:
    from regpt.cli.arguments import Subparsers


def add_train(commands: "Subparsers") -> None:
    train = add_command(
        commands,
        "train",
        run_train,
        "train a model from scratch",
        "example: regpt train demo-modern run.max_steps=20 --name trial\n\n"
        "Writes runs/NAME. A missing dataset is prepared first, unless it must be downloaded. Ctrl-C saves a\n"
        "checkpoint and prints the command that resumes the run.",
        on_ranks=True,
    )
    train.add_argument("--name", metavar="NAME", help="name of the run (default: the recipe's name)")
    add_runs(train)
    add_recipe(train)


def add_resume(commands: "Subparsers") -> None:
    resume = add_command(
        commands,
        "resume",
        run_resume,
        "continue a run from its newest intact checkpoint",
        "examples: regpt resume gpt2-modern\n"
        "          regpt resume gpt2-modern run.max_steps=40000\n\n"
        "Settings that do not change results may differ, such as data.path after a dataset has moved. More steps and\n"
        "other evaluations are allowed and recorded. Any other change is refused; docs/settings.md lists which.",
        on_ranks=True,
    )
    add_run(resume)
    add_overrides(resume)


def add_cooldown(commands: "Subparsers") -> None:
    cooldown = add_command(
        commands,
        "cooldown",
        run_cooldown,
        "branch a trapezoid run at a checkpoint, and cool the branch down",
        "examples: regpt cooldown gpt2-steady\n"
        "          regpt cooldown gpt2-steady --at 10000 --steps 2500 --name steady-12500\n\n"
        "With optimizer.schedule = 'trapezoid' the learning rate stays constant until the cooldown, in which it falls\n"
        "to min_lr and the loss drops considerably. This command makes a new run from the history and the weights of\n"
        "RUN after STEP steps, and trains it through a cooldown: the result is the same as if the recipe had had\n"
        "this cooldown from the start. So one long run gives finished models of several lengths. RUN may still be\n"
        "training; it is only read.\n\n"
        "The new run is stopped, resumed, evaluated and reported like any other. Its journal names RUN, STEP and the\n"
        "digest of the checkpoint, whose files are hard-linked, not copied, if the file system allows it.",
        on_ranks=True,
    )
    add_run(cooldown)
    cooldown.add_argument(
        "--at",
        type=at_least(int, 1),
        metavar="STEP",
        help="step of RUN at which to branch; it needs a checkpoint (default: the newest intact checkpoint)",
    )
    cooldown.add_argument(
        "--steps",
        type=at_least(int, 1),
        metavar="N",
        help="number of steps of the cooldown (default: the recipe's optimizer.cooldown_steps; if that is 0, STEP / 4)",
    )
    cooldown.add_argument("--name", metavar="NEW", help="name of the new run (default: RUN-cooldown-STEP)")
    add_overrides(cooldown)


def add_checks(commands: "Subparsers") -> None:
    """Add replay and reproduce."""
    replay = add_command(
        commands,
        "replay",
        run_replay,
        "print the batch of a step, and verify it against the journal",
        "example: regpt replay gpt2-modern --step 1200 | head",
    )
    add_run(replay)
    replay.add_argument("--step", type=at_least(int, 1), required=True, metavar="N", help="step, counted from 1")
    replay.add_argument("--text", action="store_true", help="print the whole text, not only the beginning")

    reproduce = add_command(
        commands,
        "reproduce",
        run_reproduce,
        "train the first steps of a run again and compare them; exit code 5 if they differ",
        "example: regpt reproduce demo-modern --steps 5",
        on_ranks=True,
    )
    add_run(reproduce)
    reproduce.add_argument(
        "--steps", type=at_least(int, 1), default=10, metavar="K", help="steps to train (default: 10)"
    )


def run_train(arguments: argparse.Namespace) -> int:
    from regpt.recipe.settings import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    name = checked_name(recipe.name if arguments.name is None else arguments.name)
    from regpt.console.training import Console
    from regpt.training.start import start_training

    return start_training(recipe, arguments.runs / name, console=Console(), handle_signals=True).exit_code


def checked_name(name: str) -> str:
    """Return the name of a new run. Raises UserError if a directory cannot have it."""
    if not name or name != Path(name).name or has_surrogates(name):
        raise UserError(f"--name '{name}' is not a valid run name", "use letters, digits, '-', '_' and '.', no slash")
    return name


def run_resume(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.console.training import Console
    from regpt.training.start import resume_training

    return resume_training(path, arguments.overrides, console=Console(), handle_signals=True).exit_code


def run_cooldown(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run

    target = None if arguments.name is None else arguments.runs / checked_name(arguments.name)
    source = find_run(arguments.run, arguments.runs)
    from regpt.branching.branch import start_cooldown
    from regpt.console.training import Console

    return start_cooldown(
        source,
        target,
        arguments.at,
        arguments.steps,
        arguments.overrides,
        console=Console(),
        handle_signals=True,
    ).exit_code


def run_replay(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.training.reproduce import replay

    for line in replay(path, arguments.step, arguments.text):
        print(line)
    return DONE


def run_reproduce(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.console.training import Console
    from regpt.training.reproduce import reproduce

    divergence = reproduce(path, arguments.steps, print, console=Console(), handle_signals=True)
    if divergence is None:
        print(f"{path}: reproduced, identical to the bit")
        return DONE
    print(
        f"{path}: differs at step {divergence.step:,}: {divergence.field} is {divergence.expected} in the journal,"
        f" {divergence.actual} now; another machine, number of ranks or threads, or version of torch can cause this"
        " (see environment.json)"
    )
    return NUMERICS
