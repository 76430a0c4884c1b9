"""The commands train, resume, checkpoints, replay and reproduce."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import CHECKPOINT, DONE, NUMERICS, UserError
from regpt.base.format import byte_size
from regpt.cli.arguments import add_command, add_overrides, add_recipe, add_run, add_runs, at_least

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


def add_checks(commands: "Subparsers") -> None:
    """Add checkpoints, replay and reproduce."""
    checkpoints = add_command(
        commands,
        "checkpoints",
        run_checkpoints,
        "list and verify the checkpoints of a run; exit code 4 if one is damaged",
    )
    add_run(checkpoints)

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
    from regpt.base.settings import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    name = recipe.name if arguments.name is None else arguments.name
    if not name or name != Path(name).name:
        raise UserError(f"--name '{name}' is not a valid run name", "use letters, digits, '-', '_' and '.', no slash")
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


def checkpoints_table(run: Path) -> tuple[bool, list[str]]:
    """Return (whether all are intact, a line per checkpoint: step, size, damage or "intact", validation loss)."""
    from regpt.checkpoint import store
    from regpt.tracking.journal import read_history

    losses = {record.step: record.loss for record in read_history(run).validations}
    best = min(losses.values(), default=None)
    lines, all_whole = [], True
    for step, path in store.list_checkpoints(run):
        problem = next(store.find_faults(path), None)
        all_whole = all_whole and problem is None
        size = sum(file.stat().st_size for file in path.iterdir())
        loss = (
            f"validation loss {losses[step]:.4f}{' (best)' if losses[step] == best else ''}" if step in losses else ""
        )
        lines.append(f"step {step:>8,}  {byte_size(size):>8}  {problem or 'intact'}  {loss}".rstrip())
    return all_whole, lines or [f"{run}: has no checkpoint yet"]
