"""Two ways to mark up text: Markdown for comparison.md, and rich for the terminal."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from rich.markup import escape

from regpt.rendering.markdown import inline


@dataclass(frozen=True)
class Markup:
    text: Callable[[object], str]  # shows any text unchanged
    bold: Callable[[str], str]  # of text that is marked up
    code: Callable[[str], str]


def markdown_code(text: str) -> str:
    """Return a code span that no backtick in the text can end."""
    ticks = "`"
    while ticks in text:
        ticks += "`"
    return f"{ticks}{text}{ticks}"


MARKDOWN = Markup(text=inline, bold=lambda text: f"**{text}**", code=markdown_code)
TERMINAL = Markup(
    text=lambda text: escape(str(text)), bold=lambda text: f"[bold]{text}[/bold]", code=lambda text: f"`{escape(text)}`"
)


def command_line(arguments: tuple[str, ...]) -> str:
    return f"regpt {shlex.join(arguments)}"
