"""The work of a run besides training steps: counted from the recipe, and equal to what real runs have recorded."""

from pathlib import Path

import pytest

from regpt.data.shards import TokenWindows
from regpt.evaluation.scoring import PackedTask
from regpt.plan.workload import ITEM_POSITIONS, ITEM_TARGETS, count_work
from regpt.preparation.dataset import open_or_prepare
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe, load_resolved_recipe
from regpt.tasks.catalog import HELLASWAG_ITEMS, TASKS
from regpt.tasks.items import open_items
from regpt.tracking.journal import read_history

FIXTURES = Path(__file__).parent.parent / "fixtures"
RUNS = [*sorted(FIXTURES.glob("runs/*")), *sorted(FIXTURES.glob("version_0_1/runs/*"))]


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_counts_equal_those_in_the_journal_of_a_run(run: Path) -> None:
    work, history = count_work(load_resolved_recipe(run / "recipe.toml")), read_history(run)
    assert work.steps == len(history.steps) + len(history.skipped)
    assert work.validations == len(history.validations)
    assert {work.validation_windows} == {record.windows for record in history.validations}
    assert work.task_evaluations == len(history.tasks)
    assert all(record.items.startswith(f"subset of {work.task_items} of ") for record in history.tasks)
    assert work.sample_sets == len(history.samples)
    assert work.sample_texts == len(history.samples[-1].texts)
    assert work.checkpoints == len(history.checkpoints)


def test_work_of_the_full_size_recipe_is_counted_by_hand() -> None:
    work = count_work(load_recipe("gpt2-modern"))  # 38,146 steps; due at 250, 500, ... 38,000 and the last
    assert (work.validations, work.validation_windows) == (1 + 152 + 1, 20 * 32)
    assert work.validation_positions == 154 * 640 * 1024
    assert (work.task_evaluations, work.task_items) == (154, HELLASWAG_ITEMS)
    assert (work.task_positions, work.task_targets) == (154 * 10_042 * 178, 154 * 10_042 * 127)
    assert (work.sample_sets, work.sample_texts, work.sample_tokens) == (153, 4, 32 - 8)  # no sample at the start
    assert (work.checkpoints, work.waited_checkpoints, work.sampling_rounds) == (8, 1, 153 * 24)


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        (["evaluation.hellaswag_every=0"], (2, 0, 1, 1)),
        (["evaluation.hellaswag_every=60"], (2, 2, 1, 1)),
        (["evaluation.hellaswag_every=25", "evaluation.sample_every=20"], (2, 4, 3, 1)),
        (["evaluation.validation_every=1", "evaluation.sample_count=0"], (61, 2, 0, 1)),
        (["checkpoint.every=7", "checkpoint.background=false"], (2, 2, 1, 9)),
    ],
)
def test_schedule_decides_the_number_of_evaluations(settings: list[str], counts: tuple[int, ...]) -> None:
    work = count_work(load_recipe("demo-modern", ["run.max_steps=60", "optimizer.warmup_steps=3", *settings]))
    assert (work.validations, work.task_evaluations, work.sample_sets, work.waited_checkpoints) == counts


@pytest.mark.parametrize(("wanted", "counted"), [(0, 2), (1, 1), (50, 2)])
def test_items_of_a_file_are_counted(tmp_path: Path, wanted: int, counted: int) -> None:
    row = '{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 0, "source_id": "activitynet~1"}\n'
    (tmp_path / "items.jsonl").write_text(row + row.replace('"a"', '"f"'), encoding="utf-8")
    file = f"evaluation.hellaswag_file={tmp_path / 'items.jsonl'}"
    assert count_work(load_recipe("demo-modern", [file, f"evaluation.hellaswag_items={wanted}"])).task_items == counted


def test_items_of_a_file_that_lies_elsewhere_count_as_hellaswag(tmp_path: Path) -> None:
    settings = [f"evaluation.hellaswag_file={tmp_path / 'none.jsonl'}", "evaluation.hellaswag_items=0"]
    assert count_work(load_recipe("demo-modern", settings)).task_items == HELLASWAG_ITEMS


def test_validation_reads_no_more_windows_than_its_split_has(tiny: Recipe) -> None:
    before = count_work(tiny).validation_windows
    manifest = open_or_prepare(tiny)
    windows = len(TokenWindows(tiny.data.directory, manifest, "val", tiny.model.block_size))
    wanted = tiny.evaluation.validation_batches * tiny.evaluation.validation_batch_size
    assert before == count_work(tiny).validation_windows == min(wanted, windows)
    many = load_recipe("demo-modern", [f"data.path={tiny.data.path}", "evaluation.validation_batches=1000"])
    assert count_work(many).validation_windows == (manifest.tokens("val") - 1) // many.model.block_size


@pytest.mark.parametrize(("block_size", "max_tokens"), [(256, 1024), (1024, 32_768)])
def test_size_of_an_item_is_that_of_packed_hellaswag(block_size: int, max_tokens: int) -> None:
    task = PackedTask(open_items(TASKS["hellaswag"], count=200), block_size, max_tokens)
    assert sum(rows.tokens.size for rows in task.groups) / 200 == pytest.approx(ITEM_POSITIONS, rel=0.05)
    assert sum(len(rows.targets) for rows in task.groups) / 200 == pytest.approx(ITEM_TARGETS, rel=0.05)
