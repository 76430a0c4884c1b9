"""Print a table in a terminal or a pipe."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDTH_IN_A_PIPE = 80


def print_table(table: "Table") -> None:
    """Print a table as wide as the terminal; in a pipe no line is broken."""
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else 400).print(table)


def terminal_width() -> int:
    """Return the width of the terminal, and 80 in a pipe."""
    from rich.console import Console

    return Console().width if sys.stdout.isatty() else WIDTH_IN_A_PIPE
