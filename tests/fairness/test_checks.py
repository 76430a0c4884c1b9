"""Each unfairness is found, with the value of each model and a remedy; a fair pair has none."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regpt.comparison.final_metrics import Missing, Quantity, Value, final_metrics
from regpt.fairness.caveats import Caveat, CaveatKind, RemedyKind
from regpt.fairness.checks import find_caveats
from regpt.fairness.claims import paired_tests
from regpt.fairness.loading import load_models
from regpt.fairness.models import TaskScore, task_title
from regpt.fairness.run_checks import CheckpointStep, LastAndBest, Progress
from regpt.fairness.wording import (
    CARE_TITLE,
    FAIR,
    REMEDY_TEXT,
    SEVERE_TITLE,
    TITLES,
    VALUE_TEXT,
    caveat_lines,
    values_text,
)
from regpt.recipe.settings import shipped_recipes
from regpt.rendering.markup import MARKDOWN
from regpt.stats.outcome import NotTested, Outcome
from regpt.stats.paired import PairedLossTest
from tests.helpers.compared_runs import (
    edit_environment,
    edit_journal,
    edit_recipe,
    edit_tasks,
    read_page,
    replace_values,
    run_command,
)

pytestmark = pytest.mark.usefixtures("undrawn_figures")

GPT2_TOKENIZER = "gpt2 1ce1664773c5"
SEVERE_KINDS = {
    CaveatKind.OTHER_DATA,
    CaveatKind.OTHER_BLOCK_SIZE,
    CaveatKind.OTHER_WINDOWS,
    CaveatKind.OTHER_TOKENIZER,
    CaveatKind.SUBSET_AND_FULL_SET,
    CaveatKind.OTHER_ITEMS,
    CaveatKind.OTHER_PROMPTS,
    CaveatKind.OTHER_METRIC,
}


def caveats_of(*names: str) -> list[Caveat]:
    return find_caveats(load_models(names, Path("runs")))


def kinds_of(*names: str) -> set[CaveatKind]:
    return {caveat.kind for caveat in caveats_of(*names)}


def commands_of(caveat: Caveat) -> list[tuple[str, ...]]:
    return [command.arguments for remedy in caveat.remedies for command in remedy.commands]


def other_data(b: Path) -> None:
    edit_environment(b, "data", digest="f" * 64)


def other_tokenizer(b: Path) -> None:
    edit_environment(b, "data", digest="f" * 64, tokenizer={"name": "own", "vocabulary_sha256": "abc123"})


def unknown_tokenizer(b: Path) -> None:
    """As written by a version that did not record the tokenizer."""
    edit_environment(b, "data", digest="f" * 64, tokenizer={})


def other_windows(b: Path) -> None:
    edit_journal(b, replace_values("validation", windows=5))


def other_block(b: Path) -> None:
    edit_recipe(b, "block_size = 32", "block_size = 64")


def full_set(b: Path) -> None:
    edit_tasks(b, items="10,042 items", digest="e" * 64, count=10_042)


def other_items(b: Path) -> None:
    edit_tasks(b, digest="e" * 64)


def other_metric(b: Path) -> None:
    edit_tasks(b, accuracy={"by_sum": 0.3}, standard_errors={"by_sum": 0.1})


def other_prompts(b: Path) -> None:
    edit_tasks(b, task="hellaswag_lm_eval")


def not_scored(b: Path) -> None:
    edit_journal(b, lambda record: None if record["kind"] == "task" else record)
    shutil.rmtree(b / "evaluations")


def not_validated(b: Path) -> None:
    edit_journal(b, lambda record: None if record["kind"] == "validation" else record)


def scored_earlier(b: Path) -> None:
    edit_journal(b, lambda record: None if (record["kind"], record["step"]) == ("task", 6) else record)
    shutil.rmtree(b / "evaluations" / "step_000006")


def truncated_contexts(b: Path) -> None:
    edit_tasks(b, cut=7)


def lower_loss_at_step_3(b: Path) -> None:
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


# The change of run b; the caveat; the values of a and b (None: not compared here); the remedy; parts of its command.
K, R = CaveatKind, RemedyKind
UNFAIR: list[tuple[Callable[[Path], None], CaveatKind, tuple[Any, Any], RemedyKind, set[str]]] = [
    (other_data, K.OTHER_DATA, (None, "f" * 64), R.EVALUATE, {"evaluate", "b", "--tasks"}),
    (other_block, K.OTHER_BLOCK_SIZE, (32, 64), R.TRAIN_WITH_BLOCK_SIZE, set()),
    (other_windows, K.OTHER_WINDOWS, (8, 5), R.EVALUATE, {"b", "evaluation.validation_batches=8"}),
    (other_tokenizer, K.OTHER_TOKENIZER, (GPT2_TOKENIZER, "own abc123"), R.USE_BITS_PER_BYTE, set()),
    (unknown_tokenizer, K.UNKNOWN_TOKENIZER, (GPT2_TOKENIZER, ""), R.IDENTIFY_DATA, set()),
    (full_set, K.SUBSET_AND_FULL_SET, (20, 10_042), R.EVALUATE_ALL_ITEMS, {"evaluate", "a"}),
    (other_items, K.OTHER_ITEMS, (None, "e" * 64), R.EVALUATE_ALL_ITEMS, {"evaluate", "a"}),
    (other_metric, K.OTHER_METRIC, ("by_token", "by_sum"), R.EVALUATE, {"evaluate", "b"}),
    (other_prompts, K.OTHER_PROMPTS, (["hellaswag"], ["hellaswag_lm_eval"]), R.EVALUATE, {"evaluate", "b"}),
    (not_scored, K.MISSING_SCORE, (20, None), R.EVALUATE, {"b", "--tasks", "hellaswag", "--items", "20"}),
    (not_validated, K.MISSING_LOSS, (True, False), R.EVALUATE, {"evaluate", "b", "validation"}),
    (scored_earlier, K.EARLIER_SCORE, ((6, 6), (3, 6)), R.EVALUATE, {"evaluate", "b"}),
    (truncated_contexts, K.TRUNCATED_CONTEXTS, (None, 7), R.TRAIN_WITH_LONGER_BLOCKS, set()),
    (
        lower_loss_at_step_3,
        K.LAST_ABOVE_BEST,
        (None, (6, 3)),
        R.EVALUATE_BEST,
        {"evaluate", "runs/b/checkpoints/step_000003"},
    ),
    (unfinished, K.UNFINISHED, ((0, 0), (6, 12)), R.RESUME, {"resume", "b"}),
    (more_tokens, K.OTHER_TOKENS, (768, 1_536), R.TRAIN_SHORTER, {"--name", "b-3", "run.max_steps=3"}),
    (other_device, K.OTHER_DEVICE, (None, "NVIDIA H100"), R.IGNORE_TIME, set()),
    (
        other_precision,
        K.OTHER_PRECISION,
        ("float32", "bfloat16"),
        R.EVALUATE_IN_THIS_PRECISION,
        {"b", "run.precision=float32"},
    ),
    (compiled, K.OTHER_COMPILE, (False, True), R.IGNORE_TIME_OR_COMPILE, set()),
]


def comparable_value(value: Any, expected: Any) -> Any:
    """Reduce the value of a caveat to the type of the expected value."""
    match value:
        case TaskScore():
            return value.digest if isinstance(expected, str) else value.n_items
        case tuple() if value and isinstance(value[0], TaskScore):
            return [score.task for score in value]
        case LastAndBest():
            return value.last.step, value.best.step
        case Progress():
            return value.step, value.max_steps
        case str():
            return value.partition(", then ")[0]  # the device of the first attempt
    return value


def test_fair_pair_has_no_caveats(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caveats_of("a", "b") == []
    out = run_command(capsys, "compare", "a", "b")
    assert FAIR in out and FAIR in read_page(out)
    assert SEVERE_TITLE not in out and CARE_TITLE not in out


@pytest.mark.parametrize(
    ("change", "kind", "values", "remedy", "arguments"), UNFAIR, ids=[case[1].name for case in UNFAIR]
)
def test_caveat_has_both_values_and_a_remedy(
    runs: Path,
    change: Callable[[Path], None],
    kind: CaveatKind,
    values: tuple[Any, Any],
    remedy: RemedyKind,
    arguments: set[str],
) -> None:
    change(runs / "b")
    caveats = caveats_of("a", "b")
    (caveat,) = (found for found in caveats if found.kind is kind)
    found = dict(caveat.values)
    for name, expected in zip(("a", "b"), values, strict=True):
        assert expected is None or comparable_value(found[name], expected) == expected
    assert remedy in [one.kind for one in caveat.remedies]
    assert arguments <= {argument for command in commands_of(caveat) for argument in command}
    if remedy is RemedyKind.TRAIN_WITH_BLOCK_SIZE:
        assert caveat.remedies[0].block_size == 32
    assert kind.is_severe is (kind in SEVERE_KINDS)
    text = "\n".join(caveat_lines(caveats, MARKDOWN))
    assert FAIR not in text and f"**{TITLES[kind].format(task=task_title(caveat.task))}.**" in text


def test_runs_without_steps_are_not_called_comparable(runs: Path) -> None:
    """Both stand at step 0, so that no value differs."""
    for name in ("a", "b"):
        edit_journal(runs / name, lambda record: record if record["kind"] == "event" else None)
    models = load_models(["a", "b"], runs)
    assert [(caveat.kind, [value.step for _, value in caveat.values]) for caveat in find_caveats(models)] == [
        (CaveatKind.UNFINISHED, [0, 0]),
    ]


def test_caveats_come_before_the_metrics(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the terminal and on the page; the severe ones first."""
    other_windows(runs / "b")
    unfinished(runs / "b")
    out = run_command(capsys, "compare", "a", "b")
    for text in (out, read_page(out)):
        before = text.partition("Validation loss, last")[0]
        severe, _, care = before.partition(CARE_TITLE)
        assert TITLES[CaveatKind.OTHER_WINDOWS] in severe.partition(SEVERE_TITLE)[2]
        assert TITLES[CaveatKind.UNFINISHED] in care
    assert "### At equal tokens" not in read_page(out)


@pytest.mark.slow
@pytest.mark.parametrize("lower", [3, 0])
def test_selected_checkpoint_is_not_compared_with_a_last_one(
    runs: Path, capsys: pytest.CaptureFixture[str], lower: int
) -> None:
    """The best checkpoint or another earlier one; two of the same step are fair."""
    lower_loss_at_step_3(runs / "a") if lower else None
    for name in ("a", "b"):
        checkpoint = f"runs/{name}/checkpoints/step_000003"
        run_command(capsys, "evaluate", checkpoint, "--tasks", "validation,hellaswag", "--items", "20")
    earlier = "runs/a/evaluations/step_000003"
    kind = CaveatKind.BEST_AND_LAST if lower else CaveatKind.EARLIER_AND_LAST
    (caveat,) = (found for found in caveats_of(earlier, "b") if found.kind is kind)
    steps = dict(caveat.values)
    assert steps["a at step 3"] == CheckpointStep(3, 6, is_best=bool(lower))
    assert (steps["b"].step, steps["b"].last_step) == (6, 6)
    assert ("compare", str(runs.resolve() / "a"), "b") in commands_of(caveat)
    assert caveats_of(earlier, "runs/b/evaluations/step_000003") == []


def test_published_figures_on_other_data_are_not_comparable(runs: Path) -> None:
    recipe = str(shipped_recipes()["gpt2-classic"])
    found = {caveat.kind: caveat for caveat in caveats_of("a", recipe)}
    assert CaveatKind.PUBLISHED in found and not CaveatKind.PUBLISHED.is_severe
    assert CaveatKind.PUBLISHED_ON_OTHER_DATA.is_severe
    assert dict(found[CaveatKind.PUBLISHED_ON_OTHER_DATA].values)["gpt2-classic (published)"] == ("FineWeb-Edu", 1024)


def test_published_figures_are_marked(runs: Path) -> None:
    Path("told.toml").write_text('[published]\nvalidation_loss = 3.26\nhellaswag = 0.28\norigin = "a record"\n')
    (caveat,) = (found for found in caveats_of("a", "told.toml") if found.kind is CaveatKind.PUBLISHED)
    ((name, published),) = caveat.values
    assert name == "told (published)" and published.origin == "a record"
    assert commands_of(caveat) == [("train", "told.toml")]
    rows = {row.quantity: row.cells for row in final_metrics(load_models(["a", "told.toml"], Path("runs")))}
    assert rows[Quantity.LAST_LOSS][1] == Value(3.26, is_published=True)
    assert rows[Quantity.PUBLISHED_HELLASWAG] == [Missing.NOT_APPLICABLE, Value(0.28, is_published=True)]


@pytest.mark.slow
def test_remedy_for_other_data_makes_the_losses_comparable(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command is copied from the page."""
    loss = paired_tests(*load_models(["a", "c"], Path("runs"))).loss
    assert loss and (loss.verdict.outcome, loss.verdict.reason) == (Outcome.NOT_TESTED, NotTested.OTHER_DATA)
    out = run_command(capsys, "compare", "a", "c")
    command = re.search(r"`regpt (evaluate c .*?)`", out)
    assert command
    run_command(capsys, *shlex.split(command[1]))
    assert CaveatKind.OTHER_DATA not in kinds_of("a", "c")
    models = load_models(["a", "c"], Path("runs"))
    loss = paired_tests(*models).loss
    assert loss and isinstance(loss.verdict.test, PairedLossTest) and loss.verdict.test.windows == 8
    stored = json.loads((runs / "c" / "evaluations" / "step_000006" / "results.json").read_text())
    found = stored["tasks"]["validation"]
    assert models[1].loss and models[1].loss.loss == found["loss"]
    page = read_page(run_command(capsys, "compare", "a", "c"))
    assert f"| {found['loss']:.4f} ± {found['standard_error']:.4f} |" in page
    assert "### At equal tokens" not in page


def test_tokenizer_is_recorded_by_runs_and_evaluations(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(capsys, "evaluate", "a", "--tasks", "hellaswag", "--items", "20")
    of_data = json.loads((runs / "a" / "environment.json").read_text())["data"]["tokenizer"]
    of_results = json.loads((runs / "a" / "evaluations" / "step_000006" / "results.json").read_text())["tokenizer"]
    assert of_data == of_results
    assert of_data["name"] == "gpt2" and len(of_data["vocabulary_sha256"]) == 64


def test_models_with_equal_values_are_named_together() -> None:
    caveat = Caveat(CaveatKind.OTHER_DEVICE, [("a", "x"), ("b", "y"), ("c", "x")], ())
    assert values_text(caveat, MARKDOWN) == "a, c: x; b: y"


def test_every_kind_and_remedy_has_a_text() -> None:
    assert set(TITLES) == set(VALUE_TEXT) == set(CaveatKind)
    assert set(REMEDY_TEXT) == set(RemedyKind)
