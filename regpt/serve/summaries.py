"""The list of runs: the state and the last results of each, without parsing every step of every journal."""

import threading
import tomllib
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from regpt.base.errors import UserError
from regpt.serve.run_files import check_run, run_names
from regpt.tracking.environment import Environment
from regpt.tracking.journal import REWINDS, EventRecord, History, JournalReader, Record, StepRecord
from regpt.tracking.layout import RunPaths
from regpt.tracking.status import LAST_STEPS, RunActivity, read_environment, run_activity

STEP_LINE = b'{"kind": "step"'  # how a step's record begins


class SummaryReader(JournalReader):
    """A journal's reader that parses the records of the last steps only. All other records are in its history."""

    def reset(self) -> None:
        super().reset()
        self.last_lines: deque[bytes] = deque(maxlen=LAST_STEPS)

    def parse(self, line: bytes) -> Record | None:
        if not line.startswith(STEP_LINE):
            return super().parse(line)
        if line.endswith(b"\n"):
            self.last_lines.append(line)
        return None

    def add(self, record: Record) -> None:
        if isinstance(record, EventRecord) and isinstance(record.detail, REWINDS):
            self.parse_last_lines()  # the event drops some of them
        super().add(record)

    def parse_last_lines(self) -> None:
        parsed = (super(SummaryReader, self).parse(line) for line in self.last_lines)
        self.history.steps.extend(record for record in parsed if isinstance(record, StepRecord))
        del self.history.steps[:-LAST_STEPS]
        self.last_lines.clear()

    def update(self) -> History:
        super().update()
        self.parse_last_lines()
        return self.history


@dataclass(frozen=True)
class RunSummary:
    """A run as the list shows it."""

    name: str
    activity: RunActivity | None = None  # None where the run cannot be read
    max_steps: int | None = None  # None: unknown
    problem: str = ""  # why the run cannot be read

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of the median of the last steps; None before the second step."""
        steps = self.activity.history.steps if self.activity else []
        speeds = [
            (now.tokens - before.tokens) / now.seconds
            for before, now in pairwise(steps)
            if now.seconds > 0 and now.step == before.step + 1
        ]
        return median(speeds) if speeds else None


class SummarizedRun:
    """One run of the list, which is read again only where its files have changed."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.path = root, root / name
        self.reader = SummaryReader(self.path)
        self.seen: tuple[object, ...] = ()
        self.environment: Environment | None = None
        self.max_steps: int | None = None

    def summary(self) -> RunSummary:
        try:
            check_run(self.root, self.path)
            self.update()
        except (UserError, OSError) as error:
            problem = error.problem if isinstance(error, UserError) else str(error.strerror or error)
            return RunSummary(self.path.name, problem=problem)
        return RunSummary(
            self.path.name, run_activity(self.path, self.environment, self.reader.history), self.max_steps
        )

    def update(self) -> None:
        paths = RunPaths(self.path)
        now = tuple(map(identity, (paths.journal, paths.recipe, paths.environment)))
        if now[:1] != self.seen[:1]:
            self.reader.update()
        if now[1:] != self.seen[1:]:
            self.environment = read_environment(self.path)
            self.max_steps = read_max_steps(paths.recipe)
        self.seen = now


class RunSummaries:
    """The runs of a folder. Several threads may ask."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.Lock()
        self.runs: dict[str, SummarizedRun] = {}

    def list(self) -> list[RunSummary]:
        """Return a summary of each run, in order of their names."""
        with self.lock:
            names = run_names(self.root)
            self.runs = {name: self.runs.get(name) or SummarizedRun(self.root, name) for name in names}
            return [run.summary() for run in self.runs.values()]


def identity(path: Path) -> tuple[int, int, int] | None:
    """Return what changes if a file is written or replaced; None if there is no such file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_max_steps(recipe: Path) -> int | None:
    """Return run.max_steps of a run's recipe without checking the recipe; None where there is no such number.

    Raises UserError where the file is not TOML.
    """
    try:
        tables = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{recipe.name}: is not a TOML file ({error})", "copy the whole run directory") from None
    section = tables.get("run")
    steps = section.get("max_steps") if isinstance(section, dict) else None
    return steps if isinstance(steps, int) and steps > 0 else None
