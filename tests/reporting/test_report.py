"""Reports have the numbers of the journal, for active and for finished runs, and claim only what was tested."""

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from regpt.base.errors import UserError
from regpt.fairness.baselines import Baseline, open_baseline
from regpt.recipe.settings import load_recipe, to_toml
from regpt.reporting.page import write_page, write_report
from regpt.reporting.recipe_diff import differences_from_gpt2, rows_of_differences
from regpt.tracking.journal import read_history
from regpt.tracking.run import find_run, open_run
from regpt.training.start import train
from tests.conftest import skip_drawing, tiny_recipe, write_texts
from tests.helpers.compared_runs import edit_environment, edit_journal, edit_recipe
from tests.helpers.golden import assert_golden

# The full-size recipes, two and four steps of 4,096 tokens each, on a CPU.
TRIALS = Path(__file__).parent.parent / "fixtures" / "runs"

# The tables of the owner's training records, with the names of their rows.
ROWS_OF_THE_RECORD = {
    "Model Architecture": """Model Type
Layers (`n_layer`)
Attention Heads (`n_head`)
Embedding Dimension (`n_embd`)
Context Length (`block_size`)
Vocabulary Size (`vocab_size`)
Total Parameters""",
    "Batch Size & Gradient Accumulation": """Micro-batch Size (`B`)
Sequence Length (`T`)
Total Batch Size
Gradient Accumulation Steps""",
    "Optimizer Settings": """Optimizer
Weight Decay
Beta1
Beta2
Epsilon
Gradient Clipping""",
    "Learning Rate Schedule": """Max Learning Rate
Min Learning Rate
Warmup Steps
Total Steps
Schedule Type""",
    "Training Steps & Evaluation": """Total Training Steps
Validation Frequency
Validation Steps
HellaSwag Eval Frequency
Checkpoint Frequency""",
    "Compute Resources": """GPU Type
Number of GPUs
Platform
Training Duration
Estimated Cost""",
    "Distributed Setup": """Framework
Backend
Precision
Compile
matmul precision""",
    "Final Metrics": """Validation Loss
HellaSwag Accuracy""",
}
# Their lists, with the bold names of the items.
LISTS_OF_THE_RECORD = {
    "Architecture Details": [
        "Attention",
        "Activation Function",
        "Positional Encoding",
        "Normalization",
        "Weight Tying",
    ],
    "Dataset": ["Name", "Source", "Size", "Tokenizer", "Splits", "Training Epochs"],
    "Data Loading Improvements": ["Multi-epoch support", "Reading"],
    "Weight Initialization": ["Linear layers", "Residual projections", "Embeddings"],
    "Random Seeds": ["Manual Seed", "Generation Seed"],
}
# Their comparisons of the modern run with the classic one.
COMPARISONS_OF_THE_RECORD = {
    "Key Improvements Over trial-230126": ["RoPE Embeddings", "SwiGLU Activation", "RMSNorm", "2x Training Duration"],
    "Key Differences from Original GPT-2": [
        "Flash Attention",
        "AdamW",
        "bfloat16",
        "Vocab Padding",
        "Modern PyTorch",
        "RoPE Embeddings",
        "SwiGLU Activation",
        "RMSNorm",
    ],
    "Key Differences from Previous Run (trial-230126)": [
        "Higher Learning Rate",
        "Shorter Warmup",
        "2x Training Duration",
        "Larger Micro-batch",
        "RoPE instead of Learned Embeddings",
        "SwiGLU instead of GELU",
        "RMSNorm instead of LayerNorm",
    ],
    "Contributing Factors": [
        "Extended Training",
        "Higher Learning Rate",
        "RoPE Embeddings",
        "SwiGLU Activation",
        "RMSNorm",
    ],
}
HEADINGS_OF_THE_RECORD = [
    *ROWS_OF_THE_RECORD,
    *LISTS_OF_THE_RECORD,
    "Training Configuration",
    "Data Configuration",
    "Hardware & Distributed Training",
    "Initialization & Regularization",
    "Regularization",
    "Training Results",
    "Loss Curve",
    "Implementation Details",
    "Key Differences from Original GPT-2",
    "Reproducibility",
    "Performance Analysis",
]
# In the order of the page: results first.
CHAPTERS = [
    "Performance Analysis",
    "Training Results",
    "Model Architecture",
    "Training Configuration",
    "Data Configuration",
    "Hardware & Distributed Training",
    "Initialization & Regularization",
    "Implementation Details",
    "Attempts",
    "Reproducibility",
]
# A row or an item with one of these would say only that there is nothing to say.
DENIALS = {"none", "none.", "n/a", "unknown", "not used", "not recorded", "not measured", "no", "0", "—", ""}


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    classic = {"positions": "learned", "activation": "gelu", "normalization": "layernorm", "bias": True}
    folder = tmp_path_factory.mktemp("two")
    write_texts(folder / "texts", real_text)
    train(tiny_recipe(folder, run={"price_per_hour": 2.0}), folder / "runs" / "modern")
    other = tiny_recipe(folder, model=classic, run={"max_steps": 3}, data={"order": "sequential"})
    train(other, folder / "runs" / "classic")
    return folder / "runs"


@pytest.fixture
def two_runs(trained_runs: Path, tmp_path: Path) -> Path:
    """Return a copy of a modern run and a shorter classic one, for this test to change."""
    return shutil.copytree(trained_runs, tmp_path / "runs")


def report_of(root: Path, name: str, *against: str) -> str:
    """Write a report, without drawing its figures, and return its text."""
    with pytest.MonkeyPatch.context() as patched:
        skip_drawing(patched)
        page = write_report(open_run(root / name), [open_baseline(o, root) for o in against])
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trials") / "runs"
    shutil.copytree(TRIALS, root)
    return root


def sections(text: str) -> dict[str, str]:
    """Return the text below each heading."""
    parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def rows(section: str) -> dict[str, list[str]]:
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


def listed(section: str) -> dict[str, str]:
    """Return the bold names of list items, with their text."""
    return dict(re.findall(r"^(?:-|\d+\.) \*\*([^*]+?):?\*\*:? *(.*)$", section, re.MULTILINE))


@pytest.mark.parametrize(("name", "other"), [("trial-050226", "trial-230126"), ("trial-230126", "trial-050226")])
def test_report_has_every_table_and_row_of_the_owners_record(tmp_path: Path, name: str, other: str) -> None:
    """Of runs on two GPUs with a price, as the owner's was."""
    shutil.copytree(TRIALS, tmp_path, dirs_exist_ok=True)
    edit_environment(tmp_path / name, "device", place="cuda:0", name="NVIDIA RTX 3090")
    edit_journal(tmp_path / name, with_two_ranks)
    edit_recipe(tmp_path / name, "price_per_hour = 0.0", "price_per_hour = 2.0")
    found = sections(report_of(tmp_path, name, other))
    assert [heading for heading in HEADINGS_OF_THE_RECORD if heading not in found] == []
    for heading, labels in ROWS_OF_THE_RECORD.items():
        table = rows(found[heading])
        for label in labels.splitlines():
            assert label in table, f"{heading}: no row {label}"
            assert all(table[label]), f"{heading}: nothing in {label}"
    for heading, labels in LISTS_OF_THE_RECORD.items():
        lines = listed(found[heading])
        assert [label for label in labels if not lines.get(label)] == [], heading
    assert len(re.findall("^- ", found["Regularization"], re.MULTILINE)) >= 3
    assert "CUDA Seed" in listed(found["Random Seeds"])
    loading, weights = found["Data Loading Improvements"], found["Weight Initialization"]
    assert ("Global shuffling" in listed(loading)) == (name == "trial-050226") == ("Biases" not in listed(weights))


def with_two_ranks(record: dict[str, Any]) -> dict[str, Any]:
    is_start = record.get("event") == "started"
    return {**record, "detail": {**record["detail"], "ranks": 2}} if is_start else record


def test_report_of_a_cpu_run_has_no_row_that_only_denies(trials: Path) -> None:
    text = report_of(trials, "trial-050226", "trial-230126")
    found = sections(text)
    resources = [name for name in rows(found["Compute Resources"]) if name.strip("-")]
    assert resources == ["Parameter", "Processor", "Platform", "Training Duration", "Speed", "Memory"]
    assert "Backend" not in rows(found["Distributed Setup"])
    for heading, section in found.items():
        for name, cells in rows(section).items():
            assert set(map(str.lower, cells)) - DENIALS, f"{heading}: {name} says {cells}"
        assert [name for name, words in listed(section).items() if words.lower() in DENIALS - {""}] == [], heading
    assert [heading for heading in found if heading in CHAPTERS] == CHAPTERS
    assert "Published Figures" not in found and "GPT-2 Original" not in found["Final Metrics"]


def test_published_figures_are_shown_only_where_they_compare(tmp_path: Path) -> None:
    """Losses on the same corpus; accuracies on all items."""
    shutil.copytree(TRIALS, tmp_path, dirs_exist_ok=True)
    name = "trial-050226"
    source = load_recipe("gpt2-modern").data.source
    edit_environment(tmp_path / name, "data", source={"asked": source, "description": "FineWeb-Edu"})
    found = sections(report_of(tmp_path, name))
    published = rows(found["Published Figures"])
    assert published["GPT-2 124M (OpenAI)"] == ["3.29 on FineWeb-Edu", "—"]
    assert "llm.c on FineWeb 10B" not in published and "GPT-3 124M (OpenAI)" not in published
    reference = {row: cells[1] for row, cells in rows(found["Final Metrics"]).items()}
    assert reference["Metric"] == "Reference (GPT-2 Original)"
    assert reference["Validation Loss"] == "\\~3.29 (on FineWeb-Edu)" and reference["HellaSwag Accuracy"] == "—"


def test_report_compares_with_the_previous_run_as_the_record(trials: Path) -> None:
    found = sections(report_of(trials, "trial-050226", "trial-230126"))
    for heading, labels in COMPARISONS_OF_THE_RECORD.items():
        lines = listed(found[heading])
        assert [label for label in labels if label not in lines] == [], heading
    header = next(line for line in found["Final Metrics"].splitlines() if line.startswith("|"))
    assert header.startswith("| Metric | This Run | Previous Run (trial-230126) |")
    improvements = rows(found["Improvements Over Previous Run (trial-230126)"])
    assert improvements["Validation Loss"][:3] == ["10.8782", "10.3363", "-0.5419"]
    assert improvements["HellaSwag Accuracy"][:3] == ["0.2000 (20 %)", "0.2500 (25 %)", "+5.0 percentage points"]
    assert all(improvements["Training Efficiency"])
    factors = found["Contributing Factors"]
    count = len(re.findall(r"^\d+\. ", factors, re.MULTILINE))
    assert "`regpt train " in factors and f"{count} runs per seed" in factors
    assert "(3x trial-230126)" in rows(found["Learning Rate Schedule"])["Max Learning Rate"][0]


def test_later_run_is_not_called_previous_or_an_improvement(trials: Path) -> None:
    text = report_of(trials, "trial-230126", "trial-050226")
    assert "Previous Run" not in text and "Improvements Over" not in text
    assert "Key Improvements" not in text and "Contributing Factors" not in text
    assert "### Key Differences from Later Run (trial-050226)" in text


def as_run(root: Path, name: str, days: float, digest: str = "") -> None:
    """Copy the classic trial, `days` later, with other losses, and optionally on other data."""
    shutil.copytree(TRIALS / "trial-230126", root / name)
    journal, environment = root / name / "journal.jsonl", root / name / "environment.json"
    records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record |= {key: record[key] + add for key, add in (("at", 86_400 * days), ("loss", 0.01)) if key in record}
    journal.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    known = json.loads(environment.read_text(encoding="utf-8"))
    known["data"]["digest"] = digest or known["data"]["digest"]
    environment.write_text(json.dumps(known), encoding="utf-8")


def test_baselines_are_named_after_their_relation_to_the_run(tmp_path: Path) -> None:
    shutil.copytree(TRIALS, tmp_path, dirs_exist_ok=True)
    shutil.copytree(TRIALS / "trial-050226", tmp_path / "copy")
    as_run(tmp_path, "first", -9)
    as_run(tmp_path, "last", 9)
    as_run(tmp_path, "elsewhere", -1, digest="f" * 64)
    others = ["first", "trial-230126", "last", "elsewhere", "copy", str(find_recipe_file("gpt2-classic"))]
    text = report_of(tmp_path, "trial-050226", *others)
    header = next(line for line in sections(text)["Final Metrics"].splitlines() if line.startswith("|"))
    assert header.rstrip(" |").split(" | ")[2:] == [
        "Earlier Run (first)",
        "Previous Run (trial-230126)",
        "Later Run (last)",
        "Run on Other Data (elsewhere)",
        "The Same Run (copy)",
        "Run on Other Data (gpt2-classic, recorded)",
    ]
    assert re.findall("^### (?:Key )?Improvements Over (.*)$", text, re.MULTILINE) == [
        "Previous Run (trial-230126)",
        "trial-230126",
    ]
    assert "### Comparison with Run on Other Data (elsewhere)" in text
    assert "### Key Differences from Run on Other Data (elsewhere)" in text


def test_recorded_run_is_previous_only_without_an_earlier_run(tmp_path: Path) -> None:
    shutil.copytree(TRIALS, tmp_path, dirs_exist_ok=True)
    recipe = tmp_path / "trial-050226" / "recipe.toml"
    source = load_recipe("gpt2-modern").data.source
    recipe.write_text(recipe.read_text(encoding="utf-8").replace('source = "fineweb-sample"', f'source = "{source}"'))

    def header(name: str, *others: str) -> str:
        text = report_of(tmp_path, "trial-050226", str(find_recipe_file(name)), *others)
        return next(line for line in sections(text)["Final Metrics"].splitlines() if line.startswith("|"))

    assert "| Previous Run (gpt2-classic, recorded) |" in header("gpt2-classic")
    assert "| Recorded Run (gpt2-modern, recorded) |" in header("gpt2-modern")
    beside_a_run = header("gpt2-classic", "trial-230126")
    assert "| Recorded Run (gpt2-classic, recorded) | Previous Run (trial-230126) |" in beside_a_run


def test_report_wording_is_that_of_the_golden_file(trials: Path) -> None:
    """The whole report of a full-size run, compared with another run and with recorded figures."""
    recorded = str(find_recipe_file("gpt2-classic"))
    text = report_of(trials, "trial-050226", "trial-230126", recorded)
    assert_golden("report-modern.md", text.replace(str(trials), "RUNS"))


def test_report_opens_with_the_run_and_a_paragraph_for_each_baseline(trials: Path) -> None:
    recorded = str(find_recipe_file("gpt2-classic"))
    _, first, second, third, rest = report_of(trials, "trial-050226", "trial-230126", recorded).split("\n\n", 4)
    for value in ("123,587,328", "16,384", "fineweb-sample", "2 min 32 s", "10.9787", "10.3363", "0.2500 ± 0.0993"):
        assert value in first
    assert "230126" not in first
    for value in ("**trial-230126**", "8,192", "10.3363", "10.8782", "10.7835", "25 %", "20 %"):
        assert value in second
    assert "-0.5419" not in second and "different numbers of training tokens" in second
    assert "**gpt2-classic (recorded)**" in third and rest.startswith("## Performance Analysis")
    assert not re.search("t-test|McNemar|threshold", first + second + third)


def test_report_of_an_unfinished_run_says_how_far_it_is(trials: Path, tmp_path: Path) -> None:
    shutil.copytree(trials / "trial-050226", tmp_path / "live")
    journal = tmp_path / "live" / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    third = next(number for number, line in enumerate(lines) if '"step": 3,' in line)
    for kept, done in ((lines[:third], "first 2 of 4 steps"), (lines[:1], "not made any of its 4 steps")):
        journal.write_text("".join(kept), encoding="utf-8")
        assert done in report_of(tmp_path, "live").split("\n\n")[1]


def test_report_has_the_numbers_of_its_journal(two_runs: Path) -> None:
    text = report_of(two_runs, "modern", "classic")
    history = read_history(two_runs / "modern")
    environment = json.loads((two_runs / "modern" / "environment.json").read_text())
    other = read_history(two_runs / "classic").validations[-1]
    metrics = rows(sections(text)["Final Metrics"])
    last, theirs = (f"{v.loss:.4f} ± {v.standard_error:.4f}" for v in (history.validations[-1], other))
    assert metrics["Validation Loss"][0] == last and metrics["Validation Loss"][1] == theirs
    assert metrics["Bits per Byte"][0] == f"{history.validations[-1].bits_per_byte:.4f}"
    assert metrics["Tokens Seen"] == ["768", "384"]
    assert "HellaSwag Accuracy" not in metrics
    assert environment["data"]["digest"] in text and "USD (" in text
    assert history.samples[-1].texts[0] in text


def test_report_has_each_figure_in_light_and_in_dark(two_runs: Path) -> None:
    against = [open_baseline("classic", two_runs)]
    text = write_report(open_run(two_runs / "modern"), against).read_text(encoding="utf-8")
    images = re.findall(r'(?:src|srcset)="(img/.*?)"', text)
    assert "img/loss_curve.png" in images and "img/loss_curve-dark.png" in images
    for image in images:
        assert (two_runs / "modern" / image).stat().st_size > 5_000
        assert (two_runs / "modern" / image).with_suffix(".svg").stat().st_size > 5_000


def test_figures_of_an_earlier_report_are_replaced(two_runs: Path) -> None:
    """All figures that the new page links to. Earlier versions used other names for some."""
    images = two_runs / "modern" / "img"
    images.mkdir(exist_ok=True)
    stale = ("loss_curve", "training_dynamics", "hellaswag", "train-val_loss", "course")
    for name in stale:
        for ending in (".png", ".svg", "-dark.png", "-dark.svg"):
            (images / f"{name}{ending}").write_text("stale", encoding="utf-8")
    run = open_run(two_runs / "modern")
    markdown = write_report(run, []).read_text(encoding="utf-8")
    html = write_page(run, []).read_text(encoding="utf-8")
    linked = re.findall(r'(?:src|srcset)="img/(.*?)"', markdown)
    assert linked and all((images / name).read_bytes() != b"stale" for name in linked)
    assert base64.b64encode(b"stale").decode() not in html and html.count("data:image/svg+xml") == len(linked)


def test_report_starts_every_list_item_on_a_new_line(two_runs: Path) -> None:
    lines = report_of(two_runs, "modern", "classic").splitlines()
    assert [line for line in lines if "- **" in line[1:]] == []
    assert sum(line.startswith(("- **Training Epochs:**", "- **Digest:**")) for line in lines) == 2


def test_report_has_well_formed_tables_and_headings(two_runs: Path) -> None:
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


def test_losses_on_other_data_are_not_called_comparable(two_runs: Path, tmp_path: Path) -> None:
    path = two_runs / "classic" / "environment.json"
    environment = json.loads(path.read_text())
    environment["data"]["digest"] = "0" * 64
    path.write_text(json.dumps(environment))
    text = report_of(two_runs, "modern", "classic")
    assert "the two losses are not comparable" in text
    assert "no claim about the recipes from validation loss" in text and "validation loss on different data" in text


def test_report_compares_with_the_figures_of_a_recipe(two_runs: Path) -> None:
    text = report_of(two_runs, "modern", str(find_recipe_file("gpt2-classic")))
    assert "3.26 (recorded)" in text and "0.28 (28 %; recorded)" in text
    assert "gpt2-classic (recorded): figures from the owner's record" in text
    assert "(4 x RTX 3090, DDP over NCCL, 11 h, 7 USD), not measured here" in text


def find_recipe_file(name: str) -> Path:
    from regpt.recipe.settings import shipped_recipes

    return shipped_recipes()[name]


def test_recipe_differences_are_those_of_the_owners_record() -> None:
    """The record lists seven of them; the table has these and the settings that belong to them."""
    rows = rows_of_differences(load_recipe("gpt2-modern"), load_recipe("gpt2-classic"))
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


def test_report_accepts_cut_and_empty_journals(two_runs: Path) -> None:
    journal = two_runs / "modern" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    for kept in ([*lines[:6], lines[6][:20]], lines[:1], []):
        journal.write_text("".join(kept))
        text = report_of(two_runs, "modern", "classic")
        assert "# Training record: modern" in text


def test_unknown_run_name_is_an_error_that_lists_the_runs(two_runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are classic, modern"):
        find_run("moderm", two_runs)
    with pytest.raises(UserError, match="it has no runs yet"):
        find_run("x", tmp_path / "nowhere")
    assert find_run(str(two_runs / "modern"), tmp_path / "nowhere") == two_runs / "modern"


def test_baseline_is_a_run_or_a_recipe_shipped_under_the_name(tmp_path: Path) -> None:
    assert open_baseline("gpt2-classic", tmp_path) == Baseline(
        "gpt2-classic (recorded)", load_recipe("gpt2-classic"), None
    )
    with pytest.raises(UserError, match="gpt3-classic"):
        open_baseline("gpt3-classic", tmp_path)
    (tmp_path / "gpt2-classic").mkdir()
    (tmp_path / "gpt2-classic" / "recipe.toml").write_text(to_toml(load_recipe("demo-modern")))
    with pytest.raises(UserError, match="environment"):  # a run, though an incomplete one, comes first
        open_baseline("gpt2-classic", tmp_path)
