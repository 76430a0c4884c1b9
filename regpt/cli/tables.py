"""Print a table in a terminal or a pipe."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def print_table(table: "Table") -> None:
    """Print a table as wide as the terminal; in a pipe no line is broken."""
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else 400).print(table)
