"""A run on a dataset of another tokenizer keeps that tokenizer: for samples and evaluations, and without the data."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from regpt import library
from regpt.base.errors import UserError
from regpt.data.shards import TokenWindows, read_manifest
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.evaluate import default_tasks, evaluate
from regpt.export.directory import export
from regpt.interop.open_model import open_model
from regpt.machine.device import open_device
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe
from regpt.tokenization.opening import open_tokenizer
from regpt.training.start import resume, train
from tests.conftest import tiny_recipe, write_texts
from tests.helpers.tokenizers import write_bytes_tokenizer

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.xdist_group("other tokenizers")
FIRST = 1_000  # so that no id is that of the same byte in GPT-2
SETTINGS = ["run.device=cpu", "run.precision=float32"]


def recipe_in(folder: Path) -> Recipe:
    data = {"tokenizer": str(folder / "bytes")}
    return tiny_recipe(folder, data=data, model={"vocab_size": 0}, run={"max_steps": 3})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """Train three steps on tokens that are bytes. The tokenizer that the recipe named is gone then."""
    folder = tmp_path_factory.mktemp("bytes")
    write_texts(folder / "texts", real_text[:30_000])
    write_bytes_tokenizer(folder / "bytes" / "tokenizer.json", FIRST)
    assert train(recipe_in(folder), folder / "run") is not None
    shutil.rmtree(folder / "bytes")
    return folder


def test_run_keeps_the_files_of_its_tokenizer(home: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (home / "run" / "tokenizer" / name).read_bytes() == (home / "data" / "tokenizer" / name).read_bytes()
    opened = open_model(home / "run", home)
    assert opened.tokenizer.record == read_manifest(home / "data").tokenizer == opened.tokenizer_record
    assert not opened.has_gpt2_tokens and opened.model.end_of_text == FIRST + 256
    assert library.open_run(home / "run").environment.data.tokenizer.label.startswith("tokenizer.json ")


def test_samples_are_texts_of_the_runs_tokenizer(home: Path) -> None:
    run = library.open_run(home / "run")
    for text in run.history.samples[-1].texts:
        assert text.startswith("Hello, I'm a language model,") and len(text.encode("utf-8", "replace")) <= 60
    assert library.generate(run, "def ", tokens=3)[0].startswith("def ")


def test_bits_per_byte_are_those_of_the_text(home: Path) -> None:
    run = library.open_run(home / "run")
    found, manifest = run.history.validations[-1], read_manifest(home / "data")
    windows = TokenWindows(home / "data", manifest, "val", 32)
    targets = windows.rows(range(found.windows))[:, 1:]
    text_bytes = int((targets != FIRST + 256).sum())  # a token is a byte
    assert found.bits_per_byte == pytest.approx(found.loss * targets.size / math.log(2) / text_bytes, rel=1e-9)


def test_evaluation_gives_the_losses_of_the_run(home: Path, tmp_path: Path) -> None:
    opened = open_model(home / "run", home, SETTINGS)
    assert default_tasks(opened) == ["validation", "hellaswag"]
    results = evaluate(opened, ["validation"], tmp_path / "results", open_device(opened.recipe.run), RankGroup())
    last = library.open_run(home / "run").history.validations[-1]
    assert [result.value for result in results] == pytest.approx([last.loss, last.bits_per_byte], rel=1e-6)


def test_evaluation_on_tokens_of_another_tokenizer_is_refused(home: Path, tmp_path: Path) -> None:
    manifest = prepare(tiny_recipe(tmp_path, data={"source": str(home / "texts"), "validation_tokens": 1_000}))
    opened = open_model(home / "run", home, [*SETTINGS, f"data.path={tmp_path / 'data'}"])
    assert manifest.tokenizer["name"] == "gpt2" and default_tasks(opened) == ["hellaswag"]
    with pytest.raises(UserError, match=r"its tokenizer is tokenizer\.json .* tokens of gpt2"):
        evaluate(opened, ["validation"], tmp_path / "results", open_device(opened.recipe.run), RankGroup())


def test_run_without_its_dataset_is_sampled_and_exported(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    opened = open_model(tmp_path / "run", tmp_path, [*SETTINGS, "data.path=gone"])
    assert library.generate(opened, "def ", tokens=3, seed=1)[0].startswith("def ")
    export(opened.model, tmp_path / "out", vocabulary=opened.tokenizer, source=opened.tokenizer_folder)
    again = open_model(tmp_path / "out", tmp_path, SETTINGS)
    assert again.tokenizer.record == opened.tokenizer.record and again.recipe.model.vocab_size == FIRST + 257
    ids = opened.tokenizer.encode("Füße <|endoftext|>")
    assert again.tokenizer.encode("Füße <|endoftext|>").tolist() == ids.tolist()
    assert again.tokenizer.decode(np.append(ids, FIRST + 256)) == "Füße <|endoftext|>"


def test_run_resumes_with_its_tokenizer(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    run = resume(tmp_path / "run", ["run.max_steps=4"])
    assert run is not None and run.history.step == 4
    assert open_tokenizer(str(tmp_path / "run" / "tokenizer")).record == read_manifest(home / "data").tokenizer
