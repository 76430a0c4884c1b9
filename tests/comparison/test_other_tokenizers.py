"""Runs with different tokenizers on one text: losses in nats are flagged, bits per byte of the same text are tested."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regpt import library
from regpt.comparison import figures
from regpt.comparison.page import write_comparison
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.evaluate import evaluate
from regpt.export.directory import export
from regpt.fairness.caveats import CaveatKind, RemedyKind
from regpt.fairness.checks import find_caveats
from regpt.fairness.claims import claims_on_runs, paired_tests
from regpt.fairness.learning_curves import have_one_tokenizer, learning_curve
from regpt.fairness.loading import load_models
from regpt.fairness.seed_claims import compare_groups
from regpt.fairness.seed_groups import seed_groups
from regpt.interop.open_model import open_model
from regpt.machine.device import open_device
from regpt.recipe.recipe import Recipe
from regpt.rendering.loss_figure import BITS_PER_BYTE, NATS
from regpt.stats.losses import PairedTextTest
from regpt.stats.outcome import Outcome, Quantity
from regpt.stats.seeds import SeedsTest
from regpt.tokenization.training import train_tokenizer
from regpt.tracking.window_losses import TEXT_LOSS, read_text_losses
from regpt.training.start import train
from tests.conftest import tiny_recipe, write_texts
from tests.helpers.compared_runs import edit_recipe
from tests.helpers.tokenizers import write_bytes_tokenizer

pytest.importorskip("tokenizers")
pytestmark = [pytest.mark.xdist_group("other tokenizers compared"), pytest.mark.slow]  # two runs are trained

MANY_WINDOWS = {"validation_batches": 40, "validation_batch_size": 4, "sample_every": 0, "sample_count": 1}
SETTINGS = ["run.device=cpu", "run.precision=float32"]


def recipe_of(folder: Path, name: str, choice: str) -> Recipe:
    data = {"path": str(folder / "data" / name), "tokenizer": choice, "validation_tokens": 6_000}
    return tiny_recipe(folder, data=data, model={"vocab_size": 0}, evaluation=MANY_WINDOWS, run={"max_steps": 2})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """Train a run on GPT-2's tokens and one on bytes, of the same text."""
    folder = tmp_path_factory.mktemp("two")
    write_texts(folder / "texts", real_text)
    write_bytes_tokenizer(folder / "bytes" / "tokenizer.json")
    for name, choice in (("gpt2", "gpt2"), ("bytes", str(folder / "bytes"))):
        assert train(recipe_of(folder, name, choice), folder / "runs" / name) is not None
    return folder


@pytest.fixture
def home(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def losses_of_text(home: Path, name: str) -> Path:
    (path,) = (home / "runs" / name / "evaluations" / "step_000002").glob("text-*.npy")
    return path


def test_nats_of_different_tokenizers_are_flagged_and_not_claimed(home: Path) -> None:
    models = load_models(["gpt2", "bytes"], Path("runs"))
    caveats = {caveat.kind: caveat for caveat in find_caveats(models)}
    assert {CaveatKind.OTHER_DATA, CaveatKind.OTHER_TOKENIZER} <= caveats.keys()
    assert [caveats[kind].remedies[0].kind for kind in (CaveatKind.OTHER_DATA, CaveatKind.OTHER_TOKENIZER)] == [
        RemedyKind.USE_BITS_PER_BYTE
    ] * 2
    tests = paired_tests(*models)
    assert tests.loss and not tests.loss.is_about_recipes and tests.loss.verdict.outcome is Outcome.NOT_TESTED


def test_bits_per_byte_are_tested_on_the_same_text(home: Path) -> None:
    tests = paired_tests(*load_models(["gpt2", "bytes"], Path("runs")))
    assert tests.bits_per_byte and tests.bits_per_byte.is_about_recipes
    found = tests.bits_per_byte.verdict.test
    assert isinstance(found, PairedTextTest) and found.blocks == 19  # 159 windows of 32 bytes
    assert found.means[0] < found.means[1], "after two steps, guessing costs fewer bits where tokens are long"
    assert tests.bits_per_byte.verdict.outcome is Outcome.LOWER
    reported = library.open_run("runs/bytes").history.validations[-1].bits_per_byte
    assert found.means[1] == pytest.approx(reported, rel=0.02)
    report = {claim.verdict.quantity: claim for claim in claims_on_runs(*map(library.open_run, ("bytes", "gpt2")))}
    assert report[Quantity.BITS_PER_BYTE].verdict.outcome is Outcome.HIGHER


@pytest.mark.usefixtures("undrawn_figures")
def test_groups_of_seeds_are_tested_by_bits_of_the_same_text(home: Path, tmp_path: Path) -> None:
    for number, factor in enumerate((1.0, 1.01, 1.03), 1):
        for name in ("gpt2", "bytes"):
            copy = tmp_path / "runs" / f"{name}-{number}"
            shutil.copytree(home / "runs" / name, copy, ignore=shutil.ignore_patterns("checkpoints"))
            edit_recipe(copy, "\nseed = 1337\n", f"\nseed = {number}\n")
            (path,) = (copy / "evaluations" / "step_000002").glob("text-*.npy")
            losses = read_text_losses(path)
            losses["nats"] *= factor
            np.save(path, losses)
    models = load_models(sorted(path.name for path in (tmp_path / "runs").iterdir()), tmp_path / "runs")
    (found,) = compare_groups(seed_groups(models))
    assert found.loss.verdict.outcome is Outcome.NOT_TESTED and found.bits_per_byte
    verdict, of_one = found.bits_per_byte.verdict, paired_tests(models[3], models[0]).bits_per_byte
    assert of_one and verdict.ours == pytest.approx((of_one.verdict.ours or 0) * 3.04 / 3)
    assert isinstance(verdict.test, SeedsTest) and verdict.test.seeds == (3, 3) and not verdict.test.is_paired
    assert (found.group.name, verdict.outcome) == ("gpt2", Outcome.LOWER) and found.bits_per_byte.is_about_recipes
    text = write_comparison(models, tmp_path / "page", False)[-1].read_text()
    assert "- Bits per byte of the same text: **lower**" in text and "- Validation loss: " in text


def test_blocks_of_other_text_are_not_compared(home: Path) -> None:
    path = losses_of_text(home, "bytes")
    kept = path.read_bytes()
    losses = read_text_losses(path)
    try:
        for changed in (losses["text"] + np.uint64(1), losses["text"][:7]):
            one = np.zeros(len(changed), dtype=TEXT_LOSS)
            one["text"] = changed
            np.save(path, one)
            assert paired_tests(*load_models(["gpt2", "bytes"], Path("runs"))).bits_per_byte is None
        path.write_bytes(b"damaged")
        assert paired_tests(*load_models(["gpt2", "bytes"], Path("runs"))).bits_per_byte is None
    finally:
        path.write_bytes(kept)


def test_runs_trained_on_other_text_make_no_claim(home: Path) -> None:
    path = home / "runs" / "bytes" / "environment.json"
    kept = path.read_text()
    values = json.loads(kept)
    try:
        path.write_text(json.dumps({**values, "data": {**values["data"], "text_bytes": 5}}))
        claim = paired_tests(*load_models(["gpt2", "bytes"], Path("runs"))).bits_per_byte
        assert claim and [caveat.kind for caveat in claim.caveats] == [CaveatKind.OTHER_TRAINING_DATA]
    finally:
        path.write_text(kept)


@pytest.mark.usefixtures("undrawn_figures")
def test_report_and_comparison_show_bits_per_byte(home: Path, tmp_path: Path) -> None:
    models = load_models(["gpt2", "bytes"], Path("runs"))
    text = write_comparison(models, tmp_path, False)[-1].read_text()
    assert "Bits per byte of the same text: **lower**" in text
    report = library.report("bytes", ["gpt2"]).read_text()
    assert "| Bits per Byte of the Same Text |" in report


def test_curves_of_different_tokenizers_are_in_bits_per_byte(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = [curve for model in load_models(["gpt2", "bytes"], Path("runs")) if (curve := learning_curve(model))]
    drawn = []
    monkeypatch.setattr(figures, "loss_figure", lambda curves, *_, title, **__: drawn.append((title, curves)))
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: None)
    assert not have_one_tokenizer(curves) and have_one_tokenizer(curves[:1])
    for some in (curves, curves[1:]):
        figures.draw_learning_curves(some, "tokens", tmp_path / "loss.png")
    assert [title for title, _ in drawn] == [BITS_PER_BYTE, NATS]
    last = library.open_run("bytes").history.validations[-1]
    assert drawn[0][1][1].validation[-1] == pytest.approx(last.bits_per_byte) and drawn[0][1][1].losses == []
    assert drawn[1][1][0].validation[-1] == last.loss


# All kinds of tokenizers, from the text to the export


def trained_on(folder: Path, texts: Path) -> str:
    train_tokenizer([path.read_text() for path in sorted(texts.iterdir())], 384, folder / "mine")
    return str(folder / "mine")


@pytest.mark.parametrize(
    "choose",
    [
        trained_on,
        pytest.param(lambda folder, texts: "cl100k", id="cl100k"),
        pytest.param(lambda folder, texts: "o200k", id="o200k", marks=pytest.mark.nightly),
    ],
)
def test_every_tokenizer_goes_from_text_to_export(
    home: Path, tmp_path: Path, choose: Callable[[Path, Path], str]
) -> None:
    recipe = recipe_of(home, f"of-{tmp_path.name}", choose(tmp_path, home / "texts"))
    recipe = replace(recipe, model=replace(recipe.model, n_layer=1, n_embd=4, mlp_hidden=8))
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, validation_batches=2, validation_every=0))
    run = train(recipe, tmp_path / "run")
    assert run is not None
    opened = open_model(tmp_path / "run", tmp_path, SETTINGS)
    results = evaluate(opened, ["validation"], tmp_path / "results", open_device(opened.recipe.run), RankGroup())
    assert [result.metric for result in results] == ["nats per token", "bits per byte"]
    assert results[1].value == pytest.approx(run.history.validations[-1].bits_per_byte, rel=1e-5)
    assert list((tmp_path / "results").glob("text-*.npy"))
    (text,) = library.generate(opened, "def ", tokens=4)
    assert text.startswith("def ")
    export(opened.model, tmp_path / "out", vocabulary=opened.tokenizer, source=opened.tokenizer_folder)
    again = open_model(tmp_path / "out", tmp_path, SETTINGS)
    assert again.tokenizer.encode(text).tolist() == opened.tokenizer.encode(text).tolist()
    assert again.tokenizer.eos == opened.tokenizer.eos
    row = opened.tokenizer.tokens("def main():")[None]
    size = again.recipe.model.vocab_size
    assert np.allclose(again(row).numpy(), opened(row).numpy()[..., :size], atol=1e-5)
