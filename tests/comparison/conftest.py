"""Trained runs that the tests of the comparison share."""

import shutil
from pathlib import Path

import pytest

from regpt.training.start import train
from tests.conftest import tiny_recipe


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """Train runs a and b on the same data in the same order, at two learning rates, and run c on other data."""
    folder = tmp_path_factory.mktemp("compared")
    evaluation = {"hellaswag_every": 3, "hellaswag_items": 20}
    for place, name, rate, text in (
        ("", "a", 3e-3, real_text),
        ("", "b", 2e-3, real_text),
        ("else", "c", 1e-3, real_text[9000:]),
    ):
        (folder / place / "texts").mkdir(parents=True, exist_ok=True)
        (folder / place / "texts" / "a.py").write_text(text, encoding="utf-8")
        train(tiny_recipe(folder / place, evaluation=evaluation, optimizer={"max_lr": rate}), folder / "runs" / name)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the runs and make their parent the working directory."""
    shutil.copytree(trained / "runs", tmp_path / "place" / "runs")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place" / "runs"
