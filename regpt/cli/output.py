"""Print tables and the summary of a comparison, in a terminal or in a pipe."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from regpt.fairness.models import ComparedModel
    from regpt.fairness.seed_groups import SeedGroup

WIDTH_IN_A_PIPE = 80
UNBROKEN = 400  # no line of a table is broken in a pipe


def print_table(table: "Table") -> None:
    """Print a table as wide as the terminal; in a pipe no line is broken."""
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else UNBROKEN).print(table)


def terminal_width() -> int:
    """Return the width of the terminal, and 80 in a pipe."""
    from rich.console import Console

    return Console().width if sys.stdout.isatty() else WIDTH_IN_A_PIPE


def print_comparison(models: "Sequence[ComparedModel]") -> None:
    """Print caveats, final metrics and significance tests: of groups of runs, or of the models one by one."""
    from regpt.fairness.seed_groups import seed_groups

    if groups := seed_groups(models):
        print_groups(groups, models)
    else:
        print_models(models)


def print_groups(groups: "Sequence[SeedGroup]", models: "Sequence[ComparedModel]") -> None:
    from rich.console import Console

    from regpt.comparison.seed_tables import mean_metrics_table
    from regpt.comparison.seed_wording import group_lines, group_test_lines, left_out_lines
    from regpt.comparison.tables import rich_table
    from regpt.fairness.seed_claims import caveats_of, compare_groups
    from regpt.fairness.wording import caveat_lines, problem_lines
    from regpt.rendering.markup import TERMINAL

    console = Console(highlight=False, width=None if sys.stdout.isatty() else UNBROKEN)
    for line in [*group_lines(groups, TERMINAL), "", *caveat_lines(caveats_of(groups), TERMINAL)]:
        console.print(line, soft_wrap=True)
    console.print(rich_table(mean_metrics_table(groups)))
    problems = [*problem_lines(models, TERMINAL), *left_out_lines(models, TERMINAL)]
    tests = [line for found in compare_groups(groups) for line in group_test_lines(found, TERMINAL)]
    for line in ["", *problems, *tests]:
        console.print(line, soft_wrap=True)


def print_models(models: "Sequence[ComparedModel]") -> None:
    from rich.console import Console

    from regpt.comparison.tables import final_metrics_table, rich_table
    from regpt.fairness.checks import find_caveats
    from regpt.fairness.claims import paired_tests
    from regpt.fairness.wording import caveat_lines, problem_lines, significance_lines
    from regpt.rendering.markup import TERMINAL

    console = Console(highlight=False, width=None if sys.stdout.isatty() else UNBROKEN)
    for line in caveat_lines(find_caveats(models), TERMINAL):
        console.print(line, soft_wrap=True)
    console.print(rich_table(final_metrics_table(models)))
    tests = [line for other in models[1:] for line in significance_lines(paired_tests(models[0], other), TERMINAL)]
    for line in ["", *problem_lines(models, TERMINAL), *tests]:
        console.print(line, soft_wrap=True)
