"""`regpt doctor`: everything that a run will do, done small, before the run: green or red, with the remedy."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console as Terminal

from regpt.base.errors import CHECKPOINT, DATA, DONE, NUMERICS, RANKS, USAGE, UserError
from regpt.base.recipe import Recipe
from regpt.distributed.signals import ImmediateStop, StopRequested
from regpt.doctor import artifacts, resources, training
from regpt.doctor.findings import CheckSkipped, Color, Finding
from regpt.doctor.rehearsal import Rehearsal

# By name, in the order in which a fault would be met: (the check, the exit code of its red).
CHECKS: dict[str, tuple[Callable[[Rehearsal], str], int]] = {
    "machine": (resources.check_machine, USAGE),
    "data": (resources.check_data, DATA),
    "disk": (resources.check_disk, USAGE),
    "train": (training.check_steps, NUMERICS),
    "memory": (resources.check_memory, USAGE),
    "first loss": (training.check_first_loss, NUMERICS),
    "one batch overfitted": (training.check_overfitting, NUMERICS),
    "two starts equal": (training.check_starts, NUMERICS),
    "save": (training.check_saved, CHECKPOINT),
    "kill and resume": (training.check_resume, CHECKPOINT),
    "ranks agree": (training.check_ranks, RANKS),
    "evaluate": (artifacts.check_evaluation, CHECKPOINT),
    "sample": (artifacts.check_samples, CHECKPOINT),
    "export": (artifacts.check_export, CHECKPOINT),
    "report": (artifacts.check_report, USAGE),
    "time": (resources.check_time, USAGE),
}
UNKNOWN = "this is a fault of regpt or of the machine; the same by hand (regpt train, resume, report) shows all of it"
NOT_TRIED = "not tried: {} has to be mended first"
FIRST = ("machine", "data")  # without these nothing else can be tried


def doctor(recipe: Recipe, runs: Path, ranks: int, terminal: Terminal) -> int:
    """Rehearse a recipe in a folder below `runs`, which goes afterwards; returns the exit code of the first red."""
    began_at, red, done = time.monotonic(), list[Finding](), 0
    with ImmediateStop() as stopping, empty_folder(runs) as folder:
        try:
            terminal.print(f"rehearsing {recipe.name} in {folder}", markup=False)
            with stopping.now():
                for finding in findings(Rehearsal(recipe, folder, ranks), announced=terminal):
                    show(finding, terminal)
                    done += 1
                    red += [finding] if finding.color == "red" else []
                    stopping.check()
        except StopRequested as stopped:
            terminal.file.write(f"stopped by {stopped.name}\n")  # the terminal itself may be stopped amid a line
            return stopped.code
    seconds = time.monotonic() - began_at
    if red:
        terminal.print(
            f"{len(red)} of {done} checks are red ({', '.join(f.name for f in red)}); {seconds:.0f} s", style="bold red"
        )
        return red[0].code
    terminal.print(f"nothing is red: {done} checks in {seconds:.0f} s", style="bold green")
    return DONE


@contextmanager
def empty_folder(runs: Path) -> Iterator[Path]:
    """A new folder in `runs`, which goes afterwards, with whatever had to be made above it."""
    made = [folder for folder in (runs, *runs.parents) if not folder.exists()]
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".rehearsal-", dir=runs))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for empty in made:  # innermost first
            with suppress(OSError):  # another rehearsal may be at work in it, or have removed it
                empty.rmdir()


def findings(
    of: Rehearsal, names: Sequence[str] = tuple(CHECKS), announced: Terminal | None = None
) -> Iterator[Finding]:
    """Carry out checks, one by one."""
    seen: dict[Exception, str] = {}
    for name in names:
        began_at = time.monotonic()
        if announced is not None and announced.is_terminal:
            with announced.status(f"{name} …"):
                color, said, remedy, code = run_check(of, name, seen)
        else:
            color, said, remedy, code = run_check(of, name, seen)
        yield Finding(name, color, said, remedy, time.monotonic() - began_at, code)
        if color == "red" and name in FIRST:
            return


def run_check(of: Rehearsal, name: str, seen: dict[Exception, str]) -> tuple[Color, str, str, int]:
    """(color, what was seen, the remedy, the exit code). An error that a check has met before is not met again."""
    check, code = CHECKS[name]
    try:
        return "green", check(of), "", code
    except CheckSkipped as nothing:
        return "grey", str(nothing), "", code
    except StopRequested:
        raise
    except UserError as error:
        if error in seen:
            return "grey", NOT_TRIED.format(seen[error]), "", code
        seen[error] = name
        return "red", error.problem, error.fix, error.code if error.code != USAGE else code
    except Exception as error:  # whatever it is, the other checks are worth having
        if error in seen:
            return "grey", NOT_TRIED.format(seen[error]), "", code
        seen[error] = name
        return "red", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", UNKNOWN, code


def show(finding: Finding, terminal: Terminal) -> None:
    style = {"green": "green", "red": "bold red", "grey": "dim"}[finding.color]
    mark = {"green": "green", "red": "RED  ", "grey": "—    "}[finding.color]
    terminal.print(f"  {mark}  {finding.name:<21} {finding.said} ({finding.seconds:.1f} s)", style=style, markup=False)
    if finding.remedy:
        terminal.print(f"         {'':<21} remedy: {finding.remedy}", markup=False)
