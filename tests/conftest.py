"""What many tests need: real text, a recipe small enough to train in a second, and a data set made from the text."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from regpt.base.recipe import Recipe
from regpt.base.settings import build_recipe

# Two layers of width 16, four sequences of 32 tokens a step: every part of the program, in a moment.
TINY = {
    "run": {"max_steps": 6, "device": "cpu", "precision": "float32", "threads": 1},
    "data": {"validation_tokens": 4_000, "shard_tokens": 5_000, "micro_batch": 2, "total_batch_tokens": 128},
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
    """The tiny recipe with changes by section, its data in `folder`."""
    tables = {name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {*TINY, *sections}}
    tables["data"] = {"path": str(folder / "data"), "source": str(folder / "texts"), **tables["data"]}
    recipe, problems = build_recipe("tiny", tables)
    assert recipe is not None, problems
    return recipe


@pytest.fixture(scope="session")
def real_text() -> str:
    """A hundred kilobytes that nobody here wrote."""
    return Path(argparse.__file__).read_text(encoding="utf-8")


@pytest.fixture
def texts(tmp_path: Path, real_text: str) -> Path:
    """A folder of documents: two text files and JSON lines."""
    folder = tmp_path / "texts"
    folder.mkdir()
    third = len(real_text) // 3
    (folder / "a.py").write_text(real_text[:third], encoding="utf-8")
    (folder / "b.md").write_text(real_text[third : 2 * third], encoding="utf-8")
    lines = [json.dumps({"text": piece}) for piece in real_text[2 * third :].split("\n\n") if piece.strip()]
    (folder / "c.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def tiny(tmp_path: Path, texts: Path) -> Recipe:
    return tiny_recipe(tmp_path)


def wait_until(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that another process does; fails when it takes far too long."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
