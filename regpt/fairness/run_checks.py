"""Checks of runs: are they finished, and were they trained under the same conditions?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from regpt.fairness.caveats import (
    Caveat,
    CaveatKind,
    Remedy,
    RemedyKind,
    are_different,
    command,
    evaluate_command,
    values_if_different,
)
from regpt.fairness.learning_curves import comparable_curves, learning_curve
from regpt.fairness.models import ComparedModel
from regpt.tracking.journal import ValidationRecord
from regpt.tracking.run import Run
from regpt.tracking.status import State, state_of

NEAR = 0.01  # nats; allowed distance of the last loss from the best one if its standard error is unknown


@dataclass(frozen=True)
class CheckpointStep:
    """A step of a run, compared with the run's best and last step."""

    step: int
    last_step: int
    is_best: bool


@dataclass(frozen=True)
class LastAndBest:
    last: ValidationRecord
    best: ValidationRecord


@dataclass(frozen=True)
class Progress:
    step: int
    max_steps: int
    state: State | None  # None: all steps are done


def models_with_runs(models: Sequence[ComparedModel]) -> list[tuple[ComparedModel, Run]]:
    return [(model, model.run) for model in models if model.run is not None]


def best_validation(run: Run) -> ValidationRecord | None:
    return min(run.history.validations, key=lambda record: record.loss, default=None)


def check_selected_checkpoints(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check for an earlier checkpoint next to a last one. The best of many evaluations is partly luck."""
    chosen = models_with_runs(models)
    earlier = [(model, run) for model, run in chosen if not model.is_last]
    last = [(model, run) for model, run in chosen if model.is_last]
    if not earlier or not last:
        return
    steps = {model.name: checkpoint_step(model, run) for model, run in chosen}
    is_best = any(steps[model.name].is_best for model, _ in earlier)
    last_model, last_run = last[0]
    remedies = [
        Remedy(RemedyKind.COMPARE_LAST, (command("compare", str(earlier[0][1].path), last_model.command_name),))
    ]
    best = best_validation(last_run)
    if best is not None and best.step < last_run.history.step:
        evaluate = command("evaluate", str(last_run.paths.checkpoint(best.step)))
        remedies.append(Remedy(RemedyKind.EVALUATE_BEST, (evaluate,)))
    kind = CaveatKind.BEST_AND_LAST if is_best else CaveatKind.EARLIER_AND_LAST
    yield Caveat(kind, list(steps.items()), tuple(remedies))


def checkpoint_step(model: ComparedModel, run: Run) -> CheckpointStep:
    best = best_validation(run)
    return CheckpointStep(model.step or 0, run.history.step, best is not None and model.step == best.step)


def check_last_losses(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that the last loss of a run is not far above its best one."""
    for model, run in models_with_runs(models):
        best = best_validation(run)
        if best is None or not model.is_last:
            continue
        last = run.history.validations[-1]
        if last.loss - best.loss > (last.standard_error or NEAR):
            checkpoint = run.paths.checkpoint(best.step)
            remedy = Remedy(RemedyKind.NO_CHECKPOINT)
            if checkpoint.is_dir():
                remedy = Remedy(RemedyKind.EVALUATE_BEST, (command("evaluate", str(checkpoint)),))
            yield Caveat(CaveatKind.LAST_ABOVE_BEST, [(model.name, LastAndBest(last, best))], (remedy,))


def check_unfinished_runs(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that runs are finished: until then the learning rate is high. Without any step nothing compares."""
    chosen = [(model, run) for model, run in models_with_runs(models) if model.is_last]
    values = [(model.name, progress(run)) for model, run in chosen]
    unfinished = [model for model, run in chosen if progress(run).state is not None]
    nothing_trained = not any(run.history.step for _, run in chosen)
    if unfinished and (nothing_trained or are_different(values)):
        commands = tuple(command("resume", model.command_name) for model in unfinished)
        yield Caveat(CaveatKind.UNFINISHED, values, (Remedy(RemedyKind.RESUME, commands),))


def progress(run: Run) -> Progress:
    step, steps = run.history.step, run.recipe.run.max_steps
    return Progress(step, steps, state_of(run)) if step < steps else Progress(0, 0, None)


def check_training_tokens(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that all models were trained on the same number of tokens."""
    values = values_if_different(models, lambda model: model.tokens)
    if not values:
        return
    trained = [(model.tokens, run) for model, run in models_with_runs(models) if model.tokens]
    curves = [curve for model in models if (curve := learning_curve(model))]
    remedies = [Remedy(RemedyKind.READ_EQUAL_TOKENS)] if len(comparable_curves(curves)) > 1 else []
    if len({tokens for tokens, _ in trained}) > 1:
        _, longest = max(trained, key=lambda one: one[0])
        steps = longest.recipe.batch_sizes.steps_for(min(tokens for tokens, _ in trained))
        train = ("train", str(longest.paths.recipe), "--name", f"{longest.id}-{steps}", f"run.max_steps={steps}")
        remedies.append(Remedy(RemedyKind.TRAIN_SHORTER, (command(*train),)))
    yield Caveat(CaveatKind.OTHER_TOKENS, values, tuple(remedies) or (Remedy(RemedyKind.NO_CURVES),))


def check_devices(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    chosen = [model for model in models if model.run is not None]
    if values := values_if_different(chosen, lambda model: model.device):
        yield Caveat(CaveatKind.OTHER_DEVICE, values, (Remedy(RemedyKind.IGNORE_TIME),))


def check_precision(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    chosen = [model for model in models if model.precision]
    if values := values_if_different(chosen, lambda model: model.precision):
        others = [model for model in chosen if model.precision != chosen[0].precision]
        commands = tuple(evaluate_command(model, f"run.precision={chosen[0].precision}") for model in others)
        remedy = Remedy(RemedyKind.EVALUATE_IN_THIS_PRECISION, commands)
        yield Caveat(CaveatKind.OTHER_PRECISION, values, (remedy,))


def check_compile(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    chosen = [model for model in models if model.compiled is not None]
    if values := values_if_different(chosen, lambda model: model.compiled):
        yield Caveat(CaveatKind.OTHER_COMPILE, values, (Remedy(RemedyKind.IGNORE_TIME_OR_COMPILE),))


def check_published_figures(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Report figures that were not measured here."""
    chosen = [model for model in models if model.published is not None]
    if chosen:
        commands = tuple(command("train", model.command_name) for model in chosen)
        values = [(model.name, model.published) for model in chosen]
        yield Caveat(CaveatKind.PUBLISHED, values, (Remedy(RemedyKind.TRAIN_PUBLISHED, commands),))
