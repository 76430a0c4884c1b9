"""What is new in a run since a reader's last request.

A resume or a rollback drops records of a journal's history, so a number of bytes or steps would not do as a position.
A cursor holds the number of records of each kind that its reader has. From the events that are new to the reader
follows how many of these are still part of the history; the reader drops the others and appends the rest.
"""

import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Self

from regpt.serve.curves import curve_points
from regpt.serve.run_files import check_run
from regpt.serve.run_json import event_json, record_json, status_json
from regpt.tracking.journal import REWINDS, History
from regpt.tracking.status import RunMonitor, RunStatus

MOST_FOLLOWED = 12  # runs whose whole history is in memory
STEPLESS = float("inf")
LISTS = ("validations", "tasks", "samples", "skipped", "checkpoints")  # sent record by record


@dataclass(frozen=True)
class Cursor:
    """How much of a run a reader has: the number of records of each kind."""

    journal: int = 0  # which journal
    largest: int = 0  # steps of the largest point of the curves
    events: int = 0
    steps: int = 0
    validations: int = 0
    tasks: int = 0
    samples: int = 0
    skipped: int = 0
    checkpoints: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a cursor that `str` wrote. Raises ValueError for any other text."""
        numbers = [int(word) for word in text.split(".")] if text else []
        if text and (len(numbers) != len(astuple(cls())) or min(numbers) < 0):
            raise ValueError(text)
        return cls(*numbers)

    def __str__(self) -> str:
        return ".".join(map(str, astuple(self)))


def journal_identity(history: History) -> int:
    """Return a number that another journal under the same name does not have."""
    first = history.events[0] if history.events else None
    return zlib.crc32(repr((first.at, first.step)).encode()) if first else 0


def kept_counts(history: History, cursor: Cursor) -> Cursor:
    """Return how many of a reader's records of each kind are still part of the history, from the first on."""
    journal = journal_identity(history)
    if cursor.journal != journal or cursor.events > len(history.events):
        return Cursor(journal=journal)
    new = history.events[cursor.events :]
    last_step = min((event.step for event in new if isinstance(event.detail, REWINDS)), default=STEPLESS)

    def kept(count: int, records: Sequence[Any]) -> int:
        return min(count, bisect_right(records, last_step, key=lambda record: record.step))

    return Cursor(
        journal,
        cursor.largest,
        cursor.events,
        kept(cursor.steps, history.steps),
        *(kept(getattr(cursor, name), getattr(history, name)) for name in LISTS),
    )


def update_since(status: RunStatus, cursor: Cursor) -> dict[str, Any]:
    """Return the status, the new records, and the cursor of a reader that has them.

    Each list has `from`: the reader keeps that many of its records, or points of the curves, and appends the new ones.
    """
    history = status.history
    kept = kept_counts(history, cursor)
    curves = curve_points(history.steps, status.recipe.batch_tokens, kept.steps, kept.largest)
    counts = {name: len(getattr(history, name)) for name in ("events", "steps", *LISTS)}
    lists = {
        name: {
            "from": getattr(kept, name),
            "records": [record_json(one) for one in getattr(history, name)[getattr(kept, name) :]],
        }
        for name in LISTS
    }
    return {
        "cursor": str(Cursor(journal=kept.journal, largest=curves["largest"], **counts)),
        "status": status_json(status),
        "curves": curves,
        "events": {"from": kept.events, "records": [event_json(event) for event in history.events[kept.events :]]},
        **lists,
    }


class FollowedRuns:
    """The runs that were asked for last, each read on from where it was read before. Several threads may ask."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.Lock()
        self.runs: OrderedDict[Path, tuple[threading.Lock, RunMonitor]] = OrderedDict()

    def update(self, run: Path, cursor: Cursor) -> dict[str, Any]:
        """Return what is new. Raises UserError where the run cannot be read."""
        check_run(self.root, run)
        own_lock, monitor = self.monitor(run)
        with own_lock:
            return update_since(monitor.update(), cursor)

    def status(self, run: Path) -> RunStatus:
        """Return a run's status. Its history changes with the next update."""
        check_run(self.root, run)
        own_lock, monitor = self.monitor(run)
        with own_lock:
            return monitor.update()

    def monitor(self, run: Path) -> tuple[threading.Lock, RunMonitor]:
        with self.lock:
            if run not in self.runs:
                self.runs[run] = (threading.Lock(), RunMonitor(run))
            self.runs.move_to_end(run)
            while len(self.runs) > MOST_FOLLOWED:
                self.runs.popitem(last=False)
            return self.runs[run]
