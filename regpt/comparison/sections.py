"""The values of a comparison's sections, as the template reads them. Text is escaped for Markdown, tables are not."""

from collections.abc import Sequence
from dataclasses import dataclass

from regpt.comparison.samples import compare_samples, sample_blocks, sample_notes
from regpt.comparison.tables import (
    Table,
    differences_table,
    equal_time_table,
    equal_tokens_table,
    final_metrics_table,
    first_reached_table,
)
from regpt.fairness.checks import find_caveats
from regpt.fairness.claims import paired_tests
from regpt.fairness.learning_curves import (
    LearningCurve,
    comparable_curves,
    losses_at_equal_time,
    losses_at_equal_tokens,
)
from regpt.fairness.models import ComparedModel
from regpt.fairness.wording import caveat_lines, problem_lines, significance_lines
from regpt.rendering.markdown import escaped
from regpt.rendering.markup import MARKDOWN
from regpt.reporting.findings import findings_of_tests, sentences_of
from regpt.reporting.summary import capitalized, model_sentence

HELLASWAG_FIGURE = "hellaswag"
ONE_RUN_EACH = "± is one standard error."


@dataclass(frozen=True)
class EqualLosses:
    """The tables of runs that were validated on the same windows."""

    excluded: list[str]  # runs that are in no table
    equal_tokens: Table
    equal_time: Table | None  # None: the speed of a run is unknown
    first_reached: Table


@dataclass(frozen=True)
class Samples:
    """The samples of each number next to each other."""

    notes: list[str]
    numbers: list[list[tuple[str, str]]]  # for each number, the titles and texts of all models


@dataclass(frozen=True)
class ComparisonPage:
    """All values of a comparison's page."""

    title: str
    verdicts: list[str]  # the first model compared with each other one
    runs: list[str]
    caveats: list[str]
    final_metrics: Table
    problems: list[str]
    loss_figures: list[str]
    has_hellaswag: bool
    unknown_speed: list[str]  # runs whose training time does not compare
    equal: EqualLosses | None  # None: no two runs were validated on the same windows
    tests: list[str]
    differences: Table
    samples: Samples
    errors: str = ONE_RUN_EACH  # what the values and their errors are
    by_seed: Table | None = None  # the final losses of groups of runs; None: single models are compared


def comparison_page(
    models: Sequence[ComparedModel], curves: Sequence[LearningCurve], figures: Sequence[str]
) -> ComparisonPage:
    """Collect the values of a comparison's page. `figures` are the names of the figures that were drawn."""
    tests = [paired_tests(models[0], other) for other in models[1:]]
    samples = compare_samples(models)
    return ComparisonPage(
        title=", ".join(escaped(model.name) for model in models),
        verdicts=[
            f"**{escaped(one.first.name)}** compared with **{escaped(one.other.name)}**: "
            + ". ".join(capitalized(sentence) for sentence in sentences_of(findings_of_tests(one)))
            + "."
            for one in tests
        ],
        runs=[model_sentence(model.run) for model in models if model.is_run and model.run],
        caveats=caveat_lines(find_caveats(models), MARKDOWN),
        final_metrics=final_metrics_table(models),
        problems=problem_lines(models, MARKDOWN),
        loss_figures=[name for name in figures if name != HELLASWAG_FIGURE],
        has_hellaswag=HELLASWAG_FIGURE in figures,
        unknown_speed=[escaped(curve.name) for curve in curves if not curve.has_known_speed],
        equal=equal_losses(curves),
        tests=[line for one in tests for line in significance_lines(one, MARKDOWN)],
        differences=differences_table(models),
        samples=Samples(sample_notes(samples), sample_blocks(samples)),
    )


def equal_losses(curves: Sequence[LearningCurve]) -> EqualLosses | None:
    """Return the tables of the largest group of curves on the same windows; None for a group of one."""
    comparable = comparable_curves(curves)
    if len(comparable) < 2:
        return None
    timed = all(curve.has_known_speed for curve in comparable)
    return EqualLosses(
        excluded=[escaped(curve.name) for curve in curves if curve not in comparable],
        equal_tokens=equal_tokens_table(comparable, losses_at_equal_tokens(comparable)),
        equal_time=equal_time_table(comparable, losses_at_equal_time(comparable)) if timed else None,
        first_reached=first_reached_table(comparable, with_time=timed),
    )
