"""The values of a report's sections, as the template reads them.

Text is escaped for Markdown, unless a field says that it is not.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from regpt.base.format import NO_VALUE
from regpt.fairness.baselines import Baseline
from regpt.fairness.claims import Claim, claims_on_runs
from regpt.fairness.wording import caveats_text, no_claim
from regpt.rendering.markdown import code, escaped
from regpt.reporting.dataset import baselines, split_lines
from regpt.reporting.recipe_diff import Change, changes, differences_from_gpt2, one_change, rows_of_differences
from regpt.reporting.scores import (
    NOT_MEASURED,
    PublishedRow,
    Relation,
    columns,
    headings,
    notes,
    published_rows,
    relations,
    table_of,
)
from regpt.reporting.summary import claim_at_equal_tokens, summary
from regpt.reporting.wording import architecture, attention_of, event_line, resource_rows, setup_rows, start_text
from regpt.stats.describe import OUTCOME_TEXT, describe_test, difference_text, identity_text, value_text
from regpt.stats.identical import identical
from regpt.stats.outcome import Quantity
from regpt.tracking.journal import SampleRecord
from regpt.tracking.run import Run
from regpt.tracking.status import state_of

ROW_NAMES = {
    Quantity.VALIDATION_LOSS: "Validation Loss",
    Quantity.BITS_PER_BYTE: "Bits per Byte of the Same Text",
    Quantity.HELLASWAG: "HellaSwag Accuracy",
    Quantity.SPEED: "Training Efficiency",
}


@dataclass(frozen=True)
class Hardware:
    """Devices, time, cost and software of a run: (name, value). What is unknown or does not apply has no row."""

    resources: list[tuple[str, str]]
    setup: list[tuple[str, str]]


@dataclass(frozen=True)
class FinalMetrics:
    """The table of final metrics."""

    columns: list[str]
    rows: list[tuple[str, list[str]]]  # (name, cells); not escaped
    notes: list[str]


@dataclass(frozen=True)
class VerdictRow:
    """One quantity of two runs."""

    name: str
    theirs: str
    ours: str
    difference: str
    verdict: str  # not escaped
    test: str  # with its numbers, or why it is missing; not escaped


@dataclass(frozen=True)
class BaselineComparison:
    """A run compared with one baseline."""

    name: str
    heading: str  # the relation, with the name
    is_previous: bool
    learning_rate_ratio: float  # this run's highest learning rate by the baseline's
    changes: list[Change]
    settings: list[tuple[str, str, str, str]]  # (setting, ours, theirs, ratio); not escaped
    example: str  # the command that trains with one of the changes; empty if none affects learning
    identity: str  # in what the two are identical; empty if they differ
    verdicts: list[VerdictRow]

    @property
    def improvements(self) -> list[Change]:
        """The changes of the model and of the training's length."""
        return [change for change in self.changes if change.part]

    @property
    def factors(self) -> list[Change]:
        """The changes that affect what is learned."""
        return [change for change in self.changes if change.matters]


@dataclass(frozen=True)
class Attempts:
    """How a run was started, interrupted and finished."""

    command: str  # empty where it is not recorded
    events: list[str]
    skipped: list[str]  # steps that the guard skipped, with the reason


@dataclass(frozen=True)
class ReportPage:
    """All values of a report that are not read from the run itself."""

    run: Run
    date: str
    state: str
    opening: list[str]  # paragraphs
    architecture: list[str]
    hardware: Hardware
    metrics: FinalMetrics
    published: list[PublishedRow]
    split: list[tuple[str, str]]  # (name, text), of the dataset
    samples: SampleRecord | None
    differences_from_gpt2: list[str]
    attempts: Attempts
    baselines: list[BaselineComparison]

    @property
    def compared(self) -> list[BaselineComparison]:
        """The baselines that are runs. Recorded figures have no standard errors, so they are not tested."""
        return [other for other in self.baselines if other.identity or other.verdicts]


def report_page(run: Run, others: Sequence[Baseline]) -> ReportPage:
    """Collect the values of a run's report. The run may still be training."""
    return ReportPage(
        run=run,
        date=start_text(run),
        state=state_of(run),
        opening=summary(run, others),
        architecture=architecture(run.recipe, attention_of(run)),
        hardware=hardware(run),
        metrics=final_metrics(run, others),
        published=published_rows(run),
        split=[(name, escaped(text)) for name, text in split_lines(run)],
        samples=run.history.samples[-1] if run.history.samples else None,
        differences_from_gpt2=differences_from_gpt2(run),
        attempts=attempts(run),
        baselines=[
            baseline_comparison(run, other, heading, relation)
            for other, heading, relation in zip(others, headings(run, others), relations(run, others), strict=True)
            if other.model is None
        ],
    )


def hardware(run: Run) -> Hardware:
    return Hardware(
        resources=[row for row in resource_rows(run) if row[1]],
        setup=[row for row in setup_rows(run) if row[1]],
    )


def final_metrics(run: Run, others: Sequence[Baseline]) -> FinalMetrics:
    found = columns(run, others)
    return FinalMetrics(
        columns=[escaped(column.name) for column in found],
        rows=[(name, cells) for name, cells in table_of(found) if set(cells) - {NOT_MEASURED, NO_VALUE}],
        notes=[escaped(note) for note in (*baselines(run), *notes(run, others))],
    )


def attempts(run: Run) -> Attempts:
    return Attempts(
        command=code(command(run)) if run.environment.command else "",
        events=[event_line(event) for event in run.history.events],
        skipped=[escaped(f"step {record.step:,}: {record.reason}") for record in run.history.skipped],
    )


def command(run: Run) -> str:
    """Return the command that started the run, ready to paste."""
    program, *words = run.environment.command
    return shlex.join(["python", "-m", "regpt", *words] if program == "__main__.py" else [program, *words])


def baseline_comparison(run: Run, other: Baseline, heading: str, relation: Relation) -> BaselineComparison:
    """Compare a run with one baseline."""
    same = identical(run, other.run) if other.run else None
    found = changes(run.recipe, other.recipe)
    return BaselineComparison(
        name=escaped(other.name),
        heading=escaped(heading),
        is_previous=relation is Relation.PREVIOUS,
        learning_rate_ratio=run.recipe.optimizer.max_lr / other.recipe.optimizer.max_lr,
        changes=found,
        settings=rows_of_differences(run.recipe, other.recipe),
        example=one_change_command(run, other, found),
        identity=identity_text(same) if same else "",
        verdicts=verdict_rows(run, other.run) if other.run and not same else [],
    )


def one_change_command(run: Run, other: Baseline, found: Sequence[Change]) -> str:
    """Return a command that trains the baseline with one change; a change of the model if there is one."""
    factors = [change for change in found if change.matters]
    if not factors:
        return ""
    chosen = next((change for change in factors if change.settings[0].startswith("model.")), factors[0])
    recipe = other.run.paths.recipe if other.run else other.recipe.name
    return code(f"regpt train {recipe} --name one-change {one_change(chosen, run.recipe, other.recipe)}")


def verdict_rows(run: Run, other: Run) -> list[VerdictRow]:
    """Return a row for each quantity that was measured in a run."""
    claims = claims_on_runs(run, other)
    named = [(ROW_NAMES[claim.verdict.quantity], claim) for claim in claims]
    if at_equal := claim_at_equal_tokens(run, other, claims[0]):
        named.insert(1, (f"{ROW_NAMES[Quantity.VALIDATION_LOSS]} at Equal Tokens", at_equal))
    return [
        verdict_row(name, one, other) for name, one in named if (one.verdict.ours, one.verdict.theirs) != (None, None)
    ]


def verdict_row(name: str, claim: Claim, other: Run) -> VerdictRow:
    verdict = claim.verdict
    return VerdictRow(
        name=name,
        theirs=value_text(verdict.quantity, verdict.theirs),
        ours=value_text(verdict.quantity, verdict.ours),
        difference=difference_text(verdict),
        verdict=no_claim(caveats_text(claim.caveats)) if claim.caveats else OUTCOME_TEXT[verdict.outcome],
        test=describe_test(verdict, other.id),
    )
