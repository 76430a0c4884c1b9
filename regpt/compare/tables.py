"""What each model scored, and the first against each other one: Markdown lines, for a terminal or a page."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from regpt.compare.caveats import lines_of
from regpt.compare.fairness import find_caveats
from regpt.compare.learning_curves import LearningCurve, training_seconds
from regpt.compare.models import ComparedModel, TaskScore, rule_in_words, tasks_of
from regpt.rendering.markdown import inline
from regpt.stats.describe import accuracy_test_text, identity_text, values_text, verdict_text
from regpt.stats.identical import Identity, identical
from regpt.stats.outcome import Outcome
from regpt.stats.paired import mcnemar_test
from regpt.stats.verdicts import Verdict, compare_losses, speed_verdict
from regpt.tracking.status import state_of

NOT_MEASURED = "not measured"
NONE = "—"


def in_short(models: Sequence[ComparedModel]) -> Iterator[str]:
    """For a terminal: what is unfair, what each scored, and the first against each other one."""
    yield from lines_of(find_caveats(models))
    yield from scores(models)
    yield ""
    yield from left_out(models)
    for other in models[1:]:
        yield from against(models[0], other)


def row(name: str, cells: Sequence[str]) -> str:
    return f"| {name}{' ' if name else ''}| {' | '.join(cells)} |"


def head(name: str, models: Sequence[ComparedModel | LearningCurve]) -> Iterator[str]:
    yield row(name, [inline(model.name) for model in models])
    yield f"|---|{'---|' * len(models)}"


def left_out(models: Sequence[ComparedModel]) -> Iterator[str]:
    """What is missing, and why."""
    lines = [f"- {inline(model.name)} has made no step yet" for model in models if model.is_run and not model.step]
    lines += [f"- left out: {inline(problem)}" for model in models for problem in model.problems]
    yield from lines
    if lines:
        yield ""


def scores(models: Sequence[ComparedModel]) -> Iterator[str]:
    """The table of final metrics; rows that nobody has are left out."""
    yield from head("", models)
    rows = {
        "State": [state(model) for model in models],
        "Parameters": [f"{m.recipe.model.parameters:,}" if m.recipe else NONE for m in models],
        "Tokens seen in training": [f"{m.tokens:,}" if m.tokens is not None else "not known" for m in models],
        "Validation loss, last": [loss_of(model) for model in models],
        "Validation loss, best on the way": [best_of(model) for model in models],
        "Bits per byte": [f"{m.loss.bits_per_byte:.4f}" if m.loss and m.loss.bits_per_byte else NONE for m in models],
    }
    if any(model.recorded for model in models):
        rows["hellaswag, recorded"] = [recorded_share(model) for model in models]
    for task in tasks_of(models):
        rules = {rule: None for model in models for one in model.to(task)[:1] for rule in one.by_rule}
        rows |= {f"{task}, by {rule_in_words(rule)}": [score_of(m, task, rule) for m in models] for rule in rules}
    rows |= {
        "Time in training steps": [time_of(model) for model in models],
        "Tokens/s, median step": [speed_of(model) for model in models],
        "FLOPs in training": [flops_of(model) for model in models],
        "Share of peak": [peak_of(model) for model in models],
    }
    yield from (row(name, cells) for name, cells in rows.items() if set(cells) != {NONE})


def state(model: ComparedModel) -> str:
    if model.recorded:
        return "recorded"
    if model.run is None:
        return "evaluated"
    steps = f"step {model.step or 0:,} of {model.run.recipe.run.max_steps:,}"
    return f"{state_of(model.run)}, {steps}" if model.is_run else f"a checkpoint, {steps}"


def loss_of(model: ComparedModel) -> str:
    if model.recorded:
        return f"{model.recorded.validation_loss} (recorded)" if model.recorded.validation_loss else "not recorded"
    if model.loss is None:
        return NOT_MEASURED
    earlier = f" (step {model.loss.step:,})" if model.loss.step is not None and model.loss.step != model.step else ""
    return with_error(model.loss.loss, model.loss.standard_error) + earlier


def with_error(value: float, error: float) -> str:
    return f"{value:.4f}" + (f" ± {error:.4f}" if error else "")


def best_of(model: ComparedModel) -> str:
    """On the data of the loss that is shown."""
    own = model.is_run and model.run and model.loss and model.loss.data == model.run.environment.data.digest
    looks = model.run.history.validations if own and model.run else []
    best = min(looks, key=lambda look: look.loss, default=None)
    return f"{best.loss:.4f} (step {best.step:,})" if best else NONE


def recorded_share(model: ComparedModel) -> str:
    if model.recorded is None:
        return NONE
    return f"{model.recorded.hellaswag} (recorded)" if model.recorded.hellaswag else "not recorded"


def score_of(model: ComparedModel, task: str, rule: str) -> str:
    """What was answered, to which items, and when."""
    if model.recorded:
        return NONE
    one = next(iter(model.to(task)), None)
    if one is None or rule not in one.by_rule:
        return NOT_MEASURED
    after = f", step {one.step:,}" if one.step is not None else ""
    return f"{with_error(*one.by_rule[rule])} ({inline(one.items)}{after})"


def time_of(model: ComparedModel) -> str:
    return str(timedelta(seconds=round(training_seconds(model)))) if model.run and model.step else NONE


def speed_of(model: ComparedModel) -> str:
    return f"{model.run.tokens_per_second:,.0f}" if model.run and model.step else NONE


def flops_of(model: ComparedModel) -> str:
    return f"{model.tokens * model.recipe.model.flops_per_token:.3g}" if model.tokens and model.recipe else NONE


def peak_of(model: ComparedModel) -> str:
    share = model.run.share_of_peak if model.run and model.step else None
    return f"{100 * share:.3g} %" if share is not None else NONE


def against(first: ComparedModel, other: ComparedModel) -> Iterator[str]:
    """What of the first's figures and the other's is a difference."""
    yield f"**{inline(first.name)} against {inline(other.name)}**"
    yield ""
    if alike := identical_runs(first, other):
        yield f"- **the two are identical**: {identity_text(alike)}"
    elif first.loss and other.loss:
        loss = compare_losses(first.loss, other.loss)
        yield f"- validation loss: {inline(verdict_text(loss, other.name))}"
    if first.tokens is not None and other.tokens and first.tokens != other.tokens:
        yield f"- {inline(first.name)} saw {first.tokens / other.tokens:.3g} times as many tokens"
    if (speed := speed_of_runs(first, other)) and not alike:
        yield f"- speed: {values_text(speed)}, {inline(verdict_text(speed, other.name))}"
    alone = []
    for task in tasks_of([first, other]):
        same = [
            (one, two, one.answers, two.answers)
            for one in first.to(task)
            for two in other.to(task)
            if one.answers and two.answers and (one.digest, one.count) == (two.digest, two.count)
        ]
        if not same:
            alone.append(task)
            continue
        one, two, ours, theirs = max(same, key=lambda pair: pair[0].count)
        names = (after(inline(first.name), one), after(inline(other.name), two))
        for rule in ours.metrics:
            result = mcnemar_test(ours.right(rule), theirs.right(rule))
            yield f"- {task} ({inline(one.items)}), by {rule.description}: {accuracy_test_text(result, *names)}"
    if alone:
        yield f"- not both were asked the same items, so no test: {', '.join(alone)}"
    yield ""


def identical_runs(first: ComparedModel, other: ComparedModel) -> Identity | None:
    """Compare two whole runs; None where they differ, or where one is not a whole run."""
    if not (first.run and other.run and first.is_run and other.is_run):
        return None
    return identical(first.run, other.run)


def speed_of_runs(first: ComparedModel, other: ComparedModel) -> Verdict | None:
    """Compare the speeds of two whole runs, as a report does; None where they were not tested."""
    if not (first.run and other.run and first.is_run and other.is_run):
        return None
    verdict = speed_verdict(first.run, other.run)
    return None if verdict.outcome is Outcome.NOT_TESTED else verdict


def after(name: str, one: TaskScore) -> str:
    return f"{name} after step {one.step:,}" if one.step is not None and "step" not in name else name
