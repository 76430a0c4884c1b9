"""Which files of which runs the server may read: those inside the folder of runs, and no other.

A run may come from a stranger, with links to files of this machine in it. A name in a request is compared with the
names of the folder; no path is made of it.
"""

import os
import stat
from pathlib import Path

from regpt.base.errors import UserError
from regpt.tracking.layout import RECIPE_FILE, RunPaths

MOST_TEXT_BYTES = 4_000_000  # of a recipe or an environment


def run_names(root: Path) -> list[str]:
    """Return the names of the folders in `root` that hold a recipe, in order."""
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return []
    return sorted(name for name in names if os.path.lexists(root / name / RECIPE_FILE))


def find_served_run(root: Path, name: str) -> Path | None:
    """Return the directory of a run by its name in `root`; None without one."""
    return root / name if name in run_names(root) else None


def check_run(root: Path, run: Path) -> None:
    """Check that every file which is read of a run lies in it, and the run in `root`. Raises UserError."""
    if run.is_symlink() and not run.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{run.name}: is a link to another folder", "serve that folder's parent with --runs")
    paths = RunPaths(run)
    for path in (paths.recipe, paths.environment, paths.journal, paths.lock.with_name(f"{paths.lock.name}.holder")):
        check_file(run, path)


def check_file(run: Path, path: Path) -> bool:
    """Return whether a file of a run exists. Raises UserError if it is no file, or a link that leaves the run."""
    try:
        kind = path.lstat().st_mode
    except OSError:
        return False
    if stat.S_ISLNK(kind):
        if not path.resolve().is_relative_to(run.resolve()):
            raise UserError(f"{path.name}: is a link that leaves the run's folder", "replace it by the file itself")
        kind = path.stat().st_mode if path.exists() else kind
    if not stat.S_ISREG(kind):
        raise UserError(f"{path.name}: is not a file", "replace it by a file")
    return True


def read_text(run: Path, path: Path) -> str | None:
    """Read a text file of a run; None without one. Raises UserError as `check_file`, and for a huge file."""
    if not check_file(run, path):
        return None
    with path.open("rb") as file:
        content = file.read(MOST_TEXT_BYTES + 1)
    if len(content) > MOST_TEXT_BYTES:
        raise UserError(f"{path.name}: has more than {MOST_TEXT_BYTES:,} bytes", "look at the file itself")
    return content.decode("utf-8", errors="replace")
