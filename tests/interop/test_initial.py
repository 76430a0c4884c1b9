"""A run that starts from the weights of a model: its first loss, its record, its resume, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from regpt.base.errors import CHECKPOINT, DONE, USAGE, CheckpointError, RecipeError, UserError
from regpt.base.files import sha256_of_file
from regpt.checkpoint import store
from regpt.cli.main import main
from regpt.data.shards import TokenWindows, read_manifest
from regpt.interop.initial import fitted, model_of_run, with_source_model
from regpt.interop.open_model import digest_of_weights, open_model
from regpt.preparation.dataset import prepare
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.recipe import Given, Recipe
from regpt.recipe.settings import load_recipe, override, to_toml
from regpt.reporting.page import write_report
from regpt.tracking.journal import read_history
from regpt.tracking.layout import RunPaths
from regpt.tracking.run import Run
from regpt.training.reproduce import reproduce
from regpt.training.start import resume, train
from tests.conftest import tiny_recipe
from tests.interop.test_pretrained import saved, write_tokenizer
from tests.model.test_gpt import SMALL

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("hf")

NARROW = {"vocab_size": 50_257, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 16, "n_head": 2, "n_positions": 64}),
    "llama": ("llama", NARROW),  # grouped, untied
    "qwen2": ("qwen2", {**NARROW, "tie_word_embeddings": True}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """A folder with a dataset, and the models that transformers writes."""
    folder = tmp_path_factory.mktemp("initial")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(real_text, encoding="utf-8")
    prepare(tiny_recipe(folder))
    for name, (kind, changes) in SOURCES.items():
        _, model = saved(folder / name, kind, **changes)
        model.to(torch.bfloat16).save_pretrained(folder / name, max_shard_size="1MB")
    return folder


def recipe_from(folder: Path, source: Any, **run: Any) -> Recipe:
    settings = {"run": {"init_from": str(source), **run}, "evaluation": {"sample_count": 0, "validation_every": 0}}
    return tiny_recipe(folder, **settings)  # type: ignore[arg-type]


def loss_of_transformers(folder: Path, recipe: Recipe) -> float:
    """Return the mean loss over the run's validation windows, computed by transformers."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    data = recipe.data.directory
    windows = TokenWindows(data, read_manifest(data), "val", recipe.model.block_size)
    rows = torch.from_numpy(windows.rows(range(8)).astype(np.int64))
    with torch.no_grad():
        logits = theirs(rows[:, :-1]).logits
    return float(functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()))


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return dict(open_model(run.paths.checkpoint(step), run.path.parent).model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_first_loss_is_that_of_transformers_before_and_after_a_round_trip(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe = recipe_from(place, place / name, max_steps=2)
    run = train(recipe, tmp_path / "runs" / "first")
    assert run is not None and run.recipe.model.vocab_size == 50_257 and run.recipe.model.block_size == 32
    first, expected = run.history.validations[0].loss, loss_of_transformers(place / name, run.recipe)
    assert first == pytest.approx(expected, abs=1e-5)
    assert run.history.validations[-1].loss < first - 0.01
    monkeypatch.chdir(tmp_path)
    assert main(["export", "runs/first/checkpoints/step_000000", "out"]) == DONE
    assert loss_of_transformers(tmp_path / "out", run.recipe) == pytest.approx(expected, abs=1e-5)
    again = train(replace(recipe, run=replace(recipe.run, init_from="out")), tmp_path / "runs" / "again")
    assert again is not None and again.history.validations[0].loss == first
    assert again.history.steps[-1].loss == run.history.steps[-1].loss


@pytest.fixture(scope="module")
def tuned(place: Path) -> Run:
    """Six steps from the weights of transformers' Llama, with a checkpoint after each third step."""
    run = train(recipe_from(place, place / "llama"), place / "runs" / "tuned")
    assert run is not None
    return run


@pytest.mark.slow
def test_origin_is_recorded_and_shown_in_the_report(tuned: Run, place: Path, undrawn_figures: None) -> None:
    origin, source = tuned.environment.origin, open_model(place / "llama", place)
    assert origin is not None and origin.name == "llama" and origin.where == str(place / "llama")
    assert origin.weights_sha256 == digest_of_weights(source.model)
    assert tuned.recipe.model.n_kv_head == 2 and tuned.recipe.run.init_from == str(place / "llama")
    report = write_report(tuned, []).read_text(encoding="utf-8")
    assert "started with the weights of **llama**" in report and "from scratch" not in report
    assert origin.weights_sha256[:12] in report


@pytest.mark.slow
def test_report_compares_with_a_model_on_the_same_windows(
    tuned: Run, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], undrawn_figures: None
) -> None:
    """Its source, and its own checkpoint after step 3, by path and by --step; a second report measures nothing."""
    monkeypatch.chdir(place)
    first, last = (tuned.history.validations[at].loss for at in (0, -1))
    for words in (["--against", "llama"], ["--against", "runs/tuned/checkpoints/step_000000"]):
        assert main(["report", "tuned", *words]) == DONE
        text = tuned.paths.report.read_text(encoding="utf-8")
        assert f", {last:.4f} vs {first:.4f}." in text
        assert f"{first:.4f} ± " in text
    assert main(["report", "tuned", "--against", "tuned", "--step", "3"]) == DONE
    results = json.loads((tuned.paths.evaluations / "against" / "tuned at step 3" / "results.json").read_text())
    assert results["step"] == 3
    monkeypatch.setattr("regpt.evaluation.evaluate.evaluate", None)
    assert main(["report", "tuned", "--against", "llama"]) == DONE
    assert main(["report", "tuned", "--against", "llama", "--step", "3"]) == USAGE
    assert main(["report", "tuned", "--against", "nowhere"]) == USAGE
    assert "'nowhere' is not a run" in capsys.readouterr().err


@pytest.mark.slow
def test_resume_is_exact_to_the_bit_and_needs_no_source(tuned: Run, place: Path, tmp_path: Path) -> None:
    """From the initial weights, as after a kill before the first checkpoint, and from a later step."""
    for step in (0, 3):
        copy = tmp_path / f"from-{step}"
        shutil.copytree(tuned.path, copy)
        recipe = (copy / "recipe.toml").read_text(encoding="utf-8")
        (copy / "recipe.toml").write_text(recipe, encoding="utf-8")
        for later, path in store.list_checkpoints(copy):
            if later > step:
                store.remove(path)
        moved = place / "llama-moved"
        (place / "llama").rename(moved)
        try:
            resumed = resume(copy)
        finally:
            moved.rename(place / "llama")
        assert resumed is not None and resumed.history.step == 6
        ours, theirs = weights(resumed, 6), weights(tuned, 6)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_initial_weights_are_kept_and_their_loss_is_an_error(tuned: Run, tmp_path: Path) -> None:
    recipe = replace(tuned.recipe, checkpoint=replace(tuned.recipe.checkpoint, keep_last=1))
    run = train(recipe, tmp_path / "pruned")
    assert run is not None and [step for step, _ in store.list_checkpoints(run.path)] == [0, 6]
    store.remove(run.paths.checkpoint(0))
    store.remove(run.paths.checkpoint(6))
    assert main(["resume", str(run.path)]) == CHECKPOINT
    with pytest.raises(CheckpointError, match=r"step_000000: is missing.*run\.init_from = '.*llama'"):
        reproduce(run.path, 1, print)


@pytest.mark.slow
def test_reproduce_starts_from_the_same_weights(tuned: Run) -> None:
    lines: list[str] = []
    assert reproduce(tuned.path, 2, lines.append) is None
    assert lines == ["step 1 of 2: identical", "step 2 of 2: identical"]


@pytest.mark.slow
def test_run_continues_from_a_checkpoint_of_another_run(tuned: Run, place: Path, tmp_path: Path) -> None:
    """`run.init_from` names the run or one of its checkpoints; the optimizer state is not taken over."""
    recipe = recipe_from(place, "tuned", max_steps=1)
    last = train(recipe, place / "runs" / "more")
    assert last is not None and last.environment.origin is not None
    assert last.recipe.run.init_from == str(tuned.paths.checkpoint(6)) and last.environment.origin.step == 6
    assert last.history.validations[0].loss == tuned.history.validations[-1].loss
    saved_state = store.saved_tensors(last.paths.checkpoint(1), "optimizer")
    assert float(saved_state.rows("final_norm.weight/step", 0, 1)) == 1.0
    third = train(
        replace(recipe, run=replace(recipe.run, init_from=str(tuned.paths.checkpoint(3)))), tmp_path / "third"
    )
    assert third is not None and third.environment.origin is not None and third.environment.origin.step == 3
    assert all(torch.equal(value, weights(tuned, 3)[name]) for name, value in weights(third, 0).items())


@pytest.fixture(scope="module")
def own(place: Path) -> Path:
    """A Llama with a tokenizer of its own, which has one token for each byte."""
    folder, _ = saved(place / "own", "llama")
    write_tokenizer(folder)
    return folder


@pytest.mark.slow
def test_tokenizer_of_the_source_prepares_the_text_and_stays_with_the_run(
    place: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_from(place, own, max_steps=2)
    recipe = replace(recipe, data=replace(recipe.data, path=str(tmp_path / "bytes")))
    theirs, run = open_model(own, place).tokenizer_record, train(recipe, tmp_path / "runs" / "bytes")
    assert run is not None and run.recipe.model.vocab_size == 300
    assert run.history.validations[0].loss == pytest.approx(loss_of_transformers(own, run.recipe), abs=1e-5)
    digests = [record["vocabulary_sha256"] for record in (read_manifest(recipe.data.directory).tokenizer, theirs)]
    assert digests[0] == digests[1] == sha256_of_file(run.path / "tokenizer" / "tokenizer.json")
    more = train(replace(recipe, run=replace(recipe.run, init_from=str(run.path))), tmp_path / "runs" / "more")
    assert more is not None and more.history.validations[0].loss == run.history.validations[-1].loss
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(own), "--tasks", "validation", "data.path=bytes", "run.precision=float32"]) == DONE
    shutil.rmtree(recipe.data.directory)
    capsys.readouterr()
    assert main(["sample", "bytes", "--prompt", "def", "--tokens", "3"]) == DONE
    assert capsys.readouterr().out.startswith("def")


def test_dataset_with_another_tokenizer_is_refused_with_both_names(place: Path, own: Path, tmp_path: Path) -> None:
    recipe = recipe_from(place, own)
    with pytest.raises(UserError, match=r"data\.tokenizer.*gpt2"):
        train(recipe, tmp_path / "run")
    wide, _ = saved(tmp_path / "wide", "llama", **NARROW)
    write_tokenizer(wide)
    asked = replace(recipe_from(place, wide), given=Given(on_command_line=frozenset(["data.tokenizer"])))
    with pytest.raises(UserError, match=r"wide' has the tokenizer .*, the dataset .* has gpt2 \(1ce16647.*wide and"):
        train(asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_source_is_refused_before_anything_is_written(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(tiny_recipe(place)), encoding="utf-8")
    words = ["train", str(file), "--runs", str(tmp_path / "runs"), "run.init_from=nowhere"]
    assert main(words) == USAGE
    assert not (tmp_path / "runs").exists()


def given(model: ModelRecipe, *names: str) -> Recipe:
    return Recipe(name="x", model=model, given=Given(on_command_line=frozenset(f"model.{name}" for name in names)))


def test_model_is_the_sources_with_the_recipes_settings_of_training() -> None:
    source = replace(SMALL, n_kv_head=1, vocab_size=50_257)
    asked = ModelRecipe(dropout=0.1, block_size=1024)
    assert model_of_run(given(asked, "dropout"), source, "s") == replace(source, dropout=0.1)
    assert model_of_run(given(replace(asked, block_size=8)), source, "s").block_size == 8
    assert model_of_run(given(asked, "block_size"), source, "s").block_size == 1024  # rotary: any length
    assert model_of_run(given(replace(asked, vocab_size=50_300), "vocab_size"), source, "s").vocab_size == 50_300
    masked = replace(source, document_mask=True)
    assert model_of_run(given(asked), masked, "s").document_mask
    assert not model_of_run(given(asked, "document_mask"), masked, "s").document_mask


@pytest.mark.parametrize(
    ("changes", "name"), [({"n_layer": 12}, "n_layer"), ({"block_size": 64, "positions": "learned"}, "block_size")]
)
def test_shape_that_differs_from_the_source_is_refused_with_both_values(changes: dict[str, Any], name: str) -> None:
    source = replace(SMALL, positions="learned", block_size=24)
    with pytest.raises(RecipeError) as caught:
        model_of_run(given(replace(source, **changes), name), source, "the source")
    (problem,) = caught.value.problems
    assert problem.setting == f"model.{name}"
    assert str(changes[name]) in problem.text and str(getattr(source, name)) in problem.text


def test_batch_is_checked_with_the_block_of_the_source(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 64 tokens has no whole block of the recipe's own 1,024."""
    monkeypatch.chdir(place)
    small = load_recipe("gpt2-finetune", ["run.init_from=llama", "data.total_batch_tokens=64"])
    assert with_source_model(small, place).model.block_size == 64
    with pytest.raises(RecipeError, match=r"data\.total_batch_tokens = 32 .* 1 x 64"):
        with_source_model(override(small, ["data.total_batch_tokens=32"]), place)


def test_shown_recipe_has_the_model_of_its_source(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["recipe", "show", "demo-classic", "run.init_from=llama"]) == DONE
    shown, found = capsys.readouterr().out, with_source_model(recipe_from(place, "llama"), place)
    assert "n_kv_head = 2\n" in shown and f"{found.model.parameters:,}" in shown
    assert main(["recipe", "show", "demo-classic", "run.init_from=llama", "model.n_layer=5"]) == USAGE
    assert "model.n_layer = 5, but llama has 2" in capsys.readouterr().err


def test_positions_are_cut_and_new_tokens_start_at_the_mean() -> None:
    model = replace(SMALL, block_size=8, vocab_size=50_310)
    table = torch.randn(24, 4)
    assert torch.equal(fitted("position_embedding.weight", table, model), table[:8])
    rows = torch.randn(50_304, 2)
    grown = fitted("token_embedding.weight", rows, model)
    assert torch.equal(grown[:50_304], rows)
    torch.testing.assert_close(grown[50_304:], rows.mean(0).expand(6, 2))
    assert fitted("blocks.0.mlp.down.weight", rows, model) is rows


@pytest.mark.slow
def test_initial_checkpoint_has_no_state_of_the_optimizer(tuned: Run) -> None:
    assert not store.saved_tensors(tuned.paths.checkpoint(0), "optimizer").shapes
    assert read_history(tuned.path).validations[0].step == 0 and RunPaths(tuned.path).checkpoint(0).is_dir()
