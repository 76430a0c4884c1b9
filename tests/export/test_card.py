"""The model card says what the run's record says about the weights, in metadata that the hub's client accepts."""

import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from regpt.base.errors import DONE
from regpt.cli.main import main
from regpt.export.card import CardSubject, dataset_on_the_hub, model_card
from regpt.export.figures import CUSTOM, Figure, figures_of
from regpt.export.precision import Precision
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe
from regpt.tracking.environment import Origin
from regpt.tracking.run import Run, open_run
from tests.helpers.golden import assert_golden
from tests.interop.test_pretrained import saved, write_tokenizer

RUN = Path(__file__).parent.parent / "fixtures" / "runs" / "trial-050226"
WEIGHTS = "ab" * 32
SUBJECT = CardSubject(
    name="trial-050226",
    recipe=Recipe(name="gpt2-modern"),
    rows=50_257,
    precision=Precision.BFLOAT16,
    tokenizer="GPT-2's",
)


def subject_of(run: Run, step: int, averaged: bool = False, **changes: Any) -> CardSubject:
    figures = tuple(figures_of(run, step, averaged, WEIGHTS, dataset_on_the_hub(run)))
    tokens = run.recipe.tokens_after(step)
    return replace(
        SUBJECT, recipe=run.recipe, run=run, step=step, tokens=tokens, averaged=averaged, figures=figures, **changes
    )


def results_of(card: str) -> dict[tuple[str, str], float]:
    found = ModelCard(card).data.eval_results or []
    return {(one.task_name, one.metric_type): one.metric_value for one in found}


def test_card_wording_is_that_of_the_golden_file() -> None:
    card = model_card(subject_of(open_run(RUN), 4))
    before, settings = card.split("```toml\n")
    assert tomllib.loads(settings.split("```")[0])["optimizer"]["max_lr"] == 0.0018
    assert_golden("model-card.md", before + "```toml\n…\n```" + settings.split("```")[1])


def test_card_has_the_figures_of_the_exported_step_with_errors() -> None:
    run = open_run(RUN)
    two, four = (model_card(subject_of(run, step)) for step in (2, 4))
    assert results_of(two) == {("Validation", "loss"): 10.7835, ("Validation", "bits_per_byte"): 3.6267}
    assert results_of(four)["Validation", "loss"] == 10.3363
    assert results_of(four)["HellaSwag", "accuracy"] == 0.25
    assert "10.7835 ± 0.0361" in two and "0.2500 ± 0.0993" in four and "0.2500" not in two.split("<details>")[0]
    assert "8,192 tokens" in two and "16,384 tokens" in four


def test_card_of_averaged_weights_has_their_figures_alone() -> None:
    run = open_run(RUN)
    last = run.history.validations[-1]
    run.history.validations[-1] = replace(last, averaged_loss=9.5)
    run.history.tasks[-1] = replace(run.history.tasks[-1], averaged_accuracy={"by_token": 0.4})
    assert results_of(model_card(subject_of(run, 4, averaged=True))) == {
        ("Validation", "loss"): 9.5,
        ("HellaSwag", "accuracy"): 0.4,
    }


@pytest.mark.parametrize(("weights", "is_used"), [(WEIGHTS, True), ("cd" * 32, False)])
def test_card_uses_evaluations_of_the_same_weights_only(weights: str, is_used: bool, tmp_path: Path) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    task = {
        "items": "400 of 1,838 items",
        "digest": "d",
        "accuracy": {"by_sum": 0.61},
        "standard_error": {"by_sum": 0.02},
    }
    known = {**task, "digest": open_run(RUN).history.tasks[-1].digest}  # the journal has it already
    results = {"weights": weights, "tasks": {"piqa-400": task, "hellaswag-20": known, "lm_eval_x": {"accuracy": {}}}}
    folder = tmp_path / "run" / "evaluations" / "step_000004"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    found = results_of(model_card(subject_of(open_run(tmp_path / "run"), 4)))
    assert found.get(("PIQA", "accuracy")) == (0.61 if is_used else None)
    assert found["HellaSwag", "accuracy"] == 0.25 and len(found) == (4 if is_used else 3)


def test_card_names_dataset_language_and_licence_of_known_text() -> None:
    run = open_run(RUN)
    data = run.environment.data

    def card_of(asked: str, **other: str) -> str:
        source = replace(data.source, asked=asked, other=other)
        environment = replace(run.environment, data=replace(data, source=source))
        return model_card(subject_of(replace(run, environment=environment), 4))

    edu = card_of("hub:HuggingFaceFW/fineweb-edu/sample/10BT", revision="0123abcd")
    about = ModelCard(edu).data
    assert about.datasets == ["HuggingFaceFW/fineweb-edu"] and about.language == "en"
    assert {one.dataset_type for one in about.eval_results} == {"HuggingFaceFW/fineweb-edu", "Rowan/hellaswag"}
    assert "ODC-By 1.0" in edu and "`0123abcd`" in edu and data.digest in edu
    assert ModelCard(card_of("stdlib")).data.language == "code"
    unknown = ModelCard(card_of("my-texts")).data
    assert unknown.datasets is None and unknown.language is None
    assert CUSTOM in {one.dataset_type for one in unknown.eval_results}


@pytest.mark.parametrize(
    ("where", "base"), [("hub:openai-community/gpt2@0123abcd", "openai-community/gpt2"), ("runs/other", None)]
)
def test_card_names_the_model_whose_weights_the_run_started_from(where: str, base: str | None) -> None:
    run = open_run(RUN)
    origin = Origin(name="the-start", where=where, weights_sha256="ef" * 32, tokens=1_234)
    card = model_card(subject_of(replace(run, environment=replace(run.environment, origin=origin)), 4))
    assert ModelCard(card).data.base_model == base
    assert not [text for text in ("the-start", where, "1,234", "efef") if text not in card]


def test_card_without_a_choice_names_no_licence_of_the_weights() -> None:
    run = open_run(RUN)
    assert ModelCard(model_card(subject_of(run, 4))).data.license is None
    assert ModelCard(model_card(subject_of(run, 4, licence="cc-by-4.0"))).data.license == "cc-by-4.0"


def test_card_survives_names_and_prompts_with_markup() -> None:
    run = open_run(RUN)
    prompt = "```\n# 'quoted' {{ x }}\n---"
    recipe = replace(run.recipe, evaluation=replace(run.recipe.evaluation, sample_prompt=prompt))
    name = "owner/a: [b] | *c* {{ d }}"
    hostile = replace(subject_of(run, 4), name=name, recipe=recipe)
    figure = Figure(task="x | y", metric="a: b", metric_type="accuracy", value=0.5, measured_on="[1]: {2}")
    card = model_card(replace(hostile, figures=(figure,)))
    assert ModelCard(card).data.model_name == "a: [b] | *c* {{ d }}"
    assert ModelCard(card).data.eval_results[0].dataset_name == "x | y, [1]: {2}"
    code = card.split("```python\n")[1]
    assert repr(prompt) in code and repr(name) in code and r"x \| y" in card


def test_card_code_loads_the_model_with_the_trust_it_needs() -> None:
    assert "trust_remote_code" not in model_card(SUBJECT)
    recipe = load_recipe("gpt2-modern", ["model.qk_norm=true"])
    assert "from_pretrained(name, trust_remote_code=True)" in model_card(replace(SUBJECT, recipe=recipe))


def test_card_of_a_foreign_model_claims_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    folder, _ = saved(tmp_path / "m", "llama")
    write_tokenizer(folder)
    monkeypatch.chdir(tmp_path)
    assert main(["export", "m", "out", "--license", "mit"]) == DONE
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "mit" and card.data.eval_results is None and card.data.datasets is None
    assert not [title for title in ("## Results", "## Training") if title in card.text]
