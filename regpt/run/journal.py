"""The journal: what happened in a run, a typed record a line, appended and never rewritten; all reports read it."""

import json
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from regpt.base.files import append_line, end_last_line

FILE = "journal.jsonl"


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
class ValidationRecord:
    kind: ClassVar[str] = "validation"
    step: int
    tokens: int
    loss: float  # mean over the fixed windows, nats per token
    windows: int
    seconds: float


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
    """started, resumed, stopped, finished."""

    kind: ClassVar[str] = "event"
    step: int
    event: str
    detail: dict[str, Any] = field(default_factory=dict)
    at: float = field(
        default_factory=time.time
    )  # seconds since 1970, for people; durations come from a monotonic clock


Record = StepRecord | ValidationRecord | SampleRecord | CheckpointRecord | EventRecord
KINDS: dict[str, type[Record]] = {
    kind.kind: kind for kind in (StepRecord, ValidationRecord, SampleRecord, CheckpointRecord, EventRecord)
}


class Journal:
    """The one writer of a run's journal."""

    def __init__(self, run: Path) -> None:
        self.path = run / FILE
        end_last_line(self.path)

    def write(self, record: Record) -> None:
        append_line(self.path, json.dumps({"kind": record.kind, **asdict(record)}, ensure_ascii=False))


@dataclass(frozen=True)
class History:
    """A journal as read: the run's one line of development, without what a resume left behind."""

    steps: list[StepRecord] = field(default_factory=list)
    validations: list[ValidationRecord] = field(default_factory=list)
    samples: list[SampleRecord] = field(default_factory=list)
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)  # all attempts'

    @property
    def step(self) -> int:
        """Completed steps."""
        return self.steps[-1].step if self.steps else 0

    @property
    def status(self) -> str:
        last = self.events[-1].event if self.events else "empty"
        return "running or killed" if last in ("started", "resumed") else last


def read_history(run: Path) -> History:
    """Read a journal, live or finished, without lines that a kill cut and steps that a resume went back behind."""
    history = History()
    path = run / FILE
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    places: dict[str, list[Any]] = {
        "step": history.steps,
        "validation": history.validations,
        "sample": history.samples,
        "checkpoint": history.checkpoints,
        "event": history.events,
    }
    for line in lines:
        record = parse(line)
        if record is None:
            continue
        if isinstance(record, EventRecord) and record.event == "resumed":
            for kind, place in places.items():
                if kind != "event":
                    place[:] = [r for r in place if r.step <= record.step]
        places[record.kind].append(record)
    return history


def parse(line: str) -> Record | None:
    """The record on a line; None for a cut line, or for a kind that a later version wrote."""
    try:
        values = json.loads(line)
        kind = KINDS[values.pop("kind")]
        return kind(**{f.name: values[f.name] for f in fields(kind)})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
