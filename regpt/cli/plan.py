"""The commands plan, bench and doctor."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import DONE, UserError
from regpt.cli.arguments import add_command, add_recipe, add_runs, at_least, with_source, without_source

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


def add_bench(commands: "Subparsers") -> None:
    bench = add_command(
        commands,
        "bench",
        run_bench,
        "measure what this machine achieves with a recipe, in about a minute",
        "examples: regpt bench gpt2-modern\n"
        "          regpt bench gpt2-modern data.micro_batch=64 --seconds 20\n"
        "          regpt bench demo-modern --json bench.json\n\n"
        "Trains real steps on synthetic tokens, on one device; needs no dataset and leaves nothing behind. Prints\n"
        "tokens/s, the share of the device's peak and memory, next to what `regpt plan` predicts and what others\n"
        "published for the same GPU; then the time of a validation batch, a group of HellaSwag items, a sampled token\n"
        "and a checkpoint, and the hours of the whole run at these speeds. If three steps take longer than --seconds,\n"
        "they are timed with fewer micro-batches. Close other programs: next to them the figures are too low.",
    )
    bench.add_argument(
        "--seconds",
        type=at_least(float, 0),
        default=60.0,
        metavar="N",
        help="time of the steps after the warm-up, at least three steps (default: 60)",
    )
    bench.add_argument("--steps-only", action="store_true", help="time training steps and nothing else of a run")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write all figures and settings to this file")
    bench.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="folder in which one checkpoint is written and deleted (default: runs)",
    )
    add_recipe(bench)


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
    from regpt.plan.summary import plan_for_cards, plan_for_this_machine
    from regpt.plan.wording import plan_lines
    from regpt.recipe.settings import load_recipe

    recipe = with_source(load_recipe(arguments.recipe, arguments.overrides), arguments.runs)
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


def run_bench(arguments: argparse.Namespace) -> int:
    from regpt.base.files import temporary_folder, write_json
    from regpt.recipe.settings import load_recipe

    recipe = without_source(with_source(load_recipe(arguments.recipe, arguments.overrides), arguments.runs))
    file = arguments.json
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        problem = "is a folder" if file.is_dir() else "its folder does not exist"
        raise UserError(f"--json {file}: {problem}", "name a file in a folder that exists")
    from regpt.bench.runner import bench
    from regpt.bench.wording import bench_lines
    from regpt.console.training import Console
    from regpt.distributed.signals import ImmediateStop, StopRequested

    with ImmediateStop() as stopping, temporary_folder(arguments.runs, ".bench-") as folder:
        try:
            with stopping.now(), Console() as console:
                result = bench(recipe, folder, arguments.runs, arguments.seconds, console, arguments.steps_only)
        except StopRequested as stopped:
            print(f"stopped by {stopped.name}")
            return stopped.code
    print("\n".join(bench_lines(result)))
    if file is not None:
        write_json(file, result.to_json())
    return DONE


def run_doctor(arguments: argparse.Namespace) -> int:
    from regpt.recipe.settings import load_recipe

    recipe = with_source(load_recipe(arguments.recipe, arguments.overrides), arguments.runs)
    if recipe.run.init_from:
        print(f"the rehearsal has the shape of {recipe.run.init_from}, and starts from initial weights")
        recipe = without_source(recipe)
    from rich.console import Console as Terminal

    from regpt.doctor.runner import doctor
    from regpt.machine.device import local_device_count

    ranks = arguments.ranks or local_device_count(recipe.run)
    return doctor(recipe, arguments.runs, ranks, Terminal(highlight=False, soft_wrap=True))
