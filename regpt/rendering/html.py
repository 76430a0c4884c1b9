"""Turn the Markdown of a report or comparison into one HTML page without other files, network access or scripts.

HTML inside the Markdown is shown as text. The content security policy forbids the browser to load or run anything; it
allows the page's own style, by its hash, and images as data. Figures are SVG inside <img>: inlined, their identifiers
would collide.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<div class="sheet">
<nav aria-label="Contents">
{contents}
</nav>
<main>
{body}</main>
</div>
</body>
</html>
"""

POLICY = "default-src 'none'; img-src data:; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


class Renderer(RendererHTML):
    """Render tables and figures in frames that scroll, and figures in light and dark."""

    def table_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return '<div class="table" tabindex="0">\n<table>\n'

    def table_close(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return "</table>\n</div>\n"

    def image(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        """Embed a figure of the run's own folder. Any other image, as in a sample, becomes its description."""
        token = tokens[index]
        words, name = escape(token.content), str(token.attrs["src"])
        files = [env["folder"] / name, env["folder"] / name.replace(".svg", "-dark.svg")]
        if not re.fullmatch(r"img/[\w-]+\.svg", name) or not all(file.is_file() for file in files):
            return words
        light, dark = (data_address(file) for file in files)
        return (
            f'<span class="picture" tabindex="0"><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img alt="{words}" src="{light}"></picture></span>'
        )


def html_page(markdown: str, folder: Path) -> str:
    """Return the page. Figures are read from below `folder`."""
    reader = MarkdownIt("commonmark", {"html": False}, renderer_cls=Renderer).enable("table")
    environment = {"folder": folder}
    tokens = reader.parse(markdown, environment)
    headings = with_addresses(tokens)
    style = resources.files("regpt.rendering").joinpath("page.css").read_text(encoding="utf-8")
    return FRAME.format(
        policy=POLICY.format(base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()),
        title=escape(headings[0][1] if headings else folder.name),
        style=style,
        contents=contents_of(headings[1:]),
        body=reader.renderer.render(tokens, reader.options, environment),
    )


def with_addresses(tokens: Sequence[Token]) -> list[tuple[int, str, str]]:
    """Give each heading an id; return (level, text, id) of all headings."""
    found: list[tuple[int, str, str]] = []
    taken: set[str] = set()
    for opening, inside in pairwise(tokens):
        if opening.type != "heading_open":
            continue
        words = "".join(
            part.content for part in inside.children or [] if part.type in ("text", "text_special", "code_inline")
        )
        base = re.sub(r"\W+", "-", words.lower()).strip("-") or "part"
        address = next(
            name for number in range(1, 10_000) if (name := f"{base}-{number}" if number > 1 else base) not in taken
        )
        taken.add(address)
        opening.attrSet("id", address)
        found.append((int(opening.tag[1]), words, address))
    return found


def contents_of(headings: Sequence[tuple[int, str, str]]) -> str:
    """Return nested lists of links to the headings."""
    lines, depth = [], 1
    for level, words, address in headings:
        if level > depth:
            lines += ["<ul>"] * (level - depth)
        else:
            lines += ["</li>"] + ["</ul></li>"] * (depth - level)
        lines.append(f'<li><a href="#{escape(address)}">{escape(words)}</a>')
        depth = level
    return "\n".join(lines) + "</li></ul>" * (depth - 1)


def data_address(file: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"
