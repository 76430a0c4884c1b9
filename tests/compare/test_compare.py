"""`regpt compare`: what is unfair is flagged, and nothing else; figures at equal tokens and time; whole pages."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.figure import Figure

from regpt.base.errors import DONE, USAGE
from regpt.base.settings import shipped_recipes
from regpt.cli.main import main
from regpt.compare import figures
from regpt.compare.caveats import in_words, lines_of
from regpt.compare.fairness import find_caveats
from regpt.compare.figures import seconds_in_short
from regpt.compare.learning_curves import (
    EvalPoint,
    LearningCurve,
    Reading,
    at_equal_time,
    at_equal_tokens,
    learning_curve,
    reached,
)
from regpt.compare.models import open_all
from regpt.rendering.markdown import inline
from regpt.stats.describe import REASON_TEXT
from regpt.stats.outcome import NotTested
from regpt.tracking.journal import read_history
from regpt.training.start import train
from tests.conftest import tiny_recipe

FAIR = "Nothing was found that makes the comparison unfair."
SEVERE, CARE = "**These do not compare:**", "**Compare with care:**"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """Two runs that compare, and one on other text."""
    folder = tmp_path_factory.mktemp("compared")
    looking = {"hellaswag_every": 3, "hellaswag_items": 20}
    for place, name, seed, text in (
        ("", "a", 1, real_text),
        ("", "b", 2, real_text),
        ("else", "c", 3, real_text[9000:]),
    ):
        (folder / place / "texts").mkdir(parents=True, exist_ok=True)
        (folder / place / "texts" / "a.py").write_text(text, encoding="utf-8")
        train(tiny_recipe(folder / place, evaluation=looking, run={"seed": seed}), folder / "runs" / name)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, the current folder above it."""
    shutil.copytree(trained / "runs", tmp_path / "place" / "runs")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place" / "runs"


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int = DONE) -> str:
    capsys.readouterr()
    assert main(list(words)) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out + err


def page_of(out: str) -> str:
    last = out.splitlines()[-1]
    assert last.startswith("comparison: ")
    return Path(last.removeprefix("comparison: ")).read_text(encoding="utf-8")


def edit_journal(run: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Each record as `change` makes it; None leaves it out."""
    path = run / "journal.jsonl"
    records = [change(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records if record is not None), encoding="utf-8")


def edit_environment(run: Path, section: str, **values: Any) -> None:
    path = run / "environment.json"
    environment = json.loads(path.read_text(encoding="utf-8"))
    environment[section] |= values
    path.write_text(json.dumps(environment), encoding="utf-8")


def edit_recipe(run: Path, old: str, new: str) -> None:
    path = run / "recipe.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def with_kind(kind: str, **values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {**record, **values} if record["kind"] == kind else record


def edit_tasks(run: Path, **values: Any) -> None:
    """The journal's word alone, the answers gone."""
    edit_journal(run, with_kind("task", **values))
    shutil.rmtree(run / "evaluations")


def other_data(b: Path) -> None:
    edit_environment(b, "data", digest="f" * 64)


def other_tokenizer(b: Path) -> None:
    edit_environment(b, "data", digest="f" * 64, tokenizer={"name": "own", "vocabulary_sha256": "abc123"})


def unknown_tokenizer(b: Path) -> None:
    """As a version wrote it that did not say."""
    edit_environment(b, "data", digest="f" * 64, tokenizer={})


def other_windows(b: Path) -> None:
    edit_journal(b, with_kind("validation", windows=5))


def other_block(b: Path) -> None:
    edit_recipe(b, "block_size = 32", "block_size = 64")


def full_set(b: Path) -> None:
    edit_tasks(b, items="10,042 items", digest="e" * 64, count=10_042)


def other_items(b: Path) -> None:
    edit_tasks(b, digest="e" * 64)


def other_rule(b: Path) -> None:
    edit_tasks(b, accuracy={"by_sum": 0.3}, standard_error={"by_sum": 0.1})


def other_wording(b: Path) -> None:
    edit_tasks(b, task="hellaswag_lm_eval")


def not_asked(b: Path) -> None:
    edit_journal(b, lambda record: None if record["kind"] == "task" else record)
    shutil.rmtree(b / "evaluations")


def not_validated(b: Path) -> None:
    edit_journal(b, lambda record: None if record["kind"] == "validation" else record)


def asked_earlier(b: Path) -> None:
    edit_journal(b, lambda record: None if (record["kind"], record["step"]) == ("task", 6) else record)
    shutil.rmtree(b / "evaluations" / "step_000006")


def cut_to_the_block(b: Path) -> None:
    edit_tasks(b, cut=7)


def risen(b: Path) -> None:
    def lower(record: dict[str, Any]) -> dict[str, Any]:
        at_three = record["kind"] == "validation" and record["step"] == 3
        return {**record, "loss": record["loss"] - 5} if at_three else record

    edit_journal(b, lower)


def unfinished(b: Path) -> None:
    edit_recipe(b, "max_steps = 6", "max_steps = 12")


def more_tokens(b: Path) -> None:
    edit_recipe(b, "total_batch_tokens = 128", "total_batch_tokens = 256")


def other_device(b: Path) -> None:
    edit_environment(b, "device", name="NVIDIA H100")


def other_precision(b: Path) -> None:
    edit_environment(b, "device", precision="bfloat16")


def compiled(b: Path) -> None:
    edit_environment(b, "device", compiled=True)


UNFAIR = [
    (other_data, SEVERE, "Validation loss: other data", r"b: data ffffffffffff\. Remedy: `regpt evaluate b --tasks"),
    (other_block, SEVERE, "Validation loss: other block size", r"a: 32 tokens at once; b: 64 .*model.block_size=32"),
    (other_windows, SEVERE, "Validation loss: other windows", r"a: the first 8 windows; b: the first 5 .*batches=8"),
    (other_tokenizer, SEVERE, "Other tokenizer", r"a: gpt2 1ce1664773c5; b: own abc123\. Remedy: none for losses"),
    (unknown_tokenizer, CARE, "Tokenizer", r"a: gpt2 1ce1664773c5; b: not known\. Remedy: see what made the data"),
    (
        full_set,
        SEVERE,
        "hellaswag: a subset against the full set",
        r"subset of 20 .*; b: 10,042 items.*`regpt evaluate a",
    ),
    (other_items, SEVERE, "hellaswag: other items", r"b: subset of 20 .*, digest eeeeeeeeeeee\. .*`regpt evaluate a"),
    (other_rule, SEVERE, "hellaswag: judged by another rule", r"a: by mean loss per token; b: by summed loss\."),
    (other_wording, SEVERE, "HellaSwag: asked and judged in other ways", r"a: hellaswag, by .*b: hellaswag\\?_lm"),
    (
        not_asked,
        CARE,
        "hellaswag: not all were asked",
        r"b: not asked\. .*`regpt evaluate b --tasks hellaswag --items 20`",
    ),
    (
        not_validated,
        CARE,
        "Validation loss: not all have one",
        r"b: not measured\. .*`regpt evaluate b --tasks validation",
    ),
    (asked_earlier, CARE, "hellaswag: asked of an earlier step", r"b: asked after step 3 of 6.*`regpt evaluate b "),
    (cut_to_the_block, CARE, "hellaswag: contexts cut to the block", r"a: \d+ items; b: 7 items"),
    (
        risen,
        CARE,
        "A last loss far above the run's own best",
        r"\(step 6\), best .*\(step 3\).*checkpoints/step_000003`",
    ),
    (unfinished, CARE, "Not finished", r"a: finished; b: step 6 of 12 .*`regpt resume b`"),
    (more_tokens, CARE, "Other numbers of training tokens", r"a: 768; b: 1,536\. .*--name b-3 run\.max_steps=3`"),
    (other_device, CARE, "Time was measured on other devices", r"b: NVIDIA H100.*compare at equal tokens"),
    (
        other_precision,
        CARE,
        "Other precision",
        r"a: float32; b: bfloat16\. .*`regpt evaluate b run\.precision=float32`",
    ),
    (compiled, CARE, "torch.compile in one only", r"a: not compiled; b: compiled"),
]


def test_a_fair_pair_is_called_fair(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "compare", "a", "b")
    assert FAIR in out
    assert FAIR in page_of(out)
    assert SEVERE not in out and CARE not in out


@pytest.mark.parametrize(("spoil", "kind", "what", "says"), UNFAIR, ids=[case[0].__name__ for case in UNFAIR])
def test_what_is_unfair_is_flagged_with_both_values_and_the_remedy(
    runs: Path, spoil: Callable[[Path], None], kind: str, what: str, says: str
) -> None:
    spoil(runs / "b")
    text = "\n".join(lines_of(find_caveats(open_all(["a", "b"], Path("runs")))))
    (flag,) = (line for line in text.partition(kind)[2].splitlines() if line.startswith(f"- **{what}.** "))
    assert re.search(says, flag), flag
    assert FAIR not in text


def test_flags_stand_in_the_terminal_and_on_the_page_before_any_figure(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_windows(runs / "b")
    unfinished(runs / "b")
    out = printed(capsys, "compare", "a", "b")
    for text in (out, page_of(out)):
        before = text.partition("Validation loss, last")[0]
        severe, _, care = before.partition(CARE)
        assert "- **Validation loss: other windows.**" in severe.partition(SEVERE)[2]
        assert "- **Not finished.**" in care
    assert "There are no two losses here that compare on the way" in page_of(out)


@pytest.mark.parametrize("lower", [3, 0])
def test_a_chosen_checkpoint_against_a_last_one_is_flagged(
    runs: Path, capsys: pytest.CaptureFixture[str], lower: int
) -> None:
    """Whether it was chosen for being the best or is any earlier one; two of the same step are fair."""
    risen(runs / "a") if lower else None
    for name in ("a", "b"):
        printed(
            capsys,
            "evaluate",
            f"runs/{name}/checkpoints/step_000003",
            "--tasks",
            "validation,hellaswag",
            "--items",
            "20",
        )
    earlier = "runs/a/evaluations/step_000003"
    out = printed(capsys, "compare", earlier, "b")
    what = "Best against last" if lower else "An earlier checkpoint against a last one"
    is_best = "its best" if lower else "an earlier one"
    assert f"- **{what}.** a at step 3: step 3 of 6, {is_best}; b: step 6, its last" in out.partition(SEVERE)[2]
    assert f"`regpt compare {runs.resolve() / 'a'} b`" in out
    assert FAIR in printed(capsys, "compare", earlier, "runs/b/evaluations/step_000003")


def test_figures_recorded_on_other_data_do_not_compare(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "compare", "a", str(shipped_recipes()["gpt2-classic"]))
    severe, careful = out.split("Compare with care:")
    assert "These do not compare:" in severe and "Recorded on other data" in severe
    assert "FineWeb-Edu, 1,024 tokens at once" in severe and "Recorded figures" in careful


def test_recorded_figures_are_flagged_as_such(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("told.toml").write_text('[published]\nvalidation_loss = 3.26\nhellaswag = 0.28\norigin = "a record"\n')
    out = printed(capsys, "compare", "a", "told.toml")
    assert (
        "- **Recorded figures.** told (recorded): figures from a record (nothing said of hardware), not measured" in out
    )
    assert "`regpt train told.toml`" in out
    assert re.search(r"\| Validation loss, last \| .* \| 3\.26 \(recorded\) \|", out)
    assert "| hellaswag, recorded | — | 0.28 (recorded) |" in out


def test_the_remedy_for_other_data_is_one(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands in the flag, to be pasted; after it the two losses are shown on the same windows."""
    out = printed(capsys, "compare", "a", "c")
    assert f"- validation loss: not tested: {REASON_TEXT[NotTested.OTHER_DATA]}" in out
    command = re.search(r"Validation loss: other data\..*?`regpt (evaluate c .*?)`", out)
    assert command
    printed(capsys, *shlex.split(command[1]))
    out = printed(capsys, "compare", "a", "c")
    assert "Validation loss: other data" not in out
    assert re.search(r"- validation loss: .*[+-][\d.]+ ± [\d.]+ over the same 8 windows", out)
    found = json.loads((runs / "c" / "evaluations" / "step_000006" / "results.json").read_text())["tasks"]["validation"]
    assert f"| {found['loss']:.4f} ± {found['standard_error']:.4f} |" in out
    assert "There are no two losses here that compare on the way" in page_of(out)


def test_runs_and_answers_say_what_tokens_they_have(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "evaluate", "a", "--tasks", "hellaswag", "--items", "20")
    of_data = json.loads((runs / "a" / "environment.json").read_text())["data"]["tokenizer"]
    of_answers = json.loads((runs / "a" / "evaluations" / "step_000006" / "results.json").read_text())["tokenizer"]
    assert of_data == of_answers
    assert of_data["name"] == "gpt2" and len(of_data["vocabulary_sha256"]) == 64


# At equal tokens and at equal time


def course(name: str, *looks: tuple[int, float, float]) -> LearningCurve:
    return LearningCurve(name, ("d", 1, 1), 1, [], [EvalPoint(*look, 0.1) for look in looks])


STEEP = course("steep", (0, 0.0, 10.0), (100, 10.0, 6.0), (200, 30.0, 4.0))
FLAT = course("flat", (0, 0.0, 10.0), (80, 4.0, 7.0), (160, 8.0, 5.0), (240, 12.0, 5.5))


def test_losses_at_equal_tokens_are_exact_or_marked() -> None:
    rows = dict(at_equal_tokens([STEEP, FLAT]))
    assert list(rows) == [80, 100, 160, 200]
    assert rows[100] == [Reading(6.0, 0.1, True), Reading(pytest.approx(6.5), 0.0, False)]  # type: ignore[arg-type]
    assert rows[200] == [Reading(4.0, 0.1, True), Reading(pytest.approx(5.25), 0.0, False)]  # type: ignore[arg-type]
    common = dict(
        at_equal_tokens([STEEP, course("twin", (0, 0.0, 9.0), (100, 9.0, 5.0), (200, 18.0, 4.5), (300, 27.0, 3))])
    )
    assert list(common) == [100, 200]
    assert all(found and found.exact for row in common.values() for found in row)


def test_losses_at_equal_time_are_read_at_the_looks_of_the_shortest() -> None:
    rows = dict(at_equal_time([STEEP, FLAT]))
    assert list(rows) == [4.0, 8.0, 12.0]
    assert rows[12.0] == [Reading(pytest.approx(5.8), 0.0, False), Reading(5.5, 0.1, True)]  # type: ignore[arg-type]


def test_a_loss_is_reached_where_the_curve_first_crosses_it() -> None:
    first = reached(FLAT, 5.5)
    assert first and (first.tokens, first.seconds, first.exact) == (pytest.approx(140), pytest.approx(7), False)
    own = reached(STEEP, 4.0)
    assert own and (own.tokens, own.seconds, own.exact) == (200, 30.0, True)
    assert reached(FLAT, 4.0) is None


def test_the_page_has_them_and_marks_what_was_not_measured(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scaled = {"step": lambda r: {**r, "tokens": r["tokens"] * 3 // 2, "seconds": 2 * r["seconds"]}}
    scaled["validation"] = lambda r: {**r, "tokens": r["tokens"] * 3 // 2}
    edit_journal(runs / "b", lambda r: scaled.get(r["kind"], lambda r: r)(r))
    page = page_of(printed(capsys, "compare", "a", "b"))
    theirs, ours = (read_history(runs / name).validations for name in ("b", "a"))
    equal = page.partition("### At equal tokens")[2].partition("###")[0]
    between = theirs[1].loss + (768 - 576) / 576 * (theirs[2].loss - theirs[1].loss)
    assert f"| 768 | {ours[2].loss:.4f} ± {ours[2].standard_error:.4f} | ≈ {between:.4f} (interpolated) |" in equal
    assert re.search(rf"\| 576 \| ≈ .* \(interpolated\) \| {theirs[1].loss:.4f} ± ", equal)
    assert "(interpolated)" in page.partition("### At equal time")[2].partition("###")[0]
    to_reach = page.partition("### To reach the same loss")[2].partition("###")[0]
    assert f"| {ours[2].loss:.4f}, the last of a | 768 tokens, " in to_reach


def test_time_is_that_of_training_steps_alone(runs: Path) -> None:
    edit_journal(runs / "a", with_kind("validation", seconds=1000.0))
    model = open_all(["a", "b"], runs)[0]
    found = learning_curve(model)
    seconds = [step.seconds for step in read_history(runs / "a").steps]
    assert found and found.evaluations[-1].seconds == pytest.approx(sum(seconds))
    assert found.evaluations[1].seconds == pytest.approx(sum(seconds[:3]))
    assert found.evaluations[0].seconds == 0.0


def test_a_curve_over_time_has_each_step_at_its_own_time_and_each_validation_where_it_was_taken(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 10, 20, … seconds; a curve over tokens stretched to the same length would have them elsewhere."""
    edit_journal(runs / "a", lambda r: {**r, "seconds": 10.0 * r["step"]} if r["kind"] == "step" else r)
    found = learning_curve(open_all(["a", "b"], runs)[0])
    assert found
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    figures.draw_learning_curves([found], "seconds", tmp_path / "loss.png")
    training, validation = (np.asarray(line.get_xydata()) * [60, 1] for line in drawn[0].axes[0].lines)
    assert list(training[:, 0]) == pytest.approx([10, 30, 60, 100, 150, 210])
    assert list(validation[:, 0]) == pytest.approx([0, 60, 210])
    assert list(validation[:, 1]) == [look.loss for look in read_history(runs / "a").validations]


def test_the_note_above_a_curve_that_begins_above_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not would make the picture narrow."""
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    steps = [(100 * n, 10.0 * n, 3 + 7.85 * 0.8**n) for n in range(200)]
    looks = [EvalPoint(*step, 0.1) for step in steps[::50]]
    for over in ("tokens", "seconds", "flops"):
        figures.draw_learning_curves([LearningCurve("a", ("d", 1, 1), 1, steps, looks)], over, tmp_path / "loss.png")
        drawn[-1].draw_without_rendering()
        (note,) = (text for text in drawn[-1].axes[0].texts if "It begins above" in text.get_text())
        assert note.get_window_extent().x1 <= drawn[-1].bbox.x1
        assert drawn[-1].axes[0].get_position().x1 > 0.95


# The page


def blocks(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page)


def test_no_sample_and_no_name_can_break_the_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "```\n# A heading\n\n| a | b |\n|---|---|\n~~~~\n````\n<!-- [x](y)\n```"
    edit_journal(runs / "a", with_kind("sample", texts=[nasty, "plain"]))
    name = "b|_*`$\\<i>[x]"
    shutil.move(runs / "b", runs / name)
    page = page_of(printed(capsys, "compare", "a", name))
    tokens = blocks(page)
    assert f"{nasty}\n" in [token.content for token in tokens if token.type == "fence"]
    inlines = [token for token in tokens if token.type == "inline"]
    words = ["".join(part.content for part in token.children or []) for token in inlines]
    assert f"Comparison: a, {name}" in words
    assert not any(part.type == "html_inline" for token in inlines for part in token.children or [])
    headings = [words[inlines.index(tokens[n + 1])] for n, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == [
        "Whether it is fair", "Final metrics", "Tests", "Loss on the way", "At equal tokens", "At equal time",
        "To reach the same loss", "HellaSwag", "What differs", "Samples", "Sample 1", "Sample 2",
    ]  # fmt: skip


def test_every_table_is_one_and_every_picture_is_there(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_recipe(runs / "b", "mlp_hidden = 40", "mlp_hidden = 48")
    out = printed(capsys, "compare", "a", "b", "c", "--into", "some/where else")
    assert out.splitlines()[-1] == "comparison: some/where else/comparison.md"
    page = page_of(out)
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
        f"img/{n}.png" for n in ("loss-over-tokens", "loss-over-seconds", "loss-over-flops", "hellaswag")
    ]
    for picture in pictures:
        path = Path("some/where else") / picture
        assert path.stat().st_size > 5_000
        assert path.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")
        assert path.with_stem(f"{path.stem}-dark").stat().st_size > 5_000
    assert "| `model.mlp_hidden` | 40 | 48 (× 1.2) | 40 |" in page
    assert "Not in these tables, because its loss was taken on other windows or not at all: c." in page
    assert "`run.max_steps`" not in page.partition("## What differs")[2]


def test_samples_stand_side_by_side_and_other_steps_or_prompts_are_said(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = page_of(printed(capsys, "compare", "a", "b"))
    last = read_history(runs / "b").samples[-1]
    assert "- All with the prompt “Hello, I'm a language model,”, seed 42 and top-k 50." in page
    assert f"**b, step 6**\n\n```text\n{last.texts[0]}\n```" in page
    edit_journal(runs / "b", lambda r: None if (r["kind"], r["step"]) == ("sample", 6) else r)
    page = page_of(printed(capsys, "compare", "a", "b"))
    assert "- They were not drawn after the same step: a after step 6, b after step 3." in page
    edit_journal(runs / "b", with_kind("sample", seed=7))
    page = page_of(printed(capsys, "compare", "a", "b"))
    assert "They were not drawn with the same prompt, seed and top-k, so they do not compare" in page


def test_a_run_without_a_step_and_a_live_one_take_part(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = runs / "b" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    shutil.rmtree(runs / "b" / "evaluations")
    for kept in ([*lines[:6], lines[6][:20]], lines[:1], []):
        journal.write_text("".join(kept))
        out = printed(capsys, "compare", "a", "b")
        assert ("- b has made no step yet" in out) == (len(kept) < 6)
        assert "# Comparison: a, b" in page_of(out)
    (runs / "a" / "journal.jsonl").write_text("")
    shutil.rmtree(runs / "a" / "evaluations")
    assert "No run here has made a step yet." in page_of(printed(capsys, "compare", "a", "b"))


def test_one_run_twice_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "compare", "a", "b", "runs/a", code=USAGE)
    assert "error: 'a' and 'runs/a' are the same, " in out and out.count("error:") == 1
    assert not Path("comparisons").exists()


def test_two_runs_of_one_name_are_told_apart(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "b", "elsewhere/a")
    assert "| | a (a) | a (elsewhere/a) |" in printed(capsys, "compare", "a", "elsewhere/a")


def test_times_are_told_in_a_unit_that_fits() -> None:
    assert [seconds_in_short(value) for value in (0.0, 46.02, 300.0, 4e4)] == ["0 s", "46 s", "5 min", "11.1 h"]


def test_models_that_have_the_same_are_named_together() -> None:
    assert in_words([("a", "x"), ("b", "y"), ("c", "x")]) == "a, c: x; b: y"


def test_names_are_left_as_they_are_by_markdown() -> None:
    assert inline("demo-modern_2") == "demo-modern_2"
    assert inline("a|b\n*") == "a\\|b \\*"
