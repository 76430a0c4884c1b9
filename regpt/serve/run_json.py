"""Runs as JSON: what the API sends of a summary, a status, a record and a comparison."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from regpt.recipe.differences import run_settings
from regpt.serve.summaries import RunSummary
from regpt.tracking.journal import EventRecord, History, Record, SkippedRecord, TaskRecord
from regpt.tracking.run import averaged_accuracy, primary_accuracy
from regpt.tracking.status import RunStatus
from regpt.watch.describe import describe_event, describe_state


def to_bytes(value: Any) -> bytes:
    """Return JSON; a number that is NaN or infinite becomes null, because JSON has neither."""
    return json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(
        "utf-8", errors="replace"
    )


def finite(value: Any) -> Any:
    """Return the value with None instead of numbers that are NaN or infinite, in lists and mappings too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def summary_json(summary: RunSummary) -> dict[str, Any]:
    """Return a row of the list of runs."""
    activity = summary.activity
    if activity is None:
        return {"name": summary.name, "state": None, "problem": summary.problem}
    steps = activity.history.steps
    return {
        "name": summary.name,
        "state": activity.state,
        "problem": "",
        "recipe": activity.environment.recipe_name if activity.environment else "",
        "step": activity.step,
        "max_steps": summary.max_steps,
        "tokens": steps[-1].tokens if steps else 0,
        "loss": steps[-1].loss if steps else None,
        "tokens_per_second": summary.tokens_per_second,
        "written_at": activity.written_at,
        **results_json(activity.history),
    }


def status_json(status: RunStatus) -> dict[str, Any]:
    """Return the state, the progress and the speed of a run."""
    steps = status.history.steps
    return {
        "name": status.name,
        "recipe": status.environment.recipe_name if status.environment else "",
        "state": status.state,
        "details": describe_state(status),
        "is_over": status.is_over,
        "step": status.step,
        "max_steps": status.recipe.run.max_steps,
        "tokens": status.tokens,
        "total_tokens": status.recipe.total_tokens,
        "seconds_left": seconds_left(status),
        "training_seconds": sum(record.seconds for record in steps),
        "tokens_per_second": status.tokens_per_second or None,
        "share_of_peak": status.share_of_peak,
        "device": status.environment.device.name if status.environment else "",
        "loss": steps[-1].loss if steps else None,
        "learning_rate": steps[-1].learning_rate if steps else None,
        "gradient_norm": steps[-1].gradient_norm if steps else None,
        "skipped": len(status.history.skipped),
        "written_at": status.written_at,
        **results_json(status.history),
    }


def seconds_left(status: RunStatus) -> float | None:
    """Return the estimated seconds from now to the end; None where there is no estimate."""
    left = None if status.is_over else status.seconds_left
    return None if left is None else max(0.0, left - (status.idle_seconds if status.process_alive else 0.0))


def results_json(history: History) -> dict[str, Any]:
    """Return the last validation loss and the last score of HellaSwag; None where it is missing."""
    scores = [record for record in history.tasks if record.task == "hellaswag"]
    return {
        "validation": record_json(history.validations[-1]) if history.validations else None,
        "hellaswag": record_json(scores[-1]) if scores else None,
    }


def record_json(record: Record) -> dict[str, Any]:
    """Return a record of the journal, with what the page needs of it already computed."""
    values = {name: value for name, value in asdict(record).items() if name != "path"}
    if isinstance(record, TaskRecord):
        score, error = primary_accuracy(record)
        average = averaged_accuracy(record)
        return {**values, "score": score, "error": error, "averaged_score": average, "is_subset": record.is_subset}
    if isinstance(record, SkippedRecord):
        return {**values, "reason": str(record.reason)}
    return values


def event_json(event: EventRecord) -> dict[str, Any]:
    return {"step": event.step, "at": event.at, "event": event.event, "text": describe_event(event)}


def comparison_json(statuses: Sequence[RunStatus]) -> dict[str, Any]:
    """Return the results of several runs and the settings in which they differ, with the value of each run."""
    settings = [run_settings(status.recipe) for status in statuses]
    differing = [name for name in settings[0] if any(one[name] != settings[0][name] for one in settings[1:])]
    return {
        "runs": [status_json(status) for status in statuses],
        "settings": [{"name": name, "values": [setting_text(one[name]) for one in settings]} for name in differing],
    }


def setting_text(value: Any) -> str:
    """Return a setting's value as a recipe writes it, without quotes."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
