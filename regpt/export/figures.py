"""The figures of a model card: what the run's record, and `regpt evaluate`, say about the exported weights."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from regpt.fairness.models import task_title
from regpt.tasks.catalog import METRICS
from regpt.tracking.journal import TaskRecord, ValidationRecord
from regpt.tracking.layout import RESULTS_FILE, VALIDATION
from regpt.tracking.run import Run

# The public tasks by the names of the hub's datasets.
DATASETS = {
    "hellaswag": "Rowan/hellaswag",
    "hellaswag_lm_eval": "Rowan/hellaswag",
    "arc_easy": "allenai/ai2_arc",
    "arc_challenge": "allenai/ai2_arc",
    "piqa": "ybisk/piqa",
    "sciq": "allenai/sciq",
    "winogrande": "allenai/winogrande",
    "openbookqa": "allenai/openbookqa",
    "social_iqa": "allenai/social_i_qa",
    "boolq": "google/boolq",
}
SUBSET = re.compile(r"-\d+$")  # the end of the name of a subset's results
CUSTOM = "custom"  # a dataset that is not on the hub


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured value of the exported weights."""

    task: str
    metric: str  # as people read it
    metric_type: str  # as the hub names it
    value: float
    error: float = 0.0  # standard error; 0: unknown
    measured_on: str  # description of the windows or items
    dataset: str = CUSTOM  # name on the hub


def figures_of(run: Run, step: int, averaged: bool, weights: str, corpus: str) -> list[Figure]:
    """Return all figures of a run's weights after a step.

    Args:
        averaged: of the averaged weights instead of the last ones
        weights: their SHA-256; results of `regpt evaluate` of other weights are left out
        corpus: name of the training text on the hub, or CUSTOM
    """
    history = run.history
    validations = [one for one in history.validations if one.step == step][-1:]
    tasks = [one for one in history.tasks if one.step == step]
    return [
        *(figure for one in validations for figure in validation(one, averaged, corpus)),
        *(figure for one in tasks for figure in accuracy(one, averaged)),
        *evaluated(run, step, averaged, weights, {one.digest for one in tasks}),
    ]


def validation(record: ValidationRecord, averaged: bool, corpus: str) -> Iterator[Figure]:
    """Yield the loss and the bits per byte of a validation. Of averaged weights, only the loss is recorded."""
    if averaged and record.averaged_loss is None:
        return
    loss, error = (record.averaged_loss, 0.0) if averaged else (record.loss, record.standard_error)
    assert loss is not None
    bits = 0.0 if averaged else record.bits_per_byte
    on = f"{record.windows:,} windows of the validation split"
    yield Figure(
        task=VALIDATION.capitalize(),
        metric="loss, nats per token",
        metric_type="loss",
        value=loss,
        error=error,
        measured_on=on,
        dataset=corpus,
    )
    if bits and loss:  # the error of the loss, in other units
        yield Figure(
            task=VALIDATION.capitalize(),
            metric="bits per byte",
            metric_type="bits_per_byte",
            value=bits,
            error=error * bits / loss,
            measured_on=on,
            dataset=corpus,
        )


def accuracy(record: TaskRecord, averaged: bool) -> Iterator[Figure]:
    """Yield the accuracy by the primary metric of a task."""
    shares = record.averaged_accuracy if averaged else record.accuracy
    if not shares:
        return
    metric, share = next(iter(shares.items()))
    error = 0.0 if averaged else record.standard_errors.get(metric, 0.0)
    dataset = DATASETS.get(record.task, CUSTOM) if record.published else CUSTOM
    yield task_figure(record.task, metric, share, error, record.items, dataset)


def task_figure(task: str, metric: str, share: float, error: float, items: str, dataset: str) -> Figure:
    return Figure(
        task=task_title(task),
        metric=f"accuracy ({METRICS[metric].description})" if metric in METRICS else "accuracy",
        metric_type="accuracy",
        value=share,
        error=error,
        measured_on=items,
        dataset=dataset,
    )


def evaluated(run: Run, step: int, averaged: bool, weights: str, known: set[str]) -> Iterator[Figure]:
    """Yield the accuracies that `regpt evaluate` wrote about these weights, without items of a `known` digest."""
    try:
        path = run.paths.evaluation(step, averaged) / RESULTS_FILE
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tasks = results["tasks"].items() if results["weights"] == weights else ()
        for name, result in tasks:
            metric, share = next(iter(result.get("accuracy", {}).items()), ("", 0.0))
            if metric in METRICS and result["digest"] not in known:
                error = result["standard_error"].get(metric, 0.0)
                task = SUBSET.sub("", name)
                yield task_figure(task, metric, share, error, result["items"], DATASETS.get(task, CUSTOM))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # missing, incomplete or by another program: the card does without it
