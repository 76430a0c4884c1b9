"""The page comparison.md: its tables, figures, samples and escaping."""

import re
import shutil
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from regpt.comparison.samples import compare_samples
from regpt.comparison.tables import setting_text
from regpt.fairness.loading import load_models
from regpt.rendering.markdown import escaped
from regpt.tracking.journal import read_history
from tests.helpers.compared_runs import edit_journal, edit_recipe, read_page, replace_values, run_command, with_load


def test_page_marks_interpolated_losses(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scaled = {"step": lambda r: {**r, "tokens": r["tokens"] * 3 // 2, "seconds": 2 * r["seconds"]}}
    scaled["validation"] = lambda r: {**r, "tokens": r["tokens"] * 3 // 2}
    edit_journal(runs / "b", lambda r: scaled.get(r["kind"], lambda r: r)(r))
    page = read_page(run_command(capsys, "compare", "a", "b"))
    theirs, ours = (read_history(runs / name).validations for name in ("b", "a"))
    equal = page.partition("### At equal tokens")[2].partition("###")[0]
    between = theirs[1].loss + (768 - 576) / 576 * (theirs[2].loss - theirs[1].loss)
    assert f"| 768 | {ours[2].loss:.4f} ± {ours[2].standard_error:.4f} | ≈ {between:.4f} |" in equal
    assert re.search(rf"\| 576 \| ≈ [\d.]+ \| {theirs[1].loss:.4f} ± ", equal)
    assert "≈ " in page.partition("### At equal training time")[2].partition("###")[0]
    to_reach = page.partition("### Tokens and time to reach a loss")[2].partition("###")[0]
    assert f"| {ours[2].loss:.4f} (last of a) | 768 tokens, " in to_reach


@pytest.mark.parametrize("share", [0.5, -1.0])
def test_page_compares_no_times_of_runs_that_other_programs_may_have_slowed(
    runs: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    """A share of -1 is unknown."""
    edit_journal(runs / "b", lambda record: with_load(record, share))
    page = read_page(run_command(capsys, "compare", "a", "b"))
    assert "loss_over_seconds" not in page and "At equal training time" not in page
    to_reach = page.partition("### Tokens to reach a loss")[2].partition("###")[0]
    assert "tokens" in to_reach and " s |" not in to_reach
    assert "during b." in page


def test_page_begins_with_the_verdict_on_each_other_model(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = read_page(run_command(capsys, "compare", "a", "b", "c"))
    _, first, second, rest = page.split("\n\n", 3)
    assert first.startswith("**a** compared with **b**: ") and second.startswith("**a** compared with **c**: ")
    losses = [f"{read_history(runs / name).validations[-1].loss:.4f}" for name in ("a", "b")]
    assert " vs ".join(losses) in first and not re.search("t-test|McNemar|threshold", first + second)
    assert rest.startswith("- **a** is a GPT-2")


def blocks(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page)


def test_page_shows_special_characters_of_names_and_samples(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "```\n# A heading\n\n| a | b |\n|---|---|\n~~~~\n````\n<!-- [x](y)\n```"
    edit_journal(runs / "a", replace_values("sample", texts=[nasty, "plain"]))
    name = "b|_*`$\\<i>[x]"
    shutil.move(runs / "b", runs / name)
    page = read_page(run_command(capsys, "compare", "a", name))
    tokens = blocks(page)
    assert f"{nasty}\n" in [token.content for token in tokens if token.type == "fence"]
    inlines = [token for token in tokens if token.type == "inline"]
    words = ["".join(part.content for part in token.children or []) for token in inlines]
    assert f"Comparison: a, {name}" in words
    assert not any(part.type == "html_inline" for token in inlines for part in token.children or [])
    headings = [words[inlines.index(tokens[n + 1])] for n, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == [
        "Is this comparison fair?", "Final metrics", "Loss curves", "At equal tokens", "At equal training time",
        "Tokens and time to reach a loss", "HellaSwag", "Significance tests", "What differs", "Samples",
        "Sample 1", "Sample 2",
    ]  # fmt: skip


def test_page_has_whole_tables_and_all_figures(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_recipe(runs / "b", "mlp_hidden = 40", "mlp_hidden = 48")
    out = run_command(capsys, "compare", "a", "b", "c", "--into", "some/where else")
    assert out.splitlines()[-1] == "comparison: some/where else/comparison.md"
    page = read_page(out)
    tokens = blocks(page)
    rows = sum(token.type == "tr_open" for token in tokens)
    assert rows == sum(line.startswith("|") and not line.startswith("|-") for line in page.splitlines())
    for number, token in enumerate(tokens):
        if token.type == "tr_open":
            end = next(n for n in range(number, len(tokens)) if tokens[n].type == "tr_close")
            assert sum(one.type in ("td_open", "th_open") for one in tokens[number:end]) in (3, 4)
    assert "\n\n\n" not in page
    pictures = re.findall(r'src="(img/.*?)"', page)
    assert pictures == [
        f"img/{n}.png" for n in ("loss_over_tokens", "loss_over_seconds", "loss_over_flops", "hellaswag")
    ]
    for picture in pictures:
        path = Path("some/where else") / picture
        assert path.stat().st_size > 5_000
        assert path.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")
        assert path.with_stem(f"{path.stem}-dark").stat().st_size > 5_000
    assert "| model.mlp_hidden | 40 | 48 (× 1.2) | 40 |" in page
    assert "or not at all: c." in page
    assert "run.max_steps" not in page.partition("## What differs")[2]


@pytest.mark.slow
def test_samples_are_side_by_side_with_step_and_sampling(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = read_page(run_command(capsys, "compare", "a", "b"))
    last = read_history(runs / "b").samples[-1]
    assert "prompt “Hello, I'm a language model,”, seed 42, top-k 50." in page
    assert f"**b, step 6**\n\n```text\n{last.texts[0]}\n```" in page
    edit_journal(runs / "b", lambda r: None if (r["kind"], r["step"]) == ("sample", 6) else r)
    samples = compare_samples(load_models(["a", "b"], runs))
    assert not samples.same_step and [record.step for _, record in samples.drawn] == [6, 3]
    assert "a at step 6, b at step 3." in read_page(run_command(capsys, "compare", "a", "b"))
    edit_journal(runs / "b", replace_values("sample", seed=7))
    assert not compare_samples(load_models(["a", "b"], runs)).same_sampling
    assert "seed 7" in read_page(run_command(capsys, "compare", "a", "b"))


@pytest.mark.slow
def test_comparison_includes_active_and_empty_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = runs / "b" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    shutil.rmtree(runs / "b" / "evaluations")
    for kept in ([*lines[:6], lines[6][:20]], lines[:1], []):
        journal.write_text("".join(kept))
        out = run_command(capsys, "compare", "a", "b")
        assert ("- b has no steps yet" in out) == (len(kept) < 6)
        assert "# Comparison: a, b" in read_page(out)
    (runs / "a" / "journal.jsonl").write_text("")
    shutil.rmtree(runs / "a" / "evaluations")
    assert "No run has a step yet." in read_page(run_command(capsys, "compare", "a", "b"))


def test_markdown_shows_names_unchanged() -> None:
    assert escaped("demo-modern_2") == "demo-modern_2"
    assert escaped("a|b\n*") == "a\\|b \\*"


def test_setting_that_is_off_has_no_ratio() -> None:
    """0 stands for "off" in most switches, so "times 0" would say nothing."""
    assert setting_text(0.0, 0.02) == "0.0" and setting_text(0.02, 0.0) == "0.02"
    assert setting_text(0.04, 0.02) == "0.04 (× 2)"
