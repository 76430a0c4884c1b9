"""Two ways to mark up text: Markdown for comparison.md, and rich for the terminal."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from rich.markup import escape

from regpt.rendering.markdown import code, escaped


@dataclass(frozen=True)
class Markup:
    text: Callable[[object], str]  # shows any text unchanged
    bold: Callable[[str], str]  # of text that is marked up
    code: Callable[[str], str]


MARKDOWN = Markup(text=escaped, bold=lambda text: f"**{text}**", code=code)
TERMINAL = Markup(
    text=lambda text: escape(str(text)), bold=lambda text: f"[bold]{text}[/bold]", code=lambda text: f"`{escape(text)}`"
)


def command_line(arguments: tuple[str, ...]) -> str:
    return f"regpt {shlex.join(arguments)}"
