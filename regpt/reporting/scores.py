"""The table of final metrics: a run next to its baselines and published results, and which of them compare."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from regpt.base.format import NO_VALUE, percent, with_error
from regpt.corpus.public_corpora import PublicCorpus, corpus_of_source
from regpt.fairness.baselines import Baseline
from regpt.fairness.models import ComparedModel
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe, shipped_recipe
from regpt.reporting.published import CHANCE, GPT2, HELLASWAG_ITEMS, REFERENCES, Reference
from regpt.stats.identical import identical
from regpt.stats.verdicts import same_windows
from regpt.tracking.journal import TaskRecord
from regpt.tracking.run import Run, averaged_accuracy, primary_accuracy

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Column:
    """One model in the table of final metrics."""

    name: str
    last: str
    best: str
    hellaswag: str
    tokens: str
    by_sum: str = NO_VALUE  # HellaSwag, scored by the summed loss
    bits_per_byte: str = NO_VALUE
    averaged: str = NO_VALUE  # validation loss of the averaged weights
    averaged_hellaswag: str = NO_VALUE


class Relation(Enum):
    """How a baseline is related to the run of a report."""

    PREVIOUS = "Previous Run"
    EARLIER = "Earlier Run"
    LATER = "Later Run"
    RECORDED = "Recorded Run"
    OTHER_DATA = "Run on Other Data"
    IDENTICAL = "The Same Run"
    MODEL = "Model"


def columns(run: Run, others: Sequence[Baseline]) -> list[Column]:
    """Return the columns: this run, the baselines, and published results that compare with this run's."""
    own_record = has_record(run.recipe) and (is_on_corpus_of(run, run.recipe) or scored_all_items(run))
    return [
        measured_column(run, "This Run"),
        *([gpt2_column(run)] if loss_compares(run, GPT2) or scored_all_items(run) else []),
        *(baseline_column(other, name) for other, name in zip(others, headings(run, others), strict=True)),
        *([recorded_column(run.recipe, f"{run.recipe.name} (recorded)")] if own_record else []),
    ]


def baseline_column(other: Baseline, name: str) -> Column:
    if other.model is not None:
        return model_column(other.model, name)
    return measured_column(other.run, name) if other.run else recorded_column(other.recipe, name)


def model_column(model: ComparedModel, name: str) -> Column:
    """Return the loss of a model on the run's windows."""
    found = model.loss
    return Column(
        name,
        with_error(found.loss, found.standard_error) if found else NOT_MEASURED,
        NO_VALUE,
        NO_VALUE,
        f"{model.tokens:,}" if model.tokens else NO_VALUE,
        bits_per_byte=f"{found.bits_per_byte:.4f}" if found and found.bits_per_byte else NOT_MEASURED,
    )


def gpt2_column(run: Run) -> Column:
    """Return GPT-2's published results that compare with this run's."""
    scored = scored_all_items(run)
    return Column(
        "Reference (GPT-2 Original)",
        last=f"~{GPT2.validation_loss} (on {GPT2.data})" if loss_compares(run, GPT2) else NO_VALUE,
        best=NO_VALUE,
        hellaswag=f"{GPT2.hellaswag} ({percent(GPT2.hellaswag)}; published)" if scored else NO_VALUE,
        tokens=NO_VALUE,
        by_sum=f"{GPT2.by_sum} (published)" if scored else NO_VALUE,
    )


def loss_compares(run: Run, published: Reference) -> bool:
    """Whether a published loss was measured on this run's corpus."""
    return published.validation_loss is not None and published.data is run.corpus


def scored_all_items(run: Run) -> bool:
    """Whether this run's HellaSwag accuracy is over all items, as published ones are."""
    return bool(run.hellaswag) and run.hellaswag[-1].is_full_set


def is_on_corpus_of(run: Run, recipe: Recipe) -> bool:
    """Whether a run was trained on the text of a shipped recipe's record."""
    shipped = shipped_recipe(recipe.name)
    corpus = corpus_of_source((load_recipe(shipped) if shipped else recipe).data.source)
    return corpus is not PublicCorpus.OTHER and corpus is run.corpus


def headings(run: Run, others: Sequence[Baseline]) -> list[str]:
    """Return the heading of each baseline."""
    names = [other.name if other.run or other.model else f"{other.recipe.name}, recorded" for other in others]
    return [f"{found.value} ({name})" for found, name in zip(relations(run, others), names, strict=True)]


def relations(run: Run, others: Sequence[Baseline]) -> list[Relation]:
    """Return the relation of each baseline to the run.

    At most one is the previous run: the latest run on the same data that began before this one, or else the first
    recorded one that is not this recipe's own record.
    """
    found = [relation(run, other) for other in others]
    before = [n for n, one in enumerate(found) if one is Relation.EARLIER]
    own = run.recipe.name
    recorded = [n for n, one in enumerate(found) if one is Relation.RECORDED and others[n].recipe.name != own]
    runs = {n: began(other.run) for n, other in enumerate(others) if other.run}
    for n in sorted(before, key=lambda n: runs[n])[-1:] or recorded[:1]:
        found[n] = Relation.PREVIOUS
    return found


def relation(run: Run, other: Baseline) -> Relation:
    """Return the relation of one baseline, regardless of the other baselines."""
    if other.model is not None:
        return Relation.MODEL
    if other.run is None:
        same = other.recipe.data.source == run.recipe.data.source
        corpus = corpus_of_source(other.recipe.data.source)
        known = corpus is not PublicCorpus.OTHER and corpus is run.corpus
        return Relation.RECORDED if same or known else Relation.OTHER_DATA
    if identical(run, other.run):
        return Relation.IDENTICAL
    if run.environment.data.digest != other.run.environment.data.digest:
        return Relation.OTHER_DATA
    return Relation.LATER if began(other.run) > began(run) else Relation.EARLIER


def began(run: Run) -> float:
    """Return when a run began, in seconds since 1970; infinity if it has not."""
    return run.history.events[0].at if run.history.events else math.inf


def table_of(columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """Transpose the columns into rows: (name, cells)."""
    return [
        ("Validation Loss", [column.last for column in columns]),
        ("Validation Loss, best", [column.best for column in columns]),
        ("Validation Loss, averaged weights", [column.averaged for column in columns]),
        ("Bits per Byte", [column.bits_per_byte for column in columns]),
        ("HellaSwag Accuracy", [column.hellaswag for column in columns]),
        ("HellaSwag, averaged weights", [column.averaged_hellaswag for column in columns]),
        ("HellaSwag, by summed loss", [column.by_sum for column in columns]),
        ("Tokens Seen", [column.tokens for column in columns]),
    ]


def has_record(recipe: Recipe) -> bool:
    return bool(recipe.published.validation_loss or recipe.published.hellaswag)


def measured_column(run: Run, name: str) -> Column:
    last, best = run.validation_loss, run.best_validation_loss
    bits = run.history.validations[-1].bits_per_byte if run.history.validations else 0.0
    averaged = run.history.validations[-1].averaged_loss if run.history.validations else None
    averaged_share = averaged_accuracy(run.hellaswag[-1]) if run.hellaswag else None
    return Column(
        name,
        with_error(last, run.history.validations[-1].standard_error) if last is not None else NOT_MEASURED,
        f"{best:.4f}" if best is not None else NOT_MEASURED,
        hellaswag_of(run, "by_token") + in_percent(run),
        f"{run.tokens:,}",
        hellaswag_of(run, "by_sum"),
        f"{bits:.4f}" if bits else NOT_MEASURED,
        f"{averaged:.4f}" if averaged is not None else NO_VALUE,
        f"{averaged_share:.4f} ({percent(averaged_share)})" if averaged_share is not None else NO_VALUE,
    )


def hellaswag_of(run: Run, metric: str) -> str:
    """Format the last accuracy by a metric."""
    if not run.hellaswag:
        return NOT_MEASURED
    last = run.hellaswag[-1]
    return with_error(last.accuracy[metric], last.standard_errors[metric])


def in_percent(run: Run) -> str:
    return f" ({percent(primary_accuracy(run.hellaswag[-1])[0])}; {run.hellaswag[-1].items})" if run.hellaswag else ""


def recorded_column(recipe: Recipe, name: str) -> Column:
    """Return the published figures. They belong to the shipped recipe, even where a run changed its length."""
    shipped = shipped_recipe(recipe.name)
    tokens = f"{(load_recipe(shipped) if shipped else recipe).total_tokens:,} (planned)"
    claimed = recipe.published
    return Column(
        name,
        f"{claimed.validation_loss} (recorded)" if claimed.validation_loss else "not recorded",
        NO_VALUE,
        f"{claimed.hellaswag} ({percent(claimed.hellaswag)}; recorded)" if claimed.hellaswag else "not recorded",
        tokens,
    )


def recorded_where(recipe: Recipe) -> str:
    """Say where published figures come from and what they cost: 'the record (4 x RTX 3090, 11 h, 7 USD)'."""
    claimed = recipe.published
    took = [
        claimed.hardware,
        f"{claimed.hours:g} h" if claimed.hours else "",
        f"{claimed.cost_usd:g} USD" if claimed.cost_usd >= 0 else "",
    ]
    return f"{claimed.origin or 'its recipe'} ({', '.join(filter(None, took)) or 'hardware not recorded'})"


@dataclass(frozen=True)
class PublishedRow:
    """A published result of which at least one figure compares with this run's."""

    name: str
    loss: str
    hellaswag: str


def published_rows(run: Run) -> list[PublishedRow]:
    """Return the published losses on this run's corpus, and accuracies on the same items by the same rule."""
    rows = []
    for one in REFERENCES:
        loss = f"{one.validation_loss} on {one.data}" if loss_compares(run, one) else NO_VALUE
        scored = scored_all_items(run) and one.scored == GPT2.scored
        accuracy = f"{one.hellaswag:.3f}, {one.scored}" if scored else NO_VALUE
        if (loss, accuracy) != (NO_VALUE, NO_VALUE):
            rows.append(PublishedRow(one.name, loss, accuracy))
    return rows


def guessing(record: TaskRecord) -> bool:
    """Return whether an accuracy is within two standard errors of chance, with the error that guessing has."""
    share, error = primary_accuracy(record)
    chance_error = math.sqrt(CHANCE * (1 - CHANCE) / record.count) if record.count else error
    return abs(share - CHANCE) < 2 * chance_error


def notes_of_hellaswag(run: Run) -> list[str]:
    if not run.hellaswag:
        why = run.hellaswag_unmeasured
        return [f"HellaSwag was {NOT_MEASURED}: {why}."] if why and run.recipe.evaluation.hellaswag_every else []
    last = run.hellaswag[-1]
    lines = [
        f"HellaSwag after step {last.step:,}: {last.items}. The model's answer is the choice with the lowest"
        " mean loss per token, as in build-nanogpt. ± is one standard error; random guessing gives 0.25."
    ]
    if last.cut:
        lines.append(f"{last.cut:,} items were longer than the model's context; their text was cut off at the start.")
    if guessing(last):
        lines.append("This accuracy is not significantly different from guessing (within two standard errors of 0.25).")
    return lines


def notes(run: Run, others: Sequence[Baseline]) -> list[str]:
    """Return what a reader must know before comparing two numbers of the table."""
    lines = [
        "Losses are nats per token on fixed windows of the validation split; ± is one standard error over the windows."
    ]
    for other in others:
        if other.model is not None:
            lines.append(f"{other.name} was validated here, on this run's windows; the two losses are comparable.")
        elif other.run is None:
            lines.append(f"{other.name}: figures from {recorded_where(other.recipe)}, not measured here.")
        elif same_windows(run, other.run):
            lines.append(f"{other.name} was validated on the same windows; the two losses are comparable.")
        else:
            lines.append(f"{other.name} was validated on other windows or data; the two losses are not comparable.")
    if published_rows(run):
        lines += [f"Published losses on {run.corpus} are over its public validation shard."] * loss_compares(run, GPT2)
    else:
        lines.append(
            f"Published losses of models of this size are on {PublicCorpus.FINEWEB_EDU} or {PublicCorpus.FINEWEB},"
            f" published accuracies on all {HELLASWAG_ITEMS:,} HellaSwag items; they do not compare with these values."
        )
    return [*lines, *notes_of_hellaswag(run)]
