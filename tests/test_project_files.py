"""The files around the program agree with it: workflow, pre-commit hooks, citation, versions."""

import re
import shutil
import subprocess
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


@pytest.mark.parametrize("extra", ["docs", "serve"])
def test_extra_is_pinned(extra: str) -> None:
    names = {re.split(r"[>=<\[]", requirement)[0] for requirement in PROJECT["project"]["optional-dependencies"][extra]}
    assert names <= pins().keys()


def test_development_includes_the_packages_of_the_server() -> None:
    (regpt,) = [one for one in PROJECT["project"]["optional-dependencies"]["dev"] if one.startswith("regpt[")]
    assert "serve" in re.split(r"[\[\],]", regpt)


def make_demo(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Run `make .venv/installed` in a copy of the Makefile with a command that plays Python and pip."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt", "data-packages.txt"):
        (folder / name).touch()
    script = folder / "fake-python"
    script.write_text(f"#!/bin/sh\n{python}\n")
    script.chmod(0o755)
    command = ["make", "-s", f"PYTHON={script}", ".venv/installed"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


# With -m venv, writes a .venv whose python says yes to everything, and notes each call.
MAKES_VENV = """echo "$@" >> calls; case "$*" in *venv*) mkdir -p .venv/bin; cp /bin/true .venv/bin/python;; esac"""
WITHOUT_VENV = """case "$*" in *venv*) mkdir -p .venv/bin; cp /bin/false .venv/bin/python; exit 1;; esac"""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_makefile_replaces_an_environment_without_pip(tmp_path: Path) -> None:
    """Debian's Python leaves one behind where python3-venv is missing."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy("/bin/false", tmp_path / ".venv" / "bin" / "python")
    assert make_demo(tmp_path, MAKES_VENV).returncode == 0
    assert "-m venv --clear .venv" in (tmp_path / "calls").read_text()
    (tmp_path / "calls").unlink()
    (tmp_path / ".venv" / "installed").unlink()
    assert make_demo(tmp_path, MAKES_VENV).returncode == 0  # an environment with pip is kept
    assert "venv" not in (tmp_path / "calls").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("python", "remedy"), [(WITHOUT_VENV, "apt install python3-venv"), ("exit 1", "3.11")])
def test_makefile_names_what_python_lacks(tmp_path: Path, python: str, remedy: str) -> None:
    ended = make_demo(tmp_path, python)
    assert ended.returncode != 0 and remedy in ended.stderr
    assert not (tmp_path / ".venv").exists()


def test_tiktoken_is_not_older_than_its_linear_encoding_of_long_runs() -> None:
    """Before 0.13 a run of one letter took quadratic time (openai/tiktoken 195)."""
    (wanted,) = [line for line in PROJECT["project"]["dependencies"] if line.startswith("tiktoken")]
    assert tuple(map(int, wanted.partition(">=")[2].split("."))) >= (0, 13)


def test_makefile_installs_without_complaints_about_data_packages() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    command = re.search(r"^PIP_INSTALL := (.*)$", text, re.MULTILINE)
    assert command and "--no-warn-conflicts" in command[1].split()
    assert text.count("pip install") == 1  # every installation uses the variable


def test_git_ignores_what_the_commands_write() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {"/data/", "/runs/", "/comparisons/", "/evaluations/"} <= set(ignored)
