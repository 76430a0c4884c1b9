"""Options of the test suite, and fixtures that many tests need: real text, a tiny recipe, a dataset's source."""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import build_recipe
from tests.helpers import golden
from tests.helpers.schedule import DurationRecorder, mark_slow, schedule

# One thread for each worker and each process that a test starts: with more, two workers on two cores get in each
# other's way. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
hypothesis.settings.register_profile("full", max_examples=100, deadline=None)
hypothesis.settings.register_profile("nightly", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("full")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden instead of comparing with it")
    parser.addoption("--update-durations", action="store_true", help="write tests/durations.json")


def pytest_configure(config: pytest.Config) -> None:
    golden.update = config.getoption("--update-golden")
    if config.getoption("--update-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(DurationRecorder())


@pytest.hookimpl(tryfirst=True)  # before pytest applies -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mark_slow(items)
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist
        schedule(items)


def pytest_runtest_setup() -> None:
    """Undo what an earlier test set."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


# Two layers of width 16, four sequences of 32 tokens a step: exercises every part of the program in about a second.
TINY: dict[str, dict[str, object]] = {
    "run": {"max_steps": 6, "device": "cpu", "precision": "float32", "threads": 1},
    "data": {
        "validation": "first_tokens",
        "validation_tokens": 4_000,
        "shard_tokens": 5_000,
        "micro_batch": 2,
        "total_batch_tokens": 128,
    },
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "mlp_hidden": 40},
    "optimizer": {"max_lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 2},
    "evaluation": {
        "validation_every": 3,
        "validation_batches": 2,
        "validation_batch_size": 4,
        "sample_every": 3,
        "sample_count": 2,
        "sample_tokens": 12,
        "hellaswag_every": 0,
    },
    "checkpoint": {"every": 3},
}


def tiny_recipe(folder: Path, **sections: dict[str, object]) -> Recipe:
    """Return the tiny recipe with the given settings, by section, changed. Its data lies in `folder`."""
    tables = {name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {*TINY, *sections}}
    tables["data"] = {"path": str(folder / "data"), "source": str(folder / "texts"), **tables["data"]}
    recipe, problems = build_recipe("tiny", tables)
    assert recipe is not None, problems
    return recipe


@pytest.fixture(scope="session")
def real_text() -> str:
    """Return about 100 kB of text that does not come from this repository."""
    return Path(argparse.__file__).read_text(encoding="utf-8")


@pytest.fixture
def texts(tmp_path: Path, real_text: str) -> Path:
    """Write a folder of documents, three JSON lines files, two of which hold one document, and return its path."""
    return write_texts(tmp_path / "texts", real_text)


def write_texts(folder: Path, real_text: str) -> Path:
    folder.mkdir()
    third = len(real_text) // 3
    (folder / "a.jsonl").write_text(json.dumps({"text": real_text[:third]}), encoding="utf-8")
    (folder / "b.jsonl").write_text(json.dumps({"text": real_text[third : 2 * third]}), encoding="utf-8")
    lines = [json.dumps({"text": piece}) for piece in real_text[2 * third :].split("\n\n") if piece.strip()]
    (folder / "c.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def tiny(tmp_path: Path, texts: Path) -> Recipe:
    """Return the tiny recipe with `texts` as its source."""
    return tiny_recipe(tmp_path)


def wait_until(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until `happened()` is true. Fail the test after `seconds`."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, f"not true after {seconds} seconds"
        time.sleep(0.02)


@pytest.fixture
def undrawn_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_drawing(monkeypatch)


def skip_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write empty images, for tests of texts: drawing the figures of a page takes a second."""
    from matplotlib.figure import Figure

    def write_empty(figure: Figure, target: Path, **_: object) -> None:
        target.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>' if target.suffix == ".svg" else "")

    monkeypatch.setattr(Figure, "savefig", write_empty)


@pytest.fixture(scope="session")
def three_runs(tmp_path_factory: pytest.TempPathFactory, real_text: str, worker_id: str) -> Path:
    """Return the folder of runs a and b, which read the same data in the same order at two learning rates, and run c.

    The workers train them once.
    """
    root = tmp_path_factory.getbasetemp()
    folder = (root if worker_id == "master" else root.parent) / "compared"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)  # by a worker that failed
            train_three_runs(folder, real_text)
            (folder / "complete").touch()
    return folder


def train_three_runs(folder: Path, real_text: str) -> None:
    from regpt.training.start import train

    evaluation = {"hellaswag_every": 3, "hellaswag_items": 20}
    for place, name, rate, text in (
        ("", "a", 3e-3, real_text),
        ("", "b", 2e-3, real_text),
        ("else", "c", 1e-3, real_text[9000:]),
    ):
        (folder / place / "texts").mkdir(parents=True, exist_ok=True)
        (folder / place / "texts" / "a.py").write_text(text, encoding="utf-8")
        train(tiny_recipe(folder / place, evaluation=evaluation, optimizer={"max_lr": rate}), folder / "runs" / name)


@pytest.fixture
def runs(three_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the runs a, b and c, make their parent the working directory, and return their folder."""
    shutil.copytree(three_runs / "runs", tmp_path / "place" / "runs")
    from tests.helpers.compared_runs import edit_journal, with_load

    for name in ("a", "b", "c"):  # as on a quiet machine, whatever else runs now
        edit_journal(tmp_path / "place" / "runs" / name, lambda record: with_load(record, 0.0))
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place" / "runs"
