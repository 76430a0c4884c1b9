"""The values of a comparison of groups of runs, as the template of a comparison reads them."""

from collections.abc import Sequence

from regpt.comparison.samples import compare_samples, sample_blocks, sample_notes
from regpt.comparison.sections import HELLASWAG_FIGURE, ComparisonPage, Samples, equal_losses
from regpt.comparison.seed_tables import group_differences_table, mean_metrics_table, seeds_table
from regpt.comparison.seed_wording import (
    OVER_SEEDS,
    SOURCES,
    group_paragraphs,
    group_test_lines,
    group_verdict,
    left_out_lines,
)
from regpt.fairness.learning_curves import LearningCurve
from regpt.fairness.models import ComparedModel
from regpt.fairness.seed_claims import caveats_of, compare_groups
from regpt.fairness.seed_groups import SeedGroup
from regpt.fairness.wording import caveat_lines, problem_lines
from regpt.rendering.markdown import escaped
from regpt.rendering.markup import MARKDOWN


def group_page(
    groups: Sequence[SeedGroup],
    models: Sequence[ComparedModel],
    curves: Sequence[LearningCurve],
    figures: Sequence[str],
) -> ComparisonPage:
    """Collect the values of the page. `models` are all that were named, in groups or not.

    `curves` are means over seeds, `figures` the names of what was drawn.
    """
    compared = compare_groups(groups)
    samples = compare_samples([group.members[0] for group in groups])
    return ComparisonPage(
        title=", ".join(escaped(group.name) for group in groups),
        verdicts=[group_verdict(one, MARKDOWN) for one in compared],
        runs=[*group_paragraphs(groups)],
        caveats=caveat_lines(caveats_of(groups), MARKDOWN),
        final_metrics=mean_metrics_table(groups),
        problems=[*problem_lines(models, MARKDOWN), *left_out_lines(models, MARKDOWN)],
        loss_figures=[name for name in figures if name != HELLASWAG_FIGURE],
        has_hellaswag=HELLASWAG_FIGURE in figures,
        unknown_speed=[escaped(curve.name) for curve in curves if not curve.has_known_speed],
        equal=equal_losses(curves),
        tests=[*(line for one in compared for line in group_test_lines(one, MARKDOWN)), SOURCES, ""],
        differences=group_differences_table(groups),
        samples=Samples(sample_notes(samples), sample_blocks(samples)),
        errors=OVER_SEEDS,
        by_seed=seeds_table(groups),
    )
