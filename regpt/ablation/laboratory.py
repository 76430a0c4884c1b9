"""Run a whole ablation: prepare the data, tune, train every arm with every seed, and write the report."""

from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from regpt.ablation.calibration import calibrated
from regpt.ablation.design import Design, Trial, check_design, open_design
from regpt.ablation.effects import results_of
from regpt.ablation.equality import Speed
from regpt.ablation.page import write_page
from regpt.ablation.trials import best_values, run_trials
from regpt.ablation.wording import rows
from regpt.ablation.workers import Executor
from regpt.console.preparation import PreparationConsole
from regpt.console.training import Console
from regpt.distributed.signals import GracefulStop
from regpt.machine.device import best_device, local_device_count
from regpt.machine.env import visible_cuda_devices
from regpt.machine.limits import usable_cores
from regpt.preparation.dataset import open_or_prepare
from regpt.tracking.run import Run


def run_ablation(folder: Path, design: Design, executor: Executor, smallest: float) -> tuple[Table, list[Path]]:
    """Run what is missing of an ablation in `folder`; return the table of effects and the pages of the report.

    Raises UserError if the folder holds another design or if a run fails, StopRequested after a signal.
    """
    open_design(folder, design)
    recipes = [design.recipe_of(Trial(arm.name, design.seeds[0])) for arm in design.arms]
    with Console() as console:
        for recipe in {recipe.data: recipe for recipe in recipes}.values():
            open_or_prepare(recipe, PreparationConsole(console))
    tuning, trials = design.tuning_trials(), design.seed_trials()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with GracefulStop() as stopping, Progress(*columns) as progress:
        task = progress.add_task("runs", total=len(tuning) + len(trials))

        def finished(trial: Trial, run: Run) -> None:
            progress.console.print(f"{trial.run_name}: {run.validation_loss:.4f}", highlight=False)
            progress.advance(task)

        def measured(arm: str, speed: Speed) -> None:
            progress.console.print(f"{arm}: {1 / speed.token_seconds:,.0f} tokens/s", highlight=False)

        design = calibrated(folder, design, executor, measured, stopping.check)
        check_design(design)
        best = best_values(run_trials(folder, design, tuning, {}, executor, finished, stopping.check))
        runs = run_trials(folder, design, trials, best, executor, finished, stopping.check)
    results = results_of(design, runs, best, smallest)
    header, *others = rows(results)
    table = Table(*header)
    for row in others:
        table.add_row(*row)
    return table, write_page(folder, results)


def places_for(design: Design, jobs: int | None) -> list[str]:
    """Return a place for each run that trains at a time: cards by number, or "" for each core of a CPU."""
    run = design.recipe_of(design.seed_trials()[0]).run
    count = local_device_count(run)
    if count > 1:
        names = (visible_cuda_devices() or ",".join(map(str, range(count)))).split(",")
        return names[: jobs or count]
    is_on_cpu = best_device() == "cpu" if run.device == "auto" else run.device == "cpu"
    return [""] * (jobs or (usable_cores() if is_on_cpu else 1))
