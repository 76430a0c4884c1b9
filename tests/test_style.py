"""Docstrings, comments, messages and documentation avoid phrases that hinder a reader."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What to write instead: again; compared with; for any; continues or resumes; NaN or infinite; is not one; n; estimate;
# fix; next to or with; results; available.
PHRASES = [
    "anew",
    "held against",
    "whatever the",
    "goes on",
    "go on",
    "is no number",
    "is none",
    "so many",
    "as many as",
    "reckon",
    "reckoned",
    "mend",
    "mends",
    "mended",
    "beside",
    "what came out",
    "at hand",
    "in words",
]
PHRASE = re.compile(rf"\b(?:{'|'.join(PHRASES)})\b")

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FILES += [path for kind in ("regpt/**/*.py", "regpt/**/*.j2", "docs/**/*.md") for path in ROOT.glob(kind)]


def part_of(path: Path) -> str:
    """Return the package of a module, or the path of any other file."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2])


def text_lines(path: Path) -> list[tuple[int, str]]:
    """Return the text of a file with its line numbers: of a module, its strings and comments only."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(enumerate(content.splitlines(), start=1))
    texts = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    tokens = tokenize.generate_tokens(io.StringIO(content).readline)
    return [(token.start[0], " ".join(token.string.split())) for token in tokens if token.type in texts]


@pytest.mark.parametrize("part", sorted({part_of(path) for path in FILES}))
def test_text_avoids_unclear_phrases(part: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {match.group()}"
        for path in FILES
        if part_of(path) == part
        for line, text in text_lines(path)
        for match in PHRASE.finditer(text)
    ]
    assert not found
