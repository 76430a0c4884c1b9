"""The journal of a branch: what led to one checkpoint of the run that it comes from."""

import json
from pathlib import Path

from regpt.tracking.events import Branched
from regpt.tracking.journal import REWINDS, CheckpointRecord, EventRecord, Record, parse, to_json
from regpt.tracking.layout import RunPaths


def write_branch_journal(source: Path, step: int, branched: Branched, target: Path) -> None:
    """Write the journal of a branch into the directory `target`: the source's until `step`, then the event."""
    event = json.dumps(to_json(EventRecord(step=step, detail=branched)), ensure_ascii=False)
    lines = [*lines_before_checkpoint(source, step), event]
    RunPaths(target).journal.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def lines_before_checkpoint(run: Path, step: int) -> list[str]:
    """Return the lines of a run's journal that led to its checkpoint of `step`, without undone steps.

    What happened after that checkpoint was written, as a rollback to it, is not part of its history.
    """
    kept: list[tuple[str, Record]] = []
    for line in RunPaths(run).journal.read_text(encoding="utf-8", errors="replace").splitlines():
        record = parse(line)
        if isinstance(record, EventRecord) and isinstance(record.detail, REWINDS):
            kept = [(text, r) for text, r in kept if isinstance(r, EventRecord) or r.step <= record.step]
        if record is not None:
            kept.append((line, record))
    saved = [place for place, (_, r) in enumerate(kept) if isinstance(r, CheckpointRecord) and r.step == step]
    reached = [place for place, (_, r) in enumerate(kept) if not isinstance(r, EventRecord) and r.step <= step]
    end = max(saved or reached, default=-1) + 1  # a kill can leave a checkpoint without its record
    return [line for line, r in kept[:end] if isinstance(r, EventRecord) or r.step <= step]
