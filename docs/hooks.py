"""Hooks of mkdocs: pages of the site whose files lie outside docs/, and links to them."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "results.md": "benchmarks/results.md",
}
NOT_PAGES = r"(LICENSE|CITATION\.cff|Makefile|(?:recipes|regpt|tests|benchmarks|faults|examples)(?:/[\w./-]*)?)"


def on_files(files: Files, config: Any) -> Files:
    """Add the outside files as pages."""
    for name, source in OUTSIDE.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, name, content=page(source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links that leave docs/ to the pages of `OUTSIDE`. Links to code become plain text."""
    for name, source in OUTSIDE.items():
        markdown = markdown.replace(f"](../{source}", f"]({name}")
    return without_links_to_code(markdown)


def page(source: str) -> str:
    """Return an outside file with links as seen from docs/. Links to code become plain text."""
    text = (ROOT / source).read_text(encoding="utf-8")
    for name, other in OUTSIDE.items():
        text = text.replace(f"]({other}", f"]({name}")
    text = re.sub(r"(\]\(|src=\"|srcset=\")(?:\.\./)?docs/", r"\1", text)
    return without_links_to_code(text)


def without_links_to_code(text: str) -> str:
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)?" + NOT_PAGES + r"\)", r"\1", text)
