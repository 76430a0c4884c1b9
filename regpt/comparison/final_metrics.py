"""The final metrics of each model, as values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from regpt.fairness.learning_curves import training_seconds
from regpt.fairness.models import ComparedModel, all_tasks
from regpt.fairness.run_checks import best_validation
from regpt.stats.losses import loss_at
from regpt.tracking.status import State, state_of


class Quantity(StrEnum):
    STATE = "state"
    PARAMETERS = "parameters"
    TOKENS = "training tokens"
    LAST_LOSS = "last validation loss"
    AVERAGED_LOSS = "validation loss of the averaged weights"
    BEST_LOSS = "best validation loss"
    BITS_PER_BYTE = "bits per byte"
    PUBLISHED_HELLASWAG = "published HellaSwag accuracy"
    ACCURACY = "accuracy"  # on one task by one metric
    AVERAGED_ACCURACY = "accuracy of the averaged weights"
    TRAINING_TIME = "training time"  # seconds of training steps
    SPEED = "speed"  # tokens per second at the median step
    FLOPS = "training FLOPs"
    PEAK_SHARE = "share of peak"  # of the device's peak FLOP/s


class Missing(StrEnum):
    """Why a model has no value."""

    NOT_APPLICABLE = "not applicable"
    NOT_MEASURED = "not measured"
    NOT_PUBLISHED = "not published"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Value:
    value: float
    standard_error: float = 0.0  # 0: unknown
    step: int | None = None  # set where it must be shown
    items: str = ""  # description of a task's items
    is_published: bool = False


@dataclass(frozen=True)
class ModelState:
    state: State | None  # None: not a run
    step: int = 0
    max_steps: int = 0
    is_published: bool = False


Cell = Value | ModelState | Missing


@dataclass(frozen=True)
class MetricRow:
    quantity: Quantity
    cells: list[Cell]
    task: str = ""  # of an accuracy
    metric: str = ""

    @property
    def is_empty(self) -> bool:
        return set(self.cells) == {Missing.NOT_APPLICABLE}


def final_metrics(models: Sequence[ComparedModel]) -> list[MetricRow]:
    """Return the rows of the table of final metrics. A row without any value is left out."""
    rows = [row(Quantity.STATE, models, model_state)]
    rows += [row(quantity, models, value) for quantity, value in BEFORE_TASKS.items()]
    for task in all_tasks(models):
        shown = [score for model in models if (score := model.score_on(task))]
        metrics = list(dict.fromkeys(metric for score in shown for metric in score.by_metric))
        for metric in metrics:
            rows.append(MetricRow(Quantity.ACCURACY, [accuracy(model, task, metric) for model in models], task, metric))
            if metric == metrics[0]:
                averaged: list[Cell] = [averaged_share(model, task, metric) for model in models]
                rows.append(MetricRow(Quantity.AVERAGED_ACCURACY, averaged, task, metric))
    rows += [row(quantity, models, value) for quantity, value in AFTER_TASKS.items()]
    return [found for found in rows if not found.is_empty]


def row(quantity: Quantity, models: Sequence[ComparedModel], value: Callable[[ComparedModel], Cell]) -> MetricRow:
    return MetricRow(quantity, [value(model) for model in models])


def model_state(model: ComparedModel) -> Cell:
    if model.run is None:
        return ModelState(None, is_published=model.published is not None)
    # A checkpoint has no state of its own.
    state = state_of(model.run) if model.is_run else None
    return ModelState(state, model.step or 0, model.run.recipe.run.max_steps)


def parameters(model: ComparedModel) -> Cell:
    return Value(model.recipe.model.parameters) if model.recipe else Missing.NOT_APPLICABLE


def training_tokens(model: ComparedModel) -> Cell:
    return Value(model.tokens) if model.tokens is not None else Missing.UNKNOWN


def last_loss(model: ComparedModel) -> Cell:
    if model.published is not None:
        loss = model.published.validation_loss
        return Value(loss, is_published=True) if loss else Missing.NOT_PUBLISHED
    if model.loss is None:
        return Missing.NOT_MEASURED
    return Value(model.loss.loss, model.loss.standard_error, model.loss.step if model.loss.step != model.step else None)


def averaged_loss(model: ComparedModel) -> Cell:
    """Return the loss of a run's averaged weights if it was measured with the loss that is shown."""
    if not (model.run and model.is_run and model.loss):
        return Missing.NOT_APPLICABLE
    for record in model.run.history.validations[-1:]:
        if record.averaged_loss is not None and loss_at(model.run, record).measured_on == model.loss.measured_on:
            return Value(record.averaged_loss, step=record.step if record.step != model.step else None)
    return Missing.NOT_APPLICABLE


def best_loss(model: ComparedModel) -> Cell:
    """Return the best loss during training if it was measured on the same data as the loss that is shown."""
    same_data = model.run and model.loss and model.loss.data == model.run.environment.data.digest
    best = best_validation(model.run) if same_data and model.is_run and model.run else None
    return Value(best.loss, step=best.step) if best else Missing.NOT_APPLICABLE


def bits_per_byte(model: ComparedModel) -> Cell:
    return Value(model.loss.bits_per_byte) if model.loss and model.loss.bits_per_byte else Missing.NOT_APPLICABLE


def published_hellaswag(model: ComparedModel) -> Cell:
    if model.published is None:
        return Missing.NOT_APPLICABLE
    accuracy = model.published.hellaswag
    return Value(accuracy, is_published=True) if accuracy else Missing.NOT_PUBLISHED


def accuracy(model: ComparedModel, task: str, metric: str) -> Cell:
    if model.published is not None:
        return Missing.NOT_APPLICABLE
    score = model.score_on(task)
    if score is None or metric not in score.by_metric:
        return Missing.NOT_MEASURED
    value, error = score.by_metric[metric]
    return Value(value, error, score.step, score.items)


def averaged_share(model: ComparedModel, task: str, metric: str) -> Cell:
    """Return the accuracy of a run's averaged weights if it was measured with the accuracy that is shown."""
    score = model.score_on(task)
    if not (model.run and model.is_run and score):
        return Missing.NOT_APPLICABLE
    for record in model.run.history.tasks:
        if (record.task, record.digest, record.step) == (task, score.digest, score.step) and record.averaged_accuracy:
            return Value(record.averaged_accuracy[metric], step=score.step, items=score.items)
    return Missing.NOT_APPLICABLE


def training_time(model: ComparedModel) -> Cell:
    return Value(training_seconds(model)) if model.run and model.step else Missing.NOT_APPLICABLE


def speed(model: ComparedModel) -> Cell:
    return Value(model.run.tokens_per_second) if model.run and model.step else Missing.NOT_APPLICABLE


def training_flops(model: ComparedModel) -> Cell:
    if not model.tokens or model.recipe is None:
        return Missing.NOT_APPLICABLE
    return Value(model.tokens * model.recipe.model.flops_per_token)


def peak_share(model: ComparedModel) -> Cell:
    share = model.run.share_of_peak if model.run and model.step else None
    return Value(share) if share is not None else Missing.NOT_APPLICABLE


BEFORE_TASKS = {
    Quantity.PARAMETERS: parameters,
    Quantity.TOKENS: training_tokens,
    Quantity.LAST_LOSS: last_loss,
    Quantity.AVERAGED_LOSS: averaged_loss,
    Quantity.BEST_LOSS: best_loss,
    Quantity.BITS_PER_BYTE: bits_per_byte,
    Quantity.PUBLISHED_HELLASWAG: published_hellaswag,
}
AFTER_TASKS = {
    Quantity.TRAINING_TIME: training_time,
    Quantity.SPEED: speed,
    Quantity.FLOPS: training_flops,
    Quantity.PEAK_SHARE: peak_share,
}
