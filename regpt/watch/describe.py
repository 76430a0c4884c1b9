"""Word the state and the events of a run for `regpt watch`."""

from regpt.base.format import duration
from regpt.filesystem.locks import LockHolder
from regpt.tracking.events import Branched, CheckpointFailed, Failed, Finished, OutOfMemory, Rollback, Started, Stopped
from regpt.tracking.journal import EventRecord
from regpt.tracking.status import RunStatus, State


def describe_state(status: RunStatus) -> list[str]:
    """Return details of the state: its process or reason, and how to continue; may be empty."""
    holder = status.holder or LockHolder(0, "")
    process = f"process {holder.process}" + (f" on {holder.machine}" if status.process_alive is None else "")
    how_to_resume = f"continue with: regpt resume {status.name}" if status.history.checkpoints else "no checkpoint yet"
    last = status.history.events[-1].detail if status.history.events else None
    match status.state:
        case State.STARTING if isinstance(last, Stopped | Failed | Finished):
            return [f"{last.event} before", f"{process} prepares to resume"]
        case State.STARTING | State.RUNNING:
            return [process, *(["compiling"] if status.is_compiling else [])] if status.holder else []
        case State.IDLE:
            return [process, f"no record for {duration(status.idle_seconds)}"]
        case State.KILLED:
            return [f"{process} is gone", how_to_resume]
        case State.EXITED:
            return ["without a final event", how_to_resume]
    if isinstance(last, Stopped):
        return [f"by {last.signal or 'a signal'}", how_to_resume]
    return [str(last.reason)] if isinstance(last, Failed) and last.reason else []


def describe_event(event: EventRecord) -> str:
    """Word an event for one line."""
    at = f"at step {event.step:,}"
    match event.detail:
        case Started(device=device, ranks=ranks):
            on_ranks = f" on {ranks} ranks" if ranks != 1 else ""
            return f"{event.event} {at}{on_ranks}, {device or 'device unknown'}"
        case Branched(source=source):
            return f"branched {at} from {source}"
        case Rollback(from_step=start, excluded_batches=excluded):
            return f"rolled back from step {start:,} to {event.step:,}; {len(excluded)} batches excluded"
        case OutOfMemory(micro_batch_before=before, micro_batch_after=after):
            return f"out of memory, micro-batch {before} halved to {after}; restarted {at}"
        case CheckpointFailed(problem=problem):
            return f"checkpoint {at} not written: {problem}"
        case Stopped(signal=signal):
            return f"stopped {at} by {signal or 'a signal'}"
        case Failed(reason=reason):
            return f"failed {at}" + (f": {reason}" if reason else "")
        case Finished():
            return f"finished {at}"
