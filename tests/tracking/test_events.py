"""Events in journals of this version, of version 0.1, and of later ones."""

import json
from pathlib import Path

import pytest

from regpt.tracking.events import (
    Branched,
    CheckpointFailed,
    Detail,
    Event,
    Failed,
    Finished,
    OutOfMemory,
    Resumed,
    Rollback,
    Started,
    Stopped,
    parse_detail,
)
from regpt.tracking.journal import EventRecord, Journal, RunState, read_history
from regpt.tracking.rejections import Rejection, RejectionKind

EVERY_DETAIL: list[Detail] = [
    Started(device="cpu", precision="float32", torch="2.9", ranks=2, hellaswag_unavailable="no file"),
    Resumed(device="cpu", changed={"run.max_steps": [4, 8]}, skipped_checkpoints=["step_000004: damaged"]),
    Branched(source="long", checkpoint="ab12"),
    Rollback(from_step=9, excluded_batches=[7, 8]),
    OutOfMemory(at_step=3, micro_batch_before=8, micro_batch_after=4),
    CheckpointFailed(problem="no space left"),
    Stopped(signal="SIGTERM", memory_bytes=5),
    Failed(reason=Rejection(kind=RejectionKind.LOSS_NAN), memory_bytes=5),
    Finished(memory_bytes=5),
]


def test_every_event_is_written_and_read_unchanged(tmp_path: Path) -> None:
    assert [detail.event for detail in EVERY_DETAIL] == list(Event)
    journal = Journal(tmp_path)
    for detail in EVERY_DETAIL:
        journal.write(EventRecord(step=0, detail=detail))
    assert [record.detail for record in read_history(tmp_path).events] == EVERY_DETAIL


@pytest.mark.parametrize(
    ("name", "values", "detail"),
    [
        ("went back", {"from": 9, "left_out": [7, 8]}, Rollback(from_step=9, excluded_batches=[7, 8])),
        (
            "out of memory",
            {"at": 3, "micro_batch": [8, 4]},
            OutOfMemory(at_step=3, micro_batch_before=8, micro_batch_after=4),
        ),
        ("not saved", {"problem": "no space left"}, CheckpointFailed(problem="no space left")),
        ("resumed", {"passed_over": ["a"], "changed": {}}, Resumed(skipped_checkpoints=["a"])),
        (
            "failed",
            {"reason": "the loss is nan", "memory_bytes": 5},
            Failed(reason=Rejection(kind=RejectionKind.LOSS_NAN), memory_bytes=5),
        ),
        ("failed", {"reason": "the moon is full"}, Failed()),
        ("started", {"hellaswag": "not measured: no file"}, Started(hellaswag_unavailable="no file")),
    ],
)
def test_event_of_version_0_1_is_read(name: str, values: dict[str, object], detail: Detail) -> None:
    assert parse_detail(name, values) == detail


def test_unknown_event_and_unknown_field_are_ignored(tmp_path: Path) -> None:
    events = [("started", {"moon": 3}), ("eclipse", {})]
    lines = [json.dumps({"kind": "event", "step": 0, "event": name, "detail": detail}) for name, detail in events]
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    assert [record.detail for record in read_history(tmp_path).events] == [Started()]


@pytest.mark.parametrize(
    ("detail", "state"),
    [
        (Started(), RunState.RUNNING),
        (Rollback(), RunState.RUNNING),
        (CheckpointFailed(), RunState.RUNNING),
        (Stopped(), RunState.STOPPED),
        (Failed(), RunState.FAILED),
        (Finished(), RunState.FINISHED),
    ],
)
def test_run_state_follows_from_the_last_event(tmp_path: Path, detail: Detail, state: RunState) -> None:
    Journal(tmp_path).write(EventRecord(step=0, detail=detail))
    assert read_history(tmp_path).status is state
