"""Escape text for Markdown: lines, table cells, code spans and code blocks."""

import re


def escaped(text: object) -> str:
    """Text that Markdown shows as it is, also in a cell of a table."""
    return re.sub(r"([\\`*<>\[\]|$]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(text).split("\n")))


def code(text: object) -> str:
    """Text as code that nothing inside it can end, also in a cell of a table."""
    words = " ".join(str(text).split("\n"))
    fence = "`" * (max((len(run) for run in re.findall("`+", words)), default=0) + 1)
    space = " " if "`" in words else ""
    return f"{fence}{space}{words}{space}{fence}".replace("|", "\\|")


def fenced(text: str) -> str:
    """A sample as a block that nothing inside it can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def inline(text: object) -> str:
    """Text as it is, in a line or a table's cell of Markdown."""
    words = re.sub(r"\s+", " ", str(text))
    return re.sub(r"([\\`*<\[\]|~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", words)
