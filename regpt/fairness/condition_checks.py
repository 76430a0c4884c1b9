"""Checks of how two runs were trained: what besides their recipes can move the difference between their losses.

Each check compares one condition. The text and its split, the order of the windows, the seed, the batch, the number of
passes over the text, a schedule that a resume moved, and steps that the guard skipped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from regpt.fairness.caveats import Caveat, CaveatKind, Command, Remedy, RemedyKind, are_different, command
from regpt.fairness.models import ComparedModel
from regpt.fairness.run_checks import models_with_runs
from regpt.optimizer.schedule import are_same_rates
from regpt.recipe.differences import before_changes
from regpt.tracking.events import Resumed, Rollback
from regpt.tracking.run import Run

EPOCHS_TOLERANCE = 0.05  # passes over the text that are called equal


@dataclass(frozen=True)
class DataOrder:
    """The order of the training windows, and the share of the training split that was read at least once."""

    order: str
    share_read: float | None  # None: unknown


@dataclass(frozen=True)
class SkippedSteps:
    """Steps without an update, and rollbacks that dropped batches."""

    skipped: int
    rollbacks: int


def check_training_data(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that all runs were trained on the dataset that their losses are on; check_validation_data has the rest.

    Datasets of different tokenizers may be made of one text.
    """
    runs = models_with_runs(models)
    values = [(model.name, run.environment.data.digest) for model, run in runs]
    validated_on = {model.loss.data for model in models if model.loss}
    if not are_different(values):
        return
    tokenizers = {run.environment.data.tokenizer.label for _, run in runs}
    texts = {(data.source.asked, data.text_bytes) for data in (run.environment.data for _, run in runs)}
    if len(validated_on) < 2 or (len(tokenizers) > 1 and (len(texts) > 1 or not all(size for _, size in texts))):
        path = runs[0][1].recipe.data.path
        yield Caveat(CaveatKind.OTHER_TRAINING_DATA, values, (train_again(runs, f"data.path={path}"),))


def check_order(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check the order of the windows. In sequential order a short run reads the start of the text only."""
    yield from check_setting(models, CaveatKind.OTHER_ORDER, lambda run: run.recipe.data.order, "data.order", order_of)


def check_seed(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check the seed, which decides the initial weights and the order of shuffled windows."""
    yield from check_setting(models, CaveatKind.OTHER_SEED, lambda run: run.recipe.run.seed, "run.seed")


def check_batch(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check the tokens in a step, the mean of a ramp. With larger batches the same tokens give fewer updates."""
    yield from check_setting(
        models,
        CaveatKind.OTHER_BATCH,
        lambda run: run.recipe.total_tokens // run.recipe.run.max_steps,
        "data.total_batch_tokens",
    )


def check_setting(
    models: Sequence[ComparedModel],
    kind: CaveatKind,
    value: Callable[[Run], Any],
    setting: str,
    shown: Callable[[Run], Any] | None = None,
) -> Iterator[Caveat]:
    """Compare a setting of all runs; the remedy is to train the others with the first one's value."""
    runs = models_with_runs(models)
    if len({value(run) for _, run in runs}) > 1:
        values = [(model.name, (shown or value)(run)) for model, run in runs]
        yield Caveat(kind, values, (train_again(runs, f"{setting}={value(runs[0][1])}"),))


def order_of(run: Run) -> DataOrder:
    epochs = run.epochs
    return DataOrder(run.recipe.data.order, None if epochs is None else min(1.0, epochs))


def train_again(runs: Sequence[tuple[ComparedModel, Run]], setting: str) -> Remedy:
    """Return the remedy: train each run again that does not have the first one's value."""
    name, _, value = setting.partition("=")
    others = [run for _, run in runs[1:] if str(value_of(run, name)) != value]
    return Remedy(RemedyKind.TRAIN_AGAIN, tuple(train_command(run, setting) for run in others))


def value_of(run: Run, setting: str) -> Any:
    section, _, key = setting.partition(".")
    return getattr(getattr(run.recipe, section), key)


def train_command(run: Run, setting: str) -> Command:
    key = setting.partition("=")[0].partition(".")[2].replace("_", "-")
    return command("train", str(run.paths.recipe), "--name", f"{run.id}-same-{key}", setting)


def check_epochs(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check the number of passes over the text. Repeated text teaches less than new text."""
    values = [(model.name, max(1.0, run.epochs)) for model, run in models_with_runs(models) if run.epochs is not None]
    passes = [value for _, value in values]
    if passes and max(passes) - min(passes) > EPOCHS_TOLERANCE:
        yield Caveat(CaveatKind.OTHER_EPOCHS, values, (Remedy(RemedyKind.TRAIN_ON_SAME_TEXT),))


def check_moved_schedules(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that no resume moved the end of a run's learning-rate schedule, unless it did so in all runs alike."""
    values = [(model.name, horizons(run)) for model, run in models_with_runs(models)]
    if not are_different(values) or all(len(steps) == 1 for _, steps in values):
        return
    commands = tuple(one_schedule_command(run) for _, run in models_with_runs(models) if len(horizons(run)) > 1)
    yield Caveat(CaveatKind.MOVED_SCHEDULE, values, (Remedy(RemedyKind.TRAIN_WITHOUT_RESUME, commands),))


def one_schedule_command(run: Run) -> Command:
    steps = run.recipe.run.max_steps
    return command("train", str(run.paths.recipe), "--name", f"{run.id}-one-schedule", f"run.max_steps={steps}")


def horizons(run: Run) -> tuple[int, ...]:
    """Return the values that run.max_steps had, the last one last.

    A change that keeps the learning rate of every step before it moves nothing, as in the constant part of a trapezoid.
    """
    found, recipe = [run.recipe.run.max_steps], run.recipe
    for event in reversed(run.history.events):
        if not isinstance(event.detail, Resumed):
            continue
        earlier = before_changes(recipe, event.detail.changed)
        changed = event.detail.changed.get("run.max_steps")
        if changed and not (earlier and are_same_rates(event.step, earlier, recipe)):
            found.insert(0, int(changed[0]))
        recipe = earlier or recipe
    return tuple(found)


def check_skipped_steps(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that the guard dropped as many steps in all runs."""
    values = [(model.name, skipped_steps(run)) for model, run in models_with_runs(models)]
    if are_different(values):
        yield Caveat(CaveatKind.SKIPPED_STEPS, values, (Remedy(RemedyKind.READ_REPORTS),))


def skipped_steps(run: Run) -> SkippedSteps:
    return SkippedSteps(len(run.history.skipped), len(run.history.details(Rollback)))
