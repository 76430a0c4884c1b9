"""Tables for a terminal: the runs, and a run's checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from regpt.base.errors import UserError
from regpt.checkpoint import store
from regpt.evaluation.results import Result
from regpt.tracking.journal import read_history
from regpt.tracking.run import open_run, primary_accuracy
from regpt.tracking.status import state_of


def runs_table(paths: Sequence[Path]) -> Table:
    """A line for each run. Whether it runs says its process, as in `regpt watch`; its journal does not know."""
    table = Table(
        "run", "state", "step", "tokens", "validation loss", "HellaSwag", "tokens/s", box=None, pad_edge=False
    )
    for path in paths:
        try:
            run = open_run(path)
        except UserError as error:
            table.add_row(path.name, f"cannot be read: {error.problem}")
            continue
        state = state_of(run)
        loss = f"{run.validation_loss:.4f}" if run.validation_loss is not None else "—"
        step = f"{run.history.step:,}/{run.recipe.run.max_steps:,}"
        share = "{:.3f} ± {:.3f}".format(*primary_accuracy(run.hellaswag[-1])) if run.hellaswag else "—"
        speed = f"{run.tokens_per_second:,.0f}"
        table.add_row(run.id, state, step, f"{run.tokens:,}", loss, share, speed)
    return table


def results_table(results: Sequence[Result]) -> Table:
    """A line for each task and rule."""
    table = Table("task", "by", "elsewhere", "value", "± error", "of", box=None, pad_edge=False)
    previous = ""
    for result in results:
        is_new = result.task != previous
        table.add_row(
            result.task if is_new else "",
            result.metric,
            result.name_elsewhere,
            f"{result.value:.4f}",
            "" if result.error is None else f"{result.error:.4f}",
            result.dataset if is_new else "",
        )
        previous = result.task
    return table


def checkpoints_table(run: Path) -> tuple[bool, list[str]]:
    """(whether all are whole, a line for each checkpoint): step, size, what is wrong with it, validation loss."""
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
        lines.append(f"step {step:>8,}  {size / 1e6:>9,.1f} MB  {problem or 'whole'}  {loss}".rstrip())
    return all_whole, lines or [f"{run}: has no checkpoint yet"]
