"""Commands that train, and what is kept of it: train, resume, checkpoints, replay, reproduce."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import CHECKPOINT, DONE, NUMERICS, UserError
from regpt.cli.arguments import Commands, add_overrides, add_recipe, add_run, add_runs, at_least

if TYPE_CHECKING:
    pass


def add(command: Commands) -> None:
    train = command(
        "train",
        run_train,
        "train a model from nothing",
        "example: regpt train demo-modern run.max_steps=20 --name trial\n\n"
        "A data set that is missing is prepared first, where its text is at hand. Ctrl-C saves and says how to go on.",
        on_ranks=True,
    )
    train.add_argument("--name", metavar="NAME", help="of the run; the recipe's name if not given")
    add_runs(train)
    add_recipe(train)

    resume = command(
        "resume",
        run_resume,
        "go on from a run's newest whole checkpoint",
        "Settings that change no result may be given anew, such as data.path when the data set has moved; and more\n"
        "steps (run.max_steps=…) and other looks (evaluation.…), which is written down. The rest is refused.",
        on_ranks=True,
    )
    add_run(resume)
    add_overrides(resume)

    checkpoints = command(
        "checkpoints",
        run_checkpoints,
        "list a run's checkpoints and hold each against its hashes; exit code 4 if one is not",
    )
    add_run(checkpoints)

    replay = command(
        "replay",
        run_replay,
        "show what a step trained on, and that it is what the journal says",
        "example: regpt replay gpt2-modern --step 1200 | head",
    )
    add_run(replay)
    replay.add_argument("--step", type=at_least(int, 1), required=True, metavar="N", help="the step, counted from 1")
    replay.add_argument("--text", action="store_true", help="all of the text, not only its beginning")

    reproduce = command(
        "reproduce",
        run_reproduce,
        "train a run's first steps again and say where, if anywhere, the two part; exit code 5 if they do",
        on_ranks=True,
    )
    add_run(reproduce)
    reproduce.add_argument("--steps", type=at_least(int, 1), default=10, metavar="K", help="to train (default: 10)")


def run_train(arguments: argparse.Namespace) -> int:
    from regpt.base.settings import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    name = recipe.name if arguments.name is None else arguments.name
    if not name or name != Path(name).name:
        raise UserError(f"--name '{name}' is no name of a run", "use letters, digits, '-', '_' and '.', no slash")
    from regpt.console.training import Console
    from regpt.training.start import start_training

    return start_training(recipe, arguments.runs / name, console=Console(), handle_signals=True).exit_code


def run_resume(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.console.training import Console
    from regpt.training.start import resume_training

    return resume_training(path, arguments.overrides, console=Console(), handle_signals=True).exit_code


def run_checkpoints(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run

    path = find_run(arguments.run, arguments.runs)
    from regpt.cli.tables import checkpoints_table

    all_whole, lines = checkpoints_table(path)
    print("\n".join(lines))
    return DONE if all_whole else CHECKPOINT


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
