"""The wording of caveats, their remedies, and significance tests."""

from collections.abc import Callable, Sequence
from typing import Any

from regpt.fairness.caveats import Caveat, CaveatKind, Remedy, RemedyKind
from regpt.fairness.claims import AccuracyTest, Claim, Limit, PairedTests
from regpt.fairness.condition_checks import DataOrder, SkippedSteps
from regpt.fairness.models import ComparedModel, TaskScore, metric_text, task_title
from regpt.fairness.run_checks import CheckpointStep, LastAndBest, Progress
from regpt.recipe.recipe import PublishedRecipe
from regpt.rendering.markup import Markup, command_line
from regpt.stats.describe import OUTCOME_TEXT, accuracy_test_text, describe_test, identity_text
from regpt.stats.describe import values_text as both_values_text
from regpt.stats.outcome import Outcome, Quantity

FAIR = "Nothing was found that makes this comparison unfair."
SEVERE_TITLE = "Not comparable:"
CARE_TITLE = "Compare with care:"

TITLES = {
    CaveatKind.OTHER_DATA: "Validation loss on different data",
    CaveatKind.OTHER_BLOCK_SIZE: "Validation loss with different block sizes",
    CaveatKind.OTHER_WINDOWS: "Validation loss on different windows",
    CaveatKind.OTHER_TOKENIZER: "Different tokenizers",
    CaveatKind.UNKNOWN_TOKENIZER: "Unknown tokenizer",
    CaveatKind.SUBSET_AND_FULL_SET: "{task}: a subset and the full set",
    CaveatKind.OTHER_ITEMS: "{task}: different items",
    CaveatKind.OTHER_PROMPTS: "{task}: different prompts",
    CaveatKind.OTHER_METRIC: "{task}: different metrics",
    CaveatKind.MISSING_LOSS: "Validation loss: not measured for every model",
    CaveatKind.MISSING_SCORE: "{task}: not scored for every model",
    CaveatKind.EARLIER_SCORE: "{task}: scored at an earlier step",
    CaveatKind.BEST_AND_LAST: "Best checkpoint compared with a last one",
    CaveatKind.EARLIER_AND_LAST: "Earlier checkpoint compared with a last one",
    CaveatKind.LAST_ABOVE_BEST: "Last loss far above the run's best",
    CaveatKind.UNFINISHED: "Unfinished run",
    CaveatKind.OTHER_TOKENS: "Different numbers of training tokens",
    CaveatKind.OTHER_TRAINING_DATA: "Different training data",
    CaveatKind.OTHER_ORDER: "Different order of the training windows",
    CaveatKind.OTHER_SEED: "Different seeds",
    CaveatKind.OTHER_BATCH: "Different batch sizes",
    CaveatKind.OTHER_EPOCHS: "Different numbers of passes over the text",
    CaveatKind.MOVED_SCHEDULE: "Learning-rate schedule moved by a resume",
    CaveatKind.SKIPPED_STEPS: "Different numbers of skipped steps",
    CaveatKind.OTHER_DEVICE: "Time measured on different devices",
    CaveatKind.OTHER_PRECISION: "Different precision",
    CaveatKind.OTHER_COMPILE: "torch.compile used for some models only",
    CaveatKind.TRUNCATED_CONTEXTS: "{task}: truncated contexts",
    CaveatKind.PUBLISHED_ON_OTHER_DATA: "Published figures from different data",
    CaveatKind.PUBLISHED: "Published figures",
}


def scores_text(scores: Sequence[TaskScore]) -> str:
    return " and ".join(f"{task_title(score.task)}, by {metric_text(score.headline_metric)}" for score in scores)


def checkpoint_text(value: CheckpointStep) -> str:
    if value.step == value.last_step:
        return f"step {value.step:,}, the last{' and best' if value.is_best else ''}"
    return f"step {value.step:,} of {value.last_step:,}, {'the best' if value.is_best else 'an earlier one'}"


def last_and_best_text(value: LastAndBest) -> str:
    last, best = value.last, value.best
    return f"last {last.loss:.4f} (step {last.step:,}), best {best.loss:.4f} (step {best.step:,})"


def progress_text(value: Progress) -> str:
    if value.state is None:
        return "finished"
    return f"step {value.step:,} of {value.max_steps:,} ({value.state})"


def published_text(value: PublishedRecipe) -> str:
    """Name the source of published figures, with hardware, time and cost."""
    conditions = [
        value.hardware or "hardware unknown",
        f"{value.hours:g} h" if value.hours else "",
        f"{value.cost_usd:g} USD" if value.cost_usd >= 0 else "",
    ]
    return (
        f"from {value.origin or 'the recipe'} ({', '.join(filter(None, conditions))}), not measured here;"
        " windows and items are unknown"
    )


def order_text(value: DataOrder) -> str:
    """Name the order; in sequential order also the part of the text that was read."""
    if value.order == "shuffled" or value.share_read is None:
        return value.order
    return f"{value.order}, {'the first ' if value.share_read < 1 else ''}{100 * value.share_read:.3g} % of the text"


def horizons_text(steps: tuple[int, ...]) -> str:
    first, *later = steps
    moved = "".join(f", then {step:,}" for step in later)
    return f"a schedule of {first:,} steps{moved}"


def skipped_text(value: SkippedSteps) -> str:
    return f"{value.skipped:,} skipped, {value.rollbacks:,} rollback{'s' * (value.rollbacks != 1)}"


VALUE_TEXT: dict[CaveatKind, Callable[[Any], str]] = {
    CaveatKind.OTHER_DATA: lambda digest: f"data {digest[:12]}",
    CaveatKind.OTHER_BLOCK_SIZE: lambda tokens: f"{tokens:,} tokens",
    CaveatKind.OTHER_WINDOWS: lambda windows: f"the first {windows:,} windows",
    CaveatKind.OTHER_TOKENIZER: lambda tokenizer: tokenizer or "unknown",
    CaveatKind.UNKNOWN_TOKENIZER: lambda tokenizer: tokenizer or "unknown",
    CaveatKind.SUBSET_AND_FULL_SET: lambda score: score.items,
    CaveatKind.OTHER_ITEMS: lambda score: f"{score.items}, digest {score.digest[:12]}" if score.digest else score.items,
    CaveatKind.OTHER_PROMPTS: scores_text,
    CaveatKind.OTHER_METRIC: lambda metric: f"by {metric_text(metric)}" if metric else "no metric",
    CaveatKind.MISSING_LOSS: lambda is_measured: "measured" if is_measured else "not measured",
    CaveatKind.MISSING_SCORE: lambda score: score.items if score else "not scored",
    CaveatKind.EARLIER_SCORE: lambda steps: f"scored at step {steps[0]:,} of {steps[1]:,}",
    CaveatKind.BEST_AND_LAST: checkpoint_text,
    CaveatKind.EARLIER_AND_LAST: checkpoint_text,
    CaveatKind.LAST_ABOVE_BEST: last_and_best_text,
    CaveatKind.UNFINISHED: progress_text,
    CaveatKind.OTHER_TOKENS: lambda tokens: f"{tokens:,}" if tokens is not None else "unknown",
    CaveatKind.OTHER_TRAINING_DATA: lambda digest: f"data {digest[:12]}",
    CaveatKind.OTHER_ORDER: order_text,
    CaveatKind.OTHER_SEED: str,
    CaveatKind.OTHER_BATCH: lambda tokens: f"{tokens:,} tokens in a step",
    CaveatKind.OTHER_EPOCHS: lambda epochs: f"{epochs:.3g}",
    CaveatKind.MOVED_SCHEDULE: horizons_text,
    CaveatKind.SKIPPED_STEPS: skipped_text,
    CaveatKind.OTHER_DEVICE: str,
    CaveatKind.OTHER_PRECISION: str,
    CaveatKind.OTHER_COMPILE: lambda compiled: "compiled" if compiled else "not compiled",
    CaveatKind.TRUNCATED_CONTEXTS: lambda items: f"{items:,} items",
    CaveatKind.PUBLISHED_ON_OTHER_DATA: lambda value: f"{value[0]}, context length {value[1]:,}",
    CaveatKind.PUBLISHED: published_text,
}

REMEDY_TEXT = {
    RemedyKind.EVALUATE: "run {commands}, then compare again",
    RemedyKind.EVALUATE_ALL_ITEMS: "score all items with {commands}, then compare again",
    RemedyKind.EVALUATE_IN_THIS_PRECISION: "see the effect of the precision with {commands}",
    RemedyKind.EVALUATE_BEST: "compare best checkpoints after {commands}",
    RemedyKind.COMPARE_LAST: "compare last steps with {commands}",
    RemedyKind.RESUME: "wait for the end, or run {commands}",
    RemedyKind.TRAIN_AGAIN: "train again with {commands}",
    RemedyKind.TRAIN_ON_SAME_TEXT: "train all models on text that is long enough for one pass",
    RemedyKind.TRAIN_WITHOUT_RESUME: "train again in one schedule: {commands}",
    RemedyKind.READ_REPORTS: "see in the reports which steps were skipped, remove the cause and train again",
    RemedyKind.TRAIN_SHORTER: "train again for fewer tokens with {commands}",
    RemedyKind.TRAIN_PUBLISHED: "measure them with {commands}",
    RemedyKind.TRAIN_WITH_BLOCK_SIZE: "train with {commands}",
    RemedyKind.TRAIN_WITH_LONGER_BLOCKS: "train with a larger {commands}, which truncates fewer contexts",
    RemedyKind.IDENTIFY_DATA: "see how the data was made with {commands}; this version records the tokenizer",
    RemedyKind.READ_EQUAL_TOKENS: "read the table at equal tokens",
    RemedyKind.IGNORE_TIME: "compare at equal tokens, not at equal time, or train all models on one machine",
    RemedyKind.IGNORE_TIME_OR_COMPILE: "compare at equal tokens, not at equal time, or train all models with the same"
    " {commands}",
    RemedyKind.USE_BITS_PER_BYTE: "compare bits per byte, which do not depend on the tokenizer",
    RemedyKind.NO_CHECKPOINT: "train again with a checkpoint at every validation ({commands})",
    RemedyKind.NO_CURVES: "validate two runs on the same windows, which gives a table at equal tokens",
    RemedyKind.SAME_DATA_ONLY: "compare each result only with results on the same data",
}
CODE = {  # a setting or command that a remedy mentions
    RemedyKind.TRAIN_WITH_LONGER_BLOCKS: "model.block_size",
    RemedyKind.NO_CHECKPOINT: "checkpoint.every",
    RemedyKind.IDENTIFY_DATA: "regpt data show FOLDER",
    RemedyKind.IGNORE_TIME_OR_COMPILE: "run.compile",
}


def caveat_lines(caveats: Sequence[Caveat], markup: Markup) -> list[str]:
    """Describe all caveats, the severe ones first. An empty line ends each group."""
    if not caveats:
        return [FAIR, ""]
    lines = []
    for is_severe, title in ((True, SEVERE_TITLE), (False, CARE_TITLE)):
        group = [caveat for caveat in caveats if caveat.kind.is_severe is is_severe]
        if group:
            lines += [markup.bold(title), "", *(f"- {caveat_text(caveat, markup)}" for caveat in group), ""]
    return lines


def caveat_text(caveat: Caveat, markup: Markup) -> str:
    title = markup.bold(f"{markup.text(TITLES[caveat.kind].format(task=task_title(caveat.task)))}.")
    remedies = "; or ".join(remedy_text(remedy, markup) for remedy in caveat.remedies)
    return f"{title} {values_text(caveat, markup)}. Remedy: {remedies}."


def values_text(caveat: Caveat, markup: Markup) -> str:
    """Group the models with equal values: 'a, c: finished; b: step 6 of 12'."""
    names: dict[str, list[str]] = {}
    for name, value in caveat.values:
        names.setdefault(VALUE_TEXT[caveat.kind](value), []).append(markup.text(name))
    return "; ".join(f"{', '.join(having)}: {markup.text(value)}" for value, having in names.items())


def remedy_text(remedy: Remedy, markup: Markup) -> str:
    commands = [
        markup.code(command_line(command.arguments))
        + (f" (MODEL: the path of {markup.text(command.model)})" if command.model else "")
        for command in remedy.commands
    ]
    if remedy.kind in CODE:
        commands = [markup.code(CODE[remedy.kind])]
    if remedy.kind is RemedyKind.TRAIN_WITH_BLOCK_SIZE:
        commands = [markup.code(f"model.block_size={remedy.block_size}")]
    return REMEDY_TEXT[remedy.kind].format(commands=" and ".join(commands))


def significance_lines(tests: PairedTests, markup: Markup) -> list[str]:
    """Return a title and one line for each test. An empty line ends them."""
    first, other = markup.text(tests.first.name), markup.text(tests.other.name)
    lines = [markup.bold(f"{first} compared with {other}"), ""]
    if tests.identity:
        lines.append(f"- {markup.bold('The runs are identical')}: {markup.text(identity_text(tests.identity))}")
    if tests.loss:
        lines.append(f"- {claim_text(tests.loss, tests.other.name, markup)}")
    if tests.bits_per_byte:
        lines.append(f"- {claim_text(tests.bits_per_byte, tests.other.name, markup)}")
    if tests.token_ratio is not None:
        lines.append(f"- Training tokens: {tests.token_ratio:.3g} times those of {other}")
    if tests.speed:
        lines.append(f"- {claim_text(tests.speed, tests.other.name, markup)}")
    lines += [accuracy_line(found, tests.first, tests.other, markup) for found in tests.accuracies]
    if tests.untested_tasks:
        tasks = markup.text(", ".join(map(task_title, tests.untested_tasks)))
        lines.append(f"- Not tested, because the models were not scored on the same items: {tasks}")
    return [*lines, ""]


SUBJECTS = {
    Quantity.VALIDATION_LOSS: "Validation loss",
    Quantity.BITS_PER_BYTE: "Bits per byte of the same text",
    Quantity.HELLASWAG: "HellaSwag accuracy",
    Quantity.SPEED: "Speed",
}
LIMIT_TEXT = {
    Limit.ONE_SEED: "one seed each",
    Limit.ONE_RATE: "one learning rate each, so a difference between recipes may be one between rates",
}


def claim_text(claim: Claim, other: str, markup: Markup) -> str:
    """Say which run is better where the comparison allows it; otherwise give both values and what forbids it."""
    verdict = claim.verdict
    subject = SUBJECTS[verdict.quantity]
    if not claim.is_about_recipes:
        why = caveats_text(claim.caveats) if claim.caveats else describe_test(verdict, other)
        return f"{subject}: {both_values_text(verdict)}. {markup.text(no_claim(why))}"
    outcome, test = markup.bold(OUTCOME_TEXT[verdict.outcome]), markup.text(describe_test(verdict, other))
    return f"{subject}: {outcome}, {both_values_text(verdict)}{limits_text(claim.limits)}: {test}"


def limits_text(limits: Sequence[Limit]) -> str:
    """Return the limits of a claim in brackets, with a space before them; empty without limits."""
    return f" ({'; '.join(LIMIT_TEXT[limit] for limit in limits)})" if limits else ""


def no_claim(why: str) -> str:
    return f"No claim about the recipes: {why}."


def caveats_text(caveats: Sequence[Caveat]) -> str:
    """Name what can change a verdict: 'different seeds, unfinished run'."""
    titles = [TITLES[caveat.kind].format(task=task_title(caveat.task)) for caveat in caveats]
    return ", ".join(dict.fromkeys(title[0].lower() + title[1:] for title in titles))


def accuracy_line(found: AccuracyTest, first: ComparedModel, other: ComparedModel, markup: Markup) -> str:
    names = name_at_step(first, found.first), name_at_step(other, found.other)
    title = f"{task_title(found.first.task)} accuracy ({found.first.items}), by {found.metric.description}"
    text = f"{accuracy_conclusion(found, *names)} {accuracy_test_text(found.test, *names, found.p_value)}"
    return f"- {markup.text(title)}: {markup.text(text)}"


def accuracy_conclusion(found: AccuracyTest, first: str, other: str) -> str:
    """Say which model is better where the comparison allows it, otherwise what forbids it."""
    if found.test.is_near_guessing:
        share = f"{found.test.guessing:.3g}"
        return no_claim(f"neither is significantly better than guessing ({share}) on these items")
    if found.caveats:
        return no_claim(caveats_text(found.caveats))
    if not found.outcome.is_difference:
        smallest = f"{100 * found.test.smallest_difference:.2g} percentage points"
        return f"Not significantly different; these items could show a difference of about {smallest} or more."
    return f"{first if found.outcome is Outcome.HIGHER else other} is significantly better{limits_text(found.limits)}."


def name_at_step(model: ComparedModel, score: TaskScore) -> str:
    """Return the name of a run with the step of the score. A checkpoint's name has its step already."""
    return f"{model.name} at step {score.step:,}" if model.is_run and score.step is not None else model.name


def problem_lines(models: Sequence[ComparedModel], markup: Markup) -> list[str]:
    """Return what is missing from the tables, and why. An empty line ends the list."""
    lines = [f"- {markup.text(model.name)} has no steps yet" for model in models if model.is_run and not model.step] + [
        f"- Left out: {markup.text(problem)}" for model in models for problem in model.problems
    ]
    return [*lines, ""] if lines else []
