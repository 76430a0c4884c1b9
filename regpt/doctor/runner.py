"""Run the checks of `regpt doctor` and print one line per check, with the fix for each failure."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console as Terminal

from regpt.base.errors import CHECKPOINT, DATA, DONE, NUMERICS, RANKS, USAGE, UserError
from regpt.base.files import temporary_folder
from regpt.base.format import duration
from regpt.console.training import is_live_terminal
from regpt.distributed.signals import ImmediateStop, StopRequested
from regpt.doctor import artifacts, learning, reproducibility, resources
from regpt.doctor.checks import CheckResult, CheckSkipped, Status
from regpt.doctor.rehearsal import Rehearsal
from regpt.recipe.recipe import Recipe

Check = Callable[[Rehearsal], str]

# (check, exit code if it fails) by name, in the order in which a run would meet the problems.
CHECKS: dict[str, tuple[Check, int]] = {
    "machine": (resources.check_machine, USAGE),
    "data": (resources.check_data, DATA),
    "disk": (resources.check_disk, USAGE),
    "train": (learning.check_steps, NUMERICS),
    "memory": (resources.check_memory, USAGE),
    "first loss": (learning.check_first_loss, NUMERICS),
    "overfit one batch": (learning.check_overfitting, NUMERICS),
    "deterministic start": (reproducibility.check_start, NUMERICS),
    "save": (reproducibility.check_saved, CHECKPOINT),
    "kill and resume": (reproducibility.check_resume, CHECKPOINT),
    "ranks agree": (reproducibility.check_ranks, RANKS),
    "evaluate": (artifacts.check_evaluation, CHECKPOINT),
    "sample": (artifacts.check_samples, CHECKPOINT),
    "export": (artifacts.check_export, CHECKPOINT),
    "report": (artifacts.check_report, USAGE),
    "time": (resources.check_time, USAGE),
}
REQUIRED = ("machine", "data")  # if one of these fails, no other check can run
UNEXPECTED_FIX = "this is an error in regpt or of the machine; regpt train, resume or report shows the traceback"
STYLES = {Status.PASS: "green", Status.FAIL: "bold red", Status.SKIP: "dim"}
NAME_WIDTH = max(map(len, CHECKS))


def doctor(recipe: Recipe, runs: Path, ranks: int, terminal: Terminal) -> int:
    """Rehearse a recipe in a temporary folder in `runs`; return the exit code of the first failed check."""
    began_at, failed, count = time.monotonic(), list[CheckResult](), 0
    with ImmediateStop() as stopping, temporary_folder(runs, ".rehearsal-") as folder:
        try:
            terminal.print(f"Rehearsing {recipe.name} in {folder}", markup=False)
            with stopping.now():
                for result in run_checks(Rehearsal(recipe, folder, ranks), terminal=terminal):
                    show(result, terminal)
                    count += 1
                    failed += [result] if result.status is Status.FAIL else []
                    stopping.check()
        except StopRequested as stopped:
            terminal.file.write(f"stopped by {stopped.name}\n")  # a signal may interrupt rich within a line
            return stopped.code
    seconds = time.monotonic() - began_at
    if failed:
        names = ", ".join(result.name for result in failed)
        terminal.print(f"{len(failed)} of {count} checks failed ({names}) in {duration(seconds)}", style="bold red")
        return failed[0].exit_code
    terminal.print(f"No failures in {count} checks ({duration(seconds)})", style="bold green")
    return DONE


def run_checks(
    rehearsal: Rehearsal, names: Sequence[str] = tuple(CHECKS), terminal: Terminal | None = None
) -> Iterator[CheckResult]:
    """Run checks one by one and yield their results. Stop after a failure of a required check."""
    errors: dict[Exception, str] = {}
    for name in names:
        is_live = terminal is not None and is_live_terminal(terminal)
        with terminal.status(f"{name} …") if terminal is not None and is_live else nullcontext():
            result = run_check(rehearsal, name, errors)
        yield result
        if result.status is Status.FAIL and name in REQUIRED:
            return


def run_check(rehearsal: Rehearsal, name: str, errors: dict[Exception, str]) -> CheckResult:
    """Run one check. `errors` maps the errors of earlier checks to their names; the same error is reported once."""
    check, exit_code = CHECKS[name]
    began_at = time.monotonic()

    def result(status: Status, message: str, fix: str = "", code: int = exit_code, depends_on: str = "") -> CheckResult:
        return CheckResult(name, status, message, fix, time.monotonic() - began_at, code, depends_on)

    try:
        return result(Status.PASS, check(rehearsal))
    except CheckSkipped as skipped:
        return result(Status.SKIP, str(skipped))
    except StopRequested:
        raise
    except Exception as error:  # an unexpected error must not end the other checks
        if error in errors:
            return result(Status.SKIP, f"depends on: {errors[error]}", depends_on=errors[error])
        errors[error] = name
        if isinstance(error, UserError):
            return result(Status.FAIL, error.problem, error.fix, error.code if error.code != USAGE else exit_code)
        first_line = str(error).splitlines()[0] if str(error) else ""
        return result(Status.FAIL, f"{type(error).__name__}: {first_line}", UNEXPECTED_FIX)


def show(result: CheckResult, terminal: Terminal) -> None:
    """Print a result as one line, and a second line with the fix if the check failed."""
    line = f"{result.status.value}  {result.name:<{NAME_WIDTH}}  {result.message} ({duration(result.seconds)})"
    terminal.print(f"  {line}", style=STYLES[result.status], markup=False)
    if result.fix:
        terminal.print(f"        {'':<{NAME_WIDTH}}  fix: {result.fix}", markup=False)
