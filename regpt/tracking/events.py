"""The events of a run, each with its typed details, as the journal stores them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from regpt.tracking.old_journals import OLD_EVENTS, new_fields
from regpt.tracking.rejections import Rejection


class Event(StrEnum):
    """The kinds of event, by their names in the journal."""

    STARTED = "started"
    RESUMED = "resumed"
    BRANCHED = "branched"
    ROLLBACK = "rollback"
    OUT_OF_MEMORY = "out_of_memory"
    CHECKPOINT_FAILED = "checkpoint_failed"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True, kw_only=True)
class Started:
    """The first attempt began. `Resumed` is also one, so that `isinstance(detail, Started)` finds every attempt."""

    event: ClassVar[Event] = Event.STARTED
    device: str = ""
    precision: str = ""
    torch: str = ""  # version
    ranks: int = 1
    attention: str = ""  # "flash", "efficient", "cudnn", "math" or "flex" of PyTorch, "blocks" of ours; empty: unknown
    # Why HellaSwag is not measured; empty where it is; None in journals of early versions, which measured no tasks.
    hellaswag_unavailable: str | None = None


@dataclass(frozen=True, kw_only=True)
class Resumed(Started):
    """A further attempt began at a checkpoint."""

    event: ClassVar[Event] = Event.RESUMED
    changed: dict[str, list[Any]] = field(default_factory=dict)  # setting -> [before, now]
    skipped_checkpoints: list[str] = field(default_factory=list)  # newer ones that are damaged, and why
    learning_rate_changed: list[float] = field(default_factory=list)  # of the next step: [before, now]; or empty
    compute_changed: dict[str, list[Any]] = field(default_factory=dict)  # what the machine decides -> [before, now]


@dataclass(frozen=True, kw_only=True)
class Branched:
    """The records before this one are those of another run, at one of whose checkpoints this run begins."""

    event: ClassVar[Event] = Event.BRANCHED
    source: str = ""  # name of the other run
    checkpoint: str = ""  # SHA-256 of the checkpoint's manifest, which has those of its files


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """The guard returned to an earlier checkpoint after several bad steps in a row."""

    event: ClassVar[Event] = Event.ROLLBACK
    from_step: int = 0
    excluded_batches: list[int] = field(default_factory=list)  # of the whole run so far


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """A micro-batch did not fit, and the attempt began again with a smaller one."""

    event: ClassVar[Event] = Event.OUT_OF_MEMORY
    at_step: int = 0  # completed steps when memory ran out
    micro_batch_before: int = 0  # sequences; 0: not recorded
    micro_batch_after: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed:
    """A checkpoint could not be written; training continued without it."""

    event: ClassVar[Event] = Event.CHECKPOINT_FAILED
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The end of an attempt that wrote its last record itself."""

    memory_bytes: int = 0  # the most in use on rank 0; 0: unknown
    reserved_bytes: int = 0  # the most that the CUDA allocator of rank 0 held, which includes gaps; 0: no card
    other_cpu_share: float = -1.0  # of the processors of rank 0's machine, used by other programs; -1: unknown


@dataclass(frozen=True, kw_only=True)
class Stopped(Ended):
    """A signal or the time limit ended the attempt."""

    event: ClassVar[Event] = Event.STOPPED
    signal: str = ""


@dataclass(frozen=True, kw_only=True)
class Failed(Ended):
    """The guard gave up."""

    event: ClassVar[Event] = Event.FAILED
    reason: Rejection | None = None  # of the last step; None: not recorded


@dataclass(frozen=True, kw_only=True)
class Finished(Ended):
    """All steps of the recipe are done."""

    event: ClassVar[Event] = Event.FINISHED


Detail = Started | Resumed | Branched | Rollback | OutOfMemory | CheckpointFailed | Stopped | Failed | Finished
DETAILS: dict[Event, type[Detail]] = {
    kind.event: kind
    for kind in (Started, Resumed, Branched, Rollback, OutOfMemory, CheckpointFailed, Stopped, Failed, Finished)
}


def parse_detail(event: str, values: Mapping[str, Any]) -> Detail:
    """Return the typed details of a stored event, written by this version or an earlier one.

    Unknown fields are ignored and missing ones have their defaults. Raises ValueError for an unknown event.
    """
    kind = DETAILS[Event(OLD_EVENTS.get(event, event))]
    known = new_fields(values)
    if "reason" in known:
        known["reason"] = readable_reason(known["reason"])
    return kind(**{f.name: known[f.name] for f in dataclasses.fields(kind) if f.name in known})


def readable_reason(stored: Mapping[str, Any] | str | None) -> Rejection | None:
    """Return a stored reason, or None for one that this version cannot read: the run failed all the same."""
    try:
        return Rejection.from_json(stored) if stored else None
    except ValueError:
        return None
