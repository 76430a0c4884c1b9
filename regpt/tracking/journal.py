"""The journal of a run: one typed record per line, appended and never rewritten; every report reads it."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from regpt.base.files import append_line, end_last_line
from regpt.tracking.events import Detail, Event, OutOfMemory, Resumed, Rollback, Started, parse_detail
from regpt.tracking.layout import RunPaths
from regpt.tracking.old_journals import current_task_fields
from regpt.tracking.rejections import Rejection

D = TypeVar("D")


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """An optimizer step. `step` counts completed steps, so the first record's is 1."""

    kind: ClassVar[str] = "step"
    step: int
    tokens: int  # seen in training so far
    loss: float  # mean over the global batch, nats per token
    gradient_norm: float  # before clipping
    learning_rate: float
    seconds: float  # of this step; evaluation and saving excluded
    batch: str  # digest of the windows and tokens


@dataclass(frozen=True, kw_only=True)
class SkippedRecord:
    """A step that the guard skipped: its batch is used up, the weights are unchanged."""

    kind: ClassVar[str] = "skipped"
    step: int  # completed steps, this one included
    tokens: int
    reason: Rejection
    batch: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    kind: ClassVar[str] = "validation"
    step: int
    tokens: int
    loss: float  # mean over the fixed windows, nats per token
    windows: int
    seconds: float
    standard_error: float = 0.0  # of the loss, from the spread over the windows; 0: unknown
    bits_per_byte: float = 0.0  # of the same windows' text; 0: unknown
    path: str = ""  # of the file of window losses, within the run; empty: not kept
    averaged_loss: float | None = None  # of the averaged weights, on the same windows; None without them


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """The score of a multiple-choice task; the predictions are in the file at `path`."""

    kind: ClassVar[str] = "task"
    step: int
    tokens: int
    task: str
    items: str  # description for people; decisions use the counts
    digest: str  # of the items
    accuracy: dict[str, float]  # by metric, the primary one first
    standard_errors: dict[str, float]
    cut: int  # items whose context was cut at its start
    path: str  # within the run
    seconds: float
    count: int = 0  # of the items; 0: unknown
    dataset_size: int = 0  # items in the whole dataset; 0: unknown
    published: bool = False  # whether the items are from the published dataset
    averaged_accuracy: dict[str, float] | None = None  # of the averaged weights, by metric; None without them

    @property
    def is_full_set(self) -> bool:
        """Whether these are all items of the published dataset."""
        return self.published and 0 < self.count == self.dataset_size

    @property
    def is_subset(self) -> bool:
        return self.count < self.dataset_size


@dataclass(frozen=True, kw_only=True)
class ExpertLoadRecord:
    """How the tokens of a step's batch were divided among the experts of each layer."""

    kind: ClassVar[str] = "expert_load"
    step: int
    tokens: int
    loads: list[list[int]]  # tokens by layer and expert; a token counts once for each expert that it passes


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    texts: list[str]  # prompt and continuation
    seed: int
    top_k: int


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str  # within the run
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EventRecord:
    """An event of the run; the type of `detail` says which."""

    kind: ClassVar[str] = "event"
    step: int
    detail: Detail
    at: float = field(default_factory=time.time)  # seconds since 1970, for people; durations: a monotonic clock

    @property
    def event(self) -> Event:
        return self.detail.event


Measured = StepRecord | SkippedRecord | ValidationRecord | TaskRecord | ExpertLoadRecord
Record = Measured | SampleRecord | CheckpointRecord | EventRecord
RECORD_TYPES: dict[str, type[Record]] = {kind.kind: kind for kind in get_args(Record)}
FIELDS = {kind: [f.name for f in fields(kind)] for kind in RECORD_TYPES.values()}
TAIL_BYTES = 256  # enough for one step's record, whose batch and seconds are unique
REWINDS = (Resumed, Rollback, OutOfMemory)  # after these the run is at an earlier step than its journal


class RunState(StrEnum):
    """The state of a run's latest attempt, judged by its journal alone."""

    EMPTY = "empty"
    RUNNING = "running or killed"  # only the run's lock tells which
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


END_STATES = {Event.STOPPED: RunState.STOPPED, Event.FAILED: RunState.FAILED, Event.FINISHED: RunState.FINISHED}


class Journal:
    """Write a run's journal. Records that cannot be written wait in memory and are retried with the next one."""

    def __init__(self, run: Path, warn: Callable[[str], None] = lambda text: None) -> None:
        self.path, self.warn = RunPaths(run).journal, warn
        self.waiting: list[str] = []
        self.failing = False
        end_last_line(self.path)

    def write(self, record: Record) -> None:
        self.waiting.append(json.dumps(to_json(record), ensure_ascii=False))
        try:
            if self.failing:
                end_last_line(self.path)  # a part of it may have been written
            while self.waiting:
                append_line(self.path, self.waiting[0])
                del self.waiting[0]
        except OSError as error:
            if not self.failing:
                self.warn(f"{self.path}: cannot be written ({error.strerror}); its records wait in memory")
            self.failing = True
        else:
            self.failing = False


@dataclass(frozen=True)
class History:
    """A journal as one linear history; steps undone by a resume or a rollback are dropped.

    It has one list for each kind of record, in the order of `Record`.
    """

    steps: list[StepRecord] = field(default_factory=list)
    skipped: list[SkippedRecord] = field(default_factory=list)
    validations: list[ValidationRecord] = field(default_factory=list)
    tasks: list[TaskRecord] = field(default_factory=list)
    expert_loads: list[ExpertLoadRecord] = field(default_factory=list)
    samples: list[SampleRecord] = field(default_factory=list)
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)  # of all attempts

    @property
    def step(self) -> int:
        """Completed steps, skipped ones included."""
        return max(records[-1].step if records else 0 for records in (self.steps, self.skipped))

    @property
    def status(self) -> RunState:
        return END_STATES.get(self.events[-1].event, RunState.RUNNING) if self.events else RunState.EMPTY

    @property
    def attempts(self) -> int:
        """The number of starts and resumes."""
        return len(self.details(Started))

    def details(self, kind: type[D]) -> list[D]:
        """Return the details of all events of a kind, in their order; `Started` finds resumes too."""
        return [event.detail for event in self.events if isinstance(event.detail, kind)]


class JournalReader:
    """Read a journal that another process writes: each update reads only what was added since the last one.

    `history` grows in place. It equals the result of `read_history`, which is one update of a new reader.
    """

    def __init__(self, run: Path) -> None:
        self.path = RunPaths(run).journal
        self.reset()

    def reset(self) -> None:
        """Start again at the first record."""
        self.history = History()
        self.lists: dict[str, list[Any]] = dict(zip(RECORD_TYPES, vars(self.history).values(), strict=True))
        self.read_to = 0  # bytes of whole records
        self.tail = b""  # the end of those bytes, which shows whether the journal was replaced

    def update(self) -> History:
        """Return the history now. A journal that was shortened or replaced is read from its beginning."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.read_to - len(self.tail))
                if file.read(len(self.tail)) != self.tail:
                    self.reset()
                    file.seek(0)
                for line in file:
                    record = self.parse(line)
                    if record is None and not line.endswith(b"\n"):
                        break  # incomplete: the next update begins with it
                    self.read_to += len(line)
                    self.tail = (self.tail + line)[-TAIL_BYTES:]
                    if record is not None:
                        self.add(record)
        except FileNotFoundError:
            self.reset()
        return self.history

    def parse(self, line: bytes) -> Record | None:
        """Return the record on a line; None for a line to leave out."""
        return parse(line.decode(errors="replace"))

    def add(self, record: Record) -> None:
        if isinstance(record, EventRecord) and isinstance(record.detail, REWINDS):
            for kind, place in self.lists.items():
                if kind != "event":
                    place[:] = [r for r in place if r.step <= record.step]
        self.lists[record.kind].append(record)


def read_history(run: Path) -> History:
    """Read a journal, live or finished. Incomplete lines and undone steps are left out."""
    return JournalReader(run).update()


def first_event(run: Path) -> EventRecord | None:
    """Return the event that a run began with, without reading the rest."""
    try:
        with RunPaths(run).journal.open(encoding="utf-8", errors="replace") as file:
            record = parse(file.readline())
    except FileNotFoundError:
        return None
    return record if isinstance(record, EventRecord) else None


def to_json(record: Record) -> dict[str, Any]:
    """Return the record as the journal stores it."""
    event = {"event": record.event} if isinstance(record, EventRecord) else {}
    return {"kind": record.kind, **event, **{k: v for k, v in asdict(record).items() if v is not None}}


def parse(line: str) -> Record | None:
    """Return the record on a line; None for an incomplete line and for a kind or event of a later version.

    Unknown fields are ignored. A field that an earlier version did not write has its default.
    """
    try:
        values = json.loads(line)
        kind = RECORD_TYPES[values.pop("kind")]
        if kind is EventRecord:
            values["detail"] = parse_detail(values["event"], values.get("detail", {}))
        if kind is SkippedRecord:
            values["reason"] = Rejection.from_json(values["reason"])
        if kind is TaskRecord:
            values = current_task_fields(values)
        return kind(**{name: values[name] for name in FIELDS[kind] if name in values})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
