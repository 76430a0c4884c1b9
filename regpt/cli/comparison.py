"""Print the summary of a comparison in the terminal."""

import sys
from collections.abc import Sequence

from rich.console import Console

from regpt.comparison.tables import final_metrics_table, rich_table
from regpt.fairness.checks import find_caveats
from regpt.fairness.claims import paired_tests
from regpt.fairness.models import ComparedModel
from regpt.fairness.wording import caveat_lines, problem_lines, significance_lines
from regpt.rendering.markup import TERMINAL

WIDTH_OF_A_PIPE = 400  # no line of the table is broken


def print_summary(models: Sequence[ComparedModel]) -> None:
    """Print caveats, final metrics and significance tests."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OF_A_PIPE)
    lines = caveat_lines(find_caveats(models), TERMINAL)
    for line in lines:
        console.print(line, soft_wrap=True)
    console.print(rich_table(final_metrics_table(models)))
    tests = [line for other in models[1:] for line in significance_lines(paired_tests(models[0], other), TERMINAL)]
    for line in ["", *problem_lines(models, TERMINAL), *tests]:
        console.print(line, soft_wrap=True)
