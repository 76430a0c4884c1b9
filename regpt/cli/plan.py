"""The commands plan and doctor."""

import argparse
from typing import TYPE_CHECKING

from regpt.base.errors import DONE, UserError
from regpt.cli.arguments import add_command, add_recipe, add_runs, at_least

if TYPE_CHECKING:
    from regpt.cli.arguments import Subparsers


def add_plan(commands: "Subparsers") -> None:
    plan = add_command(
        commands,
        "plan",
        run_plan,
        "estimate memory, time, energy, cost and disk of a run",
        "examples: regpt plan gpt2-modern --gpu 'RTX 5090' --price 0.5\n"
        "          regpt plan gpt2-modern --gpu H100 --gpus 8\n"
        "          regpt plan gpt2-modern --gpu all\n"
        "          regpt plan demo-modern           this machine, measured for two seconds\n\n"
        "Trains nothing and writes nothing. docs/plan.md explains the estimates.",
    )
    plan.add_argument("--gpu", metavar="NAME", help="a GPU, or 'all' (default: this machine)")
    plan.add_argument("--gpus", type=at_least(int, 1), default=1, metavar="N", help="number of GPUs (default: 1)")
    plan.add_argument("--price", type=at_least(float, 0), metavar="USD", help="price of one GPU per hour")
    add_runs(plan)
    add_recipe(plan)


def add_doctor(commands: "Subparsers") -> None:
    doctor = add_command(
        commands,
        "doctor",
        run_doctor,
        "rehearse a run: do everything on a small scale before the real run",
        "example: regpt doctor demo-modern\n\n"
        "Trains a few small steps with the recipe's own model, data and machine, in a temporary folder. Checks data,\n"
        "first loss, overfitting one batch, a deterministic start, a kill and a resume, ranks, evaluation, samples,\n"
        "export and report; estimates memory, disk and time. Prints PASS, FAIL or SKIP, with a remedy. The exit code\n"
        "is that of the first failure. docs/plan.md shows an example.",
    )
    doctor.add_argument(
        "--ranks", type=at_least(int, 1), metavar="N", help="number of ranks of the run (default: number of GPUs)"
    )
    add_runs(doctor)
    add_recipe(doctor)


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
        from regpt.machine.device import free_memory, known_card, open_device
        from regpt.machine.limits import memory_limit
        from regpt.machine.load import process_seconds

        device = open_device(recipe.run)
        card = known_card(device.torch_device)
        if card is None:
            from regpt.plan.measure_cpu import measured_rates

            if device.torch_device.type == "cuda":
                raise UserError(f"{device.name}: its peak FLOP/s is unknown", "name a similar GPU: --gpu NAME")
            if arguments.gpus > 1:
                raise UserError(f"--gpus {arguments.gpus}: this machine has no GPU", "name one: --gpu NAME")
            start_seconds = process_seconds()  # a run loads the same and opens the same device
            plan = plan_for_this_machine(
                recipe,
                device.name,
                measured_rates(recipe, device),
                free_memory(device.torch_device),
                device.precision_name == "bfloat16",
                arguments.runs,
                memory_limit(),
                start_seconds,
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

    from regpt.doctor.runner import doctor
    from regpt.machine.device import local_device_count

    ranks = arguments.ranks or local_device_count(recipe.run)
    return doctor(recipe, arguments.runs, ranks, Terminal(highlight=False, soft_wrap=True))
