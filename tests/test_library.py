"""`import regpt`: cheap to import, and every function does what its command does."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import regpt
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import to_toml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> regpt.Run:
    """A tiny run of six steps, trained through the library on the repository's own test text."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(real_text, encoding="utf-8")
    (folder / "recipe.toml").write_text(tiny_toml(folder), encoding="utf-8")
    return regpt.train(regpt.load_recipe(folder / "recipe.toml"), folder / "runs" / "tiny")


def tiny_toml(folder: Path) -> str:
    from tests.conftest import tiny_recipe

    return to_toml(tiny_recipe(folder, evaluation={"hellaswag_every": 0}))


def test_import_loads_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, regpt; print([name for name in ('numpy', 'torch', 'rich', 'matplotlib') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_names_are_the_public_functions() -> None:
    functions = {"load_recipe", "prepare", "train", "resume", "open_run", "load_model", "generate", "evaluate"}
    assert functions | {"compare", "cooldown", "report"} <= set(dir(regpt))
    for name in regpt.__all__:
        assert getattr(regpt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        getattr(regpt, "trian")  # noqa: B009  mypy would refuse the attribute


def test_functions_stay_functions_after_use(run: regpt.Run) -> None:
    """A package of the same name, imported later, must not replace a function."""
    regpt.report(run)
    for name in regpt.__all__:
        if name not in ("Run", "UserError", "__version__"):
            assert type(getattr(regpt, name)).__name__ == "function", name


def test_load_recipe_takes_a_mapping_or_command_line_words() -> None:
    mapping = regpt.load_recipe("demo-modern", {"run.max_steps": 7, "model.bias": True, "data.path": "x"})
    assert mapping == regpt.load_recipe("demo-modern", ["run.max_steps=7", "model.bias=true", "data.path=x"])


def test_load_recipe_takes_paths_and_numpy_numbers(tmp_path: Path) -> None:
    values = {"data.path": tmp_path / "x", "run.max_steps": np.int64(7), "optimizer.max_lr": np.float32(0.5)}
    recipe = regpt.load_recipe("demo-modern", values)
    assert (recipe.data.directory, recipe.run.max_steps, recipe.optimizer.max_lr) == (tmp_path / "x", 7, 0.5)
    with pytest.raises(regpt.UserError, match=r"data\.path = None"):
        regpt.load_recipe("demo-modern", {"data.path": None})
    with pytest.raises(regpt.UserError) as caught:
        regpt.load_recipe("demo-modern", {"run.max_step": 7})
    assert "run.max_steps" in caught.value.problem and caught.value.fix


def test_train_returns_the_finished_run(run: regpt.Run) -> None:
    assert isinstance(run, regpt.Run)
    assert run.history.step == 6
    assert run.validation_loss is not None and run.validation_loss < 10.9
    assert regpt.open_run(run.path).validation_loss == run.validation_loss
    assert regpt.open_run("tiny", run.path.parent).id == "tiny"


def test_train_prints_nothing_and_leaves_signals_alone(
    tmp_path: Path, tiny: Recipe, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    regpt.train(tiny, tmp_path / "quiet")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert capfd.readouterr() == ("", "")
    with pytest.raises(regpt.UserError) as caught:
        regpt.train(tiny, tmp_path / "quiet")
    assert str(tmp_path / "quiet") in caught.value.problem


def test_train_with_progress_prints(tmp_path: Path, tiny: Recipe, capfd: pytest.CaptureFixture[str]) -> None:
    regpt.train(tiny, tmp_path / "loud", progress=True)
    assert "step" in capfd.readouterr().out


def test_prepare_opens_a_data_set_that_exists(tmp_path: Path, tiny: Recipe) -> None:
    digest = regpt.prepare(tiny).digest
    assert regpt.prepare(tiny).digest == digest
    assert json.loads((tiny.data.directory / "manifest.json").read_text())["digest"] == digest


def test_resume_continues_to_more_steps(tmp_path: Path, tiny: Recipe) -> None:
    run = regpt.train(tiny, tmp_path / "resumed")
    assert regpt.resume(run, ["run.max_steps=8"]).history.step == 8
    with pytest.raises(regpt.UserError):
        regpt.resume(run.path, ["model.n_layer=5"])


def test_model_generates_and_evaluates(run: regpt.Run, tmp_path: Path) -> None:
    model = regpt.load_model(run)
    texts = regpt.generate(model, "def main", tokens=5, count=2, seed=3)
    assert len(texts) == 2 and all(text.startswith("def main") for text in texts)
    assert texts == regpt.generate(run, "def main", tokens=5, count=2, seed=3)
    results = regpt.evaluate(model, ["validation"], into=tmp_path / "evaluation")
    assert results[0].value == pytest.approx(run.validation_loss, abs=1e-6)


def test_report_and_comparison_are_written(run: regpt.Run, tmp_path: Path, tiny: Recipe) -> None:
    other = regpt.train(tiny, tmp_path / "other")
    assert f"{run.validation_loss:.4f}" in regpt.report(run, [other]).read_text(encoding="utf-8")
    assert regpt.report(run, html=True).suffix == ".html"
    page = regpt.compare(run, other, into=tmp_path / "comparison")
    assert f"{other.validation_loss:.4f}" in page.read_text(encoding="utf-8")
    with pytest.raises(regpt.UserError):
        regpt.compare(run)


def test_types_are_marked_for_users() -> None:
    assert (ROOT / "regpt" / "py.typed").is_file()
