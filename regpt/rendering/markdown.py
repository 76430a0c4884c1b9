"""Escape text for Markdown: running text, table cells, code spans and code blocks."""

import re

# An underscore between two letters or digits cannot open or close emphasis, so that names stay readable.
SPECIAL = re.compile(r"[\\`*<>\[\]|$~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
# A heading, a list item or a rule at the start of a line.
BLOCK_START = re.compile(r"^(?:\d{1,9}(?=[.)](?:\s|$)))?(?=[.)#+-](?:\s|$)|#{1,6}(?:\s|$)|[-=][-=\s]*$)")


def escaped(text: object) -> str:
    """Escape text so that Markdown shows it unchanged, in a line or in a table cell.

    Each run of whitespace becomes one space.
    """
    line = SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split()))
    return BLOCK_START.sub(r"\g<0>\\", line)


def code(text: object) -> str:
    """Format text as a code span of one line. Not for table cells: a vertical bar would end the cell."""
    line = " ".join(str(text).splitlines())
    fence = "`" * (longest_run(line) + 1)
    # Markdown removes one space at both ends of a code span, unless the span is all spaces.
    needs_padding = line.startswith(("`", " ")) or line.endswith(("`", " "))
    padding = " " if not line or (needs_padding and line.strip(" ")) else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def fenced(text: str, language: str = "text") -> str:
    """Format text as a code block that no line of the text can end."""
    fence = "`" * max(3, longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def longest_run(text: str) -> int:
    """Return the length of the longest run of backticks."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
