"""A report holds what the journal says, claims nothing more, and works on live and on finished runs."""

import json
import re
from pathlib import Path

import pytest

from regpt.base.errors import UserError
from regpt.base.recipe import Recipe
from regpt.base.settings import load_recipe
from regpt.results.differences import differences_from_gpt2, rows_of_differences
from regpt.results.report import write_report
from regpt.results.runs import find_run, open_run
from regpt.results.scores import open_other
from regpt.run.journal import read_history
from regpt.run.start import train
from tests.conftest import tiny_recipe

SEED_RECORD_SECTIONS = """Model architecture
Training configuration
Batch size and gradient accumulation
Optimizer
Learning rate schedule
Steps and evaluation
Data
Hardware and distribution
Initialization and regularization
Results
Final metrics
Loss curve
From the original GPT-2
Reproducibility""".splitlines()


@pytest.fixture
def two_runs(tiny: Recipe, tmp_path: Path) -> Path:
    classic = {"positions": "learned", "activation": "gelu", "normalization": "layernorm", "bias": True}
    root = tmp_path / "runs"
    train(tiny_recipe(tmp_path, run={"price_per_hour": 2.0}), root / "modern")
    train(tiny_recipe(tmp_path, model=classic, run={"max_steps": 3}, data={"order": "sequential"}), root / "classic")
    return root


def report_of(root: Path, name: str, *against: str) -> str:
    return write_report(open_run(root / name), [open_other(other, root) for other in against]).read_text(
        encoding="utf-8"
    )


def test_a_report_has_every_section_of_the_seed_record_and_its_figures(two_runs: Path) -> None:
    text = report_of(two_runs, "modern", "classic")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert [h for h in SEED_RECORD_SECTIONS if h not in headings] == []
    history = read_history(two_runs / "modern")
    environment = json.loads((two_runs / "modern" / "environment.json").read_text())
    other = read_history(two_runs / "classic").validations[-1]
    last, theirs = (f"{v.loss:.4f} ± {v.standard_error:.4f}" for v in (history.validations[-1], other))
    assert f"| Validation loss, last | {last} | {theirs} |" in text
    assert f"| Bits per byte, last | {history.validations[-1].bits_per_byte:.4f} | {other.bits_per_byte:.4f} |" in text
    assert environment["data"]["digest"] in text
    assert "| Tokens seen | 768 | 384 |" in text
    assert "USD (" in text and "| HellaSwag accuracy | not measured | not measured |" in text
    assert history.samples[-1].texts[0] in text
    for image in re.findall(r"\]\((img/.*?)\)", text):
        assert (two_runs / "modern" / image).stat().st_size > 5_000
    assert (two_runs / "modern" / "img" / "train-val_loss.png") in (two_runs / "modern" / "img").iterdir()


def test_every_table_is_well_formed(two_runs: Path) -> None:
    lines = report_of(two_runs, "modern", "classic").splitlines()
    for i, line in enumerate(lines):
        if line.startswith("|") and not lines[i - 1].startswith("|"):
            columns = line.count("|")
            assert lines[i - 1] == "", f"no blank line before {line}"
            assert set(lines[i + 1]) <= set("|- ")
            block = lines[i : next(j for j in range(i, len(lines)) if not lines[j].startswith("|"))]
            assert {row.count("|") for row in block} == {columns}, line
        if line.startswith("#") and i:
            assert lines[i - 1] == "" and lines[i + 1] == "", f"no blank line around {line}"
    assert "\n\n\n" not in "\n".join(lines)


def test_a_comparison_on_other_data_is_not_called_one(two_runs: Path, tmp_path: Path) -> None:
    path = two_runs / "classic" / "environment.json"
    environment = json.loads(path.read_text())
    environment["data"]["digest"] = "0" * 64
    path.write_text(json.dumps(environment))
    text = report_of(two_runs, "modern", "classic")
    assert "the two losses do not compare" in text
    assert "the last of classic" not in text


def test_a_recipe_with_recorded_figures_can_be_held_against(two_runs: Path) -> None:
    text = report_of(two_runs, "modern", str(find_recipe_file("gpt2-230126")))
    assert "3.26 (recorded)" in text and "0.28 (recorded)" in text
    assert "gpt2-230126 (recorded): figures from the owner's record" in text
    assert "(4 x RTX 3090, DDP over NCCL, 11 h, 7 USD), not measured here" in text


def find_recipe_file(name: str) -> Path:
    from regpt.base.settings import shipped_recipes

    return shipped_recipes()[name]


def test_the_differences_of_the_two_seed_runs_are_the_records() -> None:
    """The seed record lists seven; the table has each, and what the record does not say in words."""
    rows = rows_of_differences(load_recipe("gpt2-050226"), load_recipe("gpt2-230126"))
    assert {setting: ratio for setting, _, _, ratio in rows} == {
        "run.max_steps": "× 2",
        "data.order": "",
        "data.micro_batch": "× 2",
        "model.positions": "",
        "model.activation": "",
        "model.mlp_hidden": "× 0.667",
        "model.normalization": "",
        "model.bias": "",
        "optimizer.max_lr": "× 3",
        "optimizer.min_lr": "× 3",
        "optimizer.warmup_steps": "× 0.399",
    }


def test_differences_from_gpt2_follow_from_the_recipe(two_runs: Path) -> None:
    modern, classic = (" ".join(differences_from_gpt2(open_run(two_runs / name))) for name in ("modern", "classic"))
    for part in ("RoPE", "SwiGLU", "RMSNorm", "No biases"):
        assert part in modern and part not in classic


def test_a_live_run_a_cut_journal_and_one_without_a_step_can_be_reported(two_runs: Path) -> None:
    journal = two_runs / "modern" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    for kept in ([*lines[:6], lines[6][:20]], lines[:1], []):
        journal.write_text("".join(kept))
        text = report_of(two_runs, "modern", "classic")
        assert "# Training record: modern" in text


def test_an_unknown_run_is_told_which_there_are(two_runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are classic, modern"):
        find_run("moderm", two_runs)
    with pytest.raises(UserError, match="there are none yet"):
        find_run("x", tmp_path / "nowhere")
    assert find_run(str(two_runs / "modern"), tmp_path / "nowhere") == two_runs / "modern"
