"""The documentation agrees with the program: generated pages, commands, paths, links, names."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import regpt
from docs.generate import generated
from regpt.cli.main import parser
from regpt.doctor.runner import CHECKS
from regpt.recipe.settings import all_settings, find_recipe
from tests.test_layering import PACKAGES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE_IDS = [str(page.relative_to(ROOT)) for page in PAGES]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
PATH = re.compile(r"(?<![\w./-])(?:regpt|tests|benchmarks|faults|recipes|examples)/[\w./-]*[\w/]")
OPTIONAL = {"tests/durations.json"}  # `make durations` writes it
INLINE_COMMAND = re.compile(r"`regpt ([a-z]+)")


def blocks(page: Path, language: str) -> Iterator[str]:
    for found, content in FENCED.findall(page.read_text(encoding="utf-8")):
        if found == language:
            yield content


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of every regpt command in the page's shell blocks."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.split("  #")[0].replace(";", " ; ").replace("&&", " ; "), comments=True)
            for place, word in enumerate(words):
                if word == "regpt" and (place == 0 or words[place - 1] in ("-m", "srun", ";", "then", "else")):
                    end = words.index(";", place) if ";" in words[place:] else len(words)
                    yield words[place + 1 : end]


def without_code(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", generated(), ids=lambda page: page.name)
def test_generated_page_is_up_to_date(page: Path) -> None:
    """`make docs-generate` writes it again."""
    assert page.read_text(encoding="utf-8") == generated()[page]


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_shell_commands_parse_and_name_real_settings_and_recipes(page: Path) -> None:
    for words in commands(page):
        arguments, left = parser().parse_known_args(words)
        overrides = [*getattr(arguments, "overrides", []), *left]
        assert {word.partition("=")[0] for word in overrides} <= set(all_settings()), words
        recipe = getattr(arguments, "recipe", "")
        if not recipe.startswith("$") and not recipe.endswith(".toml") and recipe.islower():  # RECIPE is a placeholder
            find_recipe(recipe)


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_inline_commands_and_make_targets_exist(page: Path) -> None:
    names = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    text = page.read_text(encoding="utf-8")
    assert set(INLINE_COMMAND.findall(text)) <= set(names)  # type: ignore[arg-type]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    asked = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert asked <= targets


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_paths_in_the_text_exist(page: Path) -> None:
    mentioned = {path.rstrip("/") for path in PATH.findall(page.read_text(encoding="utf-8"))}
    assert not [path for path in sorted(mentioned - OPTIONAL) if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_internal_links_and_anchors_resolve(page: Path) -> None:
    for link, image in LINK.findall(without_code(page)):
        target, _, anchor = (link or image).partition("#")
        if re.match(r"\w+:", target):
            continue
        file = page.parent / target if target else page
        assert file.exists(), link or image
        assert not anchor or anchor in anchors(file), link


def test_architecture_lists_all_packages_in_import_order() -> None:
    table = re.findall(r"^\| `regpt/(\w+)` \|", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.MULTILINE)
    assert table == PACKAGES


def test_architecture_answers_at_least_twenty_questions() -> None:
    rows = re.findall(r"^\| [A-Z][^|]*\? \| .*`regpt/", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.M)
    assert len(rows) >= 20


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_python_examples_use_names_that_regpt_has(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "regpt":
                assert hasattr(regpt, node.attr), f"regpt.{node.attr}"


def test_readme_has_at_most_a_hundred_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_plan_page_lists_the_checks_of_doctor_in_order() -> None:
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    table = page[page.index("| check |") : page.index("## Memory")]
    assert re.findall(r"^\| ([a-z][a-z ]*) \|", table, re.MULTILINE)[1:] == list(CHECKS)
