"""The files around the program agree with it: workflow, pre-commit hooks, citation, versions."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from regpt import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
YAML_FILES = [
    ROOT / "CITATION.cff",
    ROOT / ".pre-commit-config.yaml",
    *sorted((ROOT / ".github").rglob("*.yml")),
]


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.lower().split("==") for line in lines if not line.startswith("#"))


def workflow_commands() -> list[str]:
    jobs = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"].values()
    return [line for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines()]


def makefile_commands(target: str) -> list[str]:
    """Return a target's commands without the path of the virtual environment."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^(\w+) :?= (.*)$", text, re.MULTILINE))
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n?)+)", text, re.MULTILINE)
    assert recipe
    expanded = re.sub(r"\$\((PYTEST)\)", lambda match: variables[match[1]], recipe[1])
    return [line.strip().removeprefix("@").replace("$(BIN)/", "") for line in expanded.splitlines()]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_file_parses_to_a_mapping(path: Path) -> None:
    assert isinstance(read_yaml(path), dict)


@pytest.mark.parametrize("target", ["check", "quick", "docs"])
def test_workflow_runs_the_commands_of_the_makefile(target: str) -> None:
    assert set(makefile_commands(target)) <= set(workflow_commands())


def test_workflow_tests_every_supported_python_on_three_systems() -> None:
    matrix = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["quick"]["strategy"]["matrix"]
    assert [python.split(".")[0] for python in matrix["python"]] == ["3"] * 3
    assert PROJECT["project"]["requires-python"] == f">={matrix['python'][0]}"
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}


def test_citation_has_the_keys_of_the_format_and_the_version() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == __version__ and citation["license"] == PROJECT["project"]["license"]


def test_changelog_begins_with_the_version() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first and first[1] == __version__


def test_pre_commit_uses_the_pinned_ruff() -> None:
    hooks = [hook for repo in read_yaml(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    versions = {version for hook in hooks for version in hook.get("additional_dependencies", [])}
    assert versions == {f"ruff=={pins()['ruff']}"}


def test_docs_extra_is_pinned() -> None:
    names = {
        re.split(r"[>=<\[]", requirement)[0] for requirement in PROJECT["project"]["optional-dependencies"]["docs"]
    }
    assert names <= pins().keys()
