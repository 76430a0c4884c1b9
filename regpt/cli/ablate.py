"""The command ablate."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import DONE
from regpt.cli.arguments import add_command, add_recipe, at_least
from regpt.cli.output import print_table

if TYPE_CHECKING:
    from regpt.ablation.design import Design
    from regpt.ablation.workers import Executor
    from regpt.cli.arguments import Subparsers

SMALLEST = 0.01  # nats; about 10 % of the tokens of a 124M model (docs/improvements.md)


def add_ablate(commands: "Subparsers") -> None:
    ablate = add_command(
        commands,
        "ablate",
        run_ablate,
        "measure the effect of changes to a recipe, over seeds, with an interval",
        "example: regpt ablate demo-modern --change model.qk_norm=true --change 'muon: optimizer.kind=muon'\n\n"
        "Trains the recipe (the base) and each change with the same seeds, so that they see the same windows in the\n"
        "same order. Writes FOLDER/ablation.md: the difference in final validation loss with its 95 % interval,\n"
        "tokens saved, time, memory, and the smallest difference that could have been found. The runs are in\n"
        "FOLDER/runs. Stop it at any time; the same command continues it, and more --seeds extend it.\n\n"
        "A fair comparison tunes every arm (the base and each change) alike: --tune rates=0.5,1,2 scales all learning\n"
        "rates by three factors, with a separate seed, and keeps the best factor for each arm.",
    )
    add_recipe(ablate)
    ablate.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="SETTINGS",
        help="settings of one change, separated by spaces; with a name: 'muon: optimizer.kind=muon'; repeatable",
    )
    ablate.add_argument(
        "--seeds", type=at_least(int, 1), default=3, metavar="N", help="number of seeds for each arm (default: 3)"
    )
    ablate.add_argument(
        "--tune",
        metavar="SETTING=A,B,C",
        help="setting to tune, and its values; rates=0.5,1,2 scales all learning rates",
    )
    ablate.add_argument(
        "--at-equal",
        choices=["tokens", "parameters", "flops", "time"],
        default="tokens",
        help="what is held equal between base and changes. tokens (default): the same steps; parameters: by choosing"
        " the width of the MLP; flops, time: by choosing the number of steps, from counted FLOPs or the measured time"
        " per token",
    )
    nulls = ablate.add_mutually_exclusive_group()
    nulls.add_argument(
        "--aa",
        action="store_const",
        const=1,
        default=0,
        help="add an A/A arm: the base with other initial weights, which should show no effect",
    )
    nulls.add_argument("--aa-arms", dest="aa", type=at_least(int, 1), metavar="N", help="add N A/A arms")
    ablate.add_argument(
        "--leave-one-out",
        action="store_true",
        help="add an arm with all changes, and arms with all changes but one, to measure interactions",
    )
    ablate.add_argument(
        "--smallest",
        type=at_least(float, 0.0),
        default=SMALLEST,
        metavar="NATS",
        help=f"smallest effect that matters; a design that could miss it is under-powered (default: {SMALLEST:g})",
    )
    add_execution(ablate)


def add_execution(ablate: argparse.ArgumentParser) -> None:
    """Add the options that say where the runs are kept and trained."""
    ablate.add_argument(
        "--into", type=Path, metavar="FOLDER", help="folder of the ablation (default: ablations/RECIPE)"
    )
    ablate.add_argument(
        "--jobs", type=at_least(int, 1), metavar="N", help="runs at a time (default: one per GPU, or per CPU core)"
    )
    ablate.add_argument(
        "--slurm",
        action="store_true",
        help="train each run as a Slurm job (pip install 'regpt[slurm]'); --jobs then limits the queued jobs",
    )
    ablate.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="option of the Slurm jobs, repeatable: time=04:00:00 (required), partition=gpu, gpus=1,"
        " setup='module load cuda', or any other of submitit's",
    )
    ablate.add_argument("--plan", action="store_true", help="list the runs and exit")


def run_ablate(arguments: argparse.Namespace) -> int:
    from regpt.ablation.calibration import with_stored_speeds
    from regpt.ablation.design import check_design
    from regpt.ablation.equality import Equal
    from regpt.ablation.laboratory import run_ablation

    folder = arguments.into or Path("ablations") / Path(arguments.recipe).stem
    design = design_of(arguments)
    check_design(design)
    if arguments.plan:
        design = with_stored_speeds(folder, design)
        if design.equal is Equal.TIME and not design.speeds:
            print("note: the numbers of steps will follow from a speed measurement, which comes first", file=sys.stderr)
        for trial in [*design.tuning_trials(), *design.seed_trials()]:
            print(f"{trial.run_name}: {' '.join(design.words_of(trial))}")
        return DONE
    executor = executor_of(arguments, folder, design)
    table, pages = run_ablation(folder, design, executor, arguments.smallest)
    print_table(table)
    print(f"report: {', '.join(str(page) for page in pages)}")
    return DONE


def executor_of(arguments: argparse.Namespace, folder: Path, design: "Design") -> "Executor":
    """Return where the runs are trained: on this machine, or as jobs of a cluster."""
    from regpt.ablation.laboratory import places_for
    from regpt.ablation.slurm import SlurmJobs, import_submitit, slurm_options
    from regpt.ablation.workers import Workers
    from regpt.base.errors import UserError
    from regpt.cli.prepare import option_of_executor

    if arguments.slurm:
        import_submitit()
        options = slurm_options([option_of_executor(word) for word in arguments.option])
        return SlurmJobs(folder, options, arguments.jobs or 0)
    if arguments.option:
        raise UserError("--option is for Slurm jobs", "add --slurm")
    return Workers(places_for(design, arguments.jobs))


def design_of(arguments: argparse.Namespace) -> "Design":
    """Return the design that the command line describes. Raises UserError for what is not a change."""
    from regpt.ablation.design import (
        BASE,
        Arm,
        Design,
        leave_one_out,
        null_arms,
        parse_change,
        parse_tuning,
    )
    from regpt.ablation.equality import Equal
    from regpt.base.errors import UserError
    from regpt.recipe.settings import load_recipe

    changes = [parse_change(text) for text in arguments.change]
    if not changes and not arguments.aa:
        raise UserError("no change is given", "name one, as in --change model.qk_norm=true")
    base = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.leave_one_out and len(changes) > 1:
        changes = [*changes, *leave_one_out(changes)]
    arms = [Arm(BASE), *changes, *null_arms(arguments.aa)]
    return Design(
        recipe=arguments.recipe,
        settings=tuple(arguments.overrides),
        arms=tuple(arms),
        seeds=tuple(base.run.seed + n for n in range(arguments.seeds)),
        tuning=parse_tuning(arguments.tune) if arguments.tune else None,
        threads=0 if base.run.threads else 1,
        equal=Equal(arguments.at_equal),
    )
