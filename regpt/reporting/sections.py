"""The values of a report's sections, as the template reads them.

Text is escaped for Markdown, unless a field says that it is not.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from regpt.fairness.claims import Claim, claims_on_runs
from regpt.fairness.wording import caveats_text, no_claim
from regpt.rendering.markdown import code, escaped
from regpt.reporting.published import REFERENCES
from regpt.reporting.recipe_diff import Change, changes, differences_from_gpt2, one_change, rows_of_differences
from regpt.reporting.scores import (
    Baseline,
    Relation,
    columns,
    headings,
    notes,
    published_row,
    recorded_where,
    relations,
    table_of,
)
from regpt.reporting.summary import summary
from regpt.reporting.wording import (
    architecture,
    cost,
    durations,
    event_line,
    framework,
    gpu_type,
    gpus,
    memory,
    start_text,
)
from regpt.stats.describe import difference_text, identity_text, value_text, verdict_text
from regpt.stats.identical import identical
from regpt.stats.outcome import Quantity
from regpt.tracking.journal import SampleRecord
from regpt.tracking.run import Run
from regpt.tracking.status import state_of

ROW_NAMES = {
    Quantity.VALIDATION_LOSS: "Validation Loss",
    Quantity.HELLASWAG: "HellaSwag Accuracy",
    Quantity.SPEED: "Training Efficiency",
}
RELATION_TEXT = {
    Relation.PREVIOUS: "Intended improvements.",
    Relation.EARLIER: "The other run is an earlier one, but not the previous one.",
    Relation.LATER: "The other run is a later one.",
    Relation.RECORDED: "The figures of the other run are recorded, not measured here.",
    Relation.OTHER_DATA: "The other run was trained on other data.",
    Relation.IDENTICAL: "The other run is identical.",
}


@dataclass(frozen=True)
class Hardware:
    """Devices, time and cost of a run."""

    gpu_type: str
    gpus: str
    training_time: str
    cost: str
    memory: str
    framework: str
    backend: str


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
    verdict: str  # outcome and test; not escaped


@dataclass(frozen=True)
class BaselineComparison:
    """A run compared with one baseline."""

    name: str
    heading: str  # the relation, with the name
    is_previous: bool
    relation: str  # a sentence
    learning_rate_ratio: float  # this run's highest learning rate by the baseline's
    changes: list[Change]
    settings: list[tuple[str, str, str, str]]  # (setting, ours, theirs, ratio); not escaped
    example: str  # the command that trains with one of the changes; empty if none affects learning
    identity: str  # in what the two are identical; empty if they differ
    verdicts: list[VerdictRow]
    origin: str  # of recorded figures

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

    command: str
    count: int
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
    published: list[tuple[str, str, str, str]]  # (name, loss, HellaSwag, what is comparable)
    samples: SampleRecord | None
    differences_from_gpt2: list[str]
    attempts: Attempts
    baselines: list[BaselineComparison]


def report_page(run: Run, others: Sequence[Baseline]) -> ReportPage:
    """Collect the values of a run's report. The run may still be training."""
    return ReportPage(
        run=run,
        date=start_text(run),
        state=state_of(run),
        opening=summary(run, others),
        architecture=architecture(run.recipe),
        hardware=hardware(run),
        metrics=final_metrics(run, others),
        published=[published_row(run, one) for one in REFERENCES],
        samples=run.history.samples[-1] if run.history.samples else None,
        differences_from_gpt2=differences_from_gpt2(run),
        attempts=attempts(run),
        baselines=[
            baseline_comparison(run, other, heading, relation)
            for other, heading, relation in zip(others, headings(run, others), relations(run, others), strict=True)
        ],
    )


def hardware(run: Run) -> Hardware:
    name, backend = framework(run)
    return Hardware(
        gpu_type=gpu_type(run),
        gpus=gpus(run),
        training_time=durations(run),
        cost=cost(run),
        memory=memory(run),
        framework=name,
        backend=backend,
    )


def final_metrics(run: Run, others: Sequence[Baseline]) -> FinalMetrics:
    found = columns(run, others)
    return FinalMetrics(
        columns=[escaped(column.name) for column in found],
        rows=table_of(found),
        notes=[escaped(note) for note in notes(run, others)],
    )


def attempts(run: Run) -> Attempts:
    return Attempts(
        command=code(command(run)),
        count=run.history.attempts,
        events=[event_line(event) for event in run.history.events],
        skipped=[escaped(f"step {record.step:,}: {record.reason}") for record in run.history.skipped],
    )


def command(run: Run) -> str:
    """Return the command that started the run, ready to paste."""
    if not run.environment.command:
        return "not recorded"
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
        relation=RELATION_TEXT[relation],
        learning_rate_ratio=run.recipe.optimizer.max_lr / other.recipe.optimizer.max_lr,
        changes=found,
        settings=rows_of_differences(run.recipe, other.recipe),
        example=one_change_command(run, other, found),
        identity=identity_text(same) if same else "",
        verdicts=[verdict_row(claim, other.run) for claim in claims_on_runs(run, other.run)] if other.run else [],
        origin=escaped(recorded_where(other.recipe)),
    )


def one_change_command(run: Run, other: Baseline, found: Sequence[Change]) -> str:
    """Return a command that trains the baseline with one change; a change of the model if there is one."""
    factors = [change for change in found if change.matters]
    if not factors:
        return ""
    chosen = next((change for change in factors if change.settings[0].startswith("model.")), factors[0])
    recipe = other.run.paths.recipe if other.run else other.recipe.name
    return code(f"regpt train {recipe} --name one-change {one_change(chosen, run.recipe, other.recipe)}")


def verdict_row(claim: Claim, other: Run) -> VerdictRow:
    verdict = claim.verdict
    return VerdictRow(
        name=ROW_NAMES[verdict.quantity],
        theirs=value_text(verdict.quantity, verdict.theirs),
        ours=value_text(verdict.quantity, verdict.ours),
        difference=difference_text(verdict),
        verdict=no_claim(caveats_text(claim.caveats)) if claim.caveats else verdict_text(verdict, other.id),
    )
