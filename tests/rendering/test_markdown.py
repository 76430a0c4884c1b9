"""Text escaped for Markdown is shown unchanged by a CommonMark parser with tables."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from regpt.rendering.markdown import code, escaped, fenced

# NUL and lone surrogates are not text: CommonMark replaces the first, UTF-8 cannot hold the others.
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
TEXTS = st.text(st.sampled_from("ab1 \n\t\\`*_~<>[](){}#+-=.!|$&;:/'\"é模") | CHARACTERS, max_size=30)
HARD_TEXTS = [
    "a|b", "\\|", "~~gone~~", "~one~", "__a__", "a_b _c_", "**b**", "&amp; &#42; AT&T", "<b>x</b>", "<http://a.b>",
    "# a", "1. a", "12) a", "- a", "+ a", "---", "- - -", "===", "> a", "$x$", "![a](b)", "[a]: b", "`a`", "``a`b",
    "a\\", "-", "1.", "-0.5", "+5 %", "~3.29",
]  # fmt: skip
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def hard_examples(test):  # type: ignore[no-untyped-def]
    for text in HARD_TEXTS:
        test = example(text)(test)
    return test


def inline_tokens(markdown: str) -> list[list[Token]]:
    return [token.children or [] for token in PARSER.parse(markdown) if token.type == "inline"]


def shown(children: list[Token]) -> str:
    """The text of inline tokens, which must be text only."""
    assert {token.type for token in children} <= {"text", "text_special"}
    return "".join(token.content for token in children)


def visible(text: str) -> str:
    return " ".join(text.split())


@hard_examples
@given(TEXTS)
def test_escaped_text_in_a_sentence_is_shown_unchanged(text: str) -> None:
    (children,) = inline_tokens(f"before {escaped(text)} after")
    assert shown(children) == f"before {visible(text)} after"


@hard_examples
@given(TEXTS)
def test_escaped_text_on_a_line_or_in_a_list_is_unchanged(text: str) -> None:
    for prefix in ("", "- ", "# "):
        tokens = inline_tokens(prefix + escaped(text))
        assert "".join(map(shown, tokens)) == visible(text)


@hard_examples
@given(TEXTS)
def test_escaped_text_in_a_table_cell_is_shown_unchanged(text: str) -> None:
    cells = inline_tokens(f"| one | two | three |\n|---|---|---|\n| a | {escaped(text)} | c |\n")
    assert [shown(children) for children in cells] == ["one", "two", "three", "a", visible(text), "c"]


@hard_examples
@given(TEXTS)
def test_code_span_shows_its_text_unchanged(text: str) -> None:
    (children,) = inline_tokens(f"before {code(text)} after")
    (span,) = [token for token in children if token.type == "code_inline"]
    assert span.content == (" ".join(text.splitlines()) or "  ")
    assert len(children) == 3


@hard_examples
@given(TEXTS.map(lambda text: text.replace("\r", "")))
def test_code_block_shows_its_text_unchanged(text: str) -> None:
    (block,) = PARSER.parse(fenced(text))
    assert (block.type, block.content) == ("fence", text + "\n")


@pytest.mark.parametrize("name", ["demo-modern_2", "model.n_layer", "10.3363 ± 0.0104", "-0.5419", "AT&T"])
def test_ordinary_name_is_not_escaped(name: str) -> None:
    assert escaped(name) == name
