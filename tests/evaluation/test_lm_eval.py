"""lm-eval on a model of ours: a task from a local file, and HellaSwag in its form, with our numbers."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regpt.base.errors import DONE, USAGE, UserError
from regpt.cli.main import main
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.lm_eval import make_harness_model, members
from regpt.interop.open_model import open_model
from regpt.machine.device import open_device
from regpt.recipe.recipe import Recipe
from regpt.tasks.catalog import TASKS
from regpt.tasks.items import from_package
from regpt.tracking.predictions import read_predictions
from regpt.training.start import train
from tests.conftest import tiny_recipe

pytestmark = pytest.mark.xdist_group("hf")

# Our own words for lm-eval: HellaSwag's rows from a file, the texts made beforehand as its own task makes them.
TASK = """
task: our_hellaswag
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
"""
GREEDY = """
task: our_last_words
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: loglikelihood
validation_split: validation
doc_to_text: "{{{{query}}}}"
doc_to_target: " the"
metric_list:
  - metric: acc
  - metric: perplexity
"""


@pytest.fixture
def place(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in runs/a with a block long enough for the items, and the two tasks with 12 rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    recipe = tiny_recipe(tmp_path, model={"block_size": 256}, run={"max_steps": 1}, data={"total_batch_tokens": 512})
    train(recipe, tmp_path / "runs" / "a")
    rows = from_package(TASKS["hellaswag"])[0][3240:3252]  # of both kinds
    items = [TASKS["hellaswag_lm_eval"].item(number, row) for number, row in enumerate(rows)]
    docs = [
        {"query": item.contexts[0], "choices": [ending[1:] for ending in item.choices], "label": item.label}
        for item in items
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "our.yaml").write_text(TASK.format(file=file))
    (tmp_path / "tasks" / "last.yaml").write_text(GREEDY.format(file=file))
    return tmp_path


@pytest.mark.slow
def test_lm_eval_agrees_with_our_hellaswag_scores(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "a", "--lm-eval", "--tasks", "our_hellaswag,our_last_words", "--include-path", "tasks"]
    assert main(words) == DONE
    out = capsys.readouterr().out
    assert "our_hellaswag" in out
    assert main(["evaluate", "a", "--tasks", "hellaswag_lm_eval", "evaluation.hellaswag_file=mine.jsonl"]) == DONE
    folder = place / "runs" / "a" / "evaluations" / "step_000001"
    results = json.loads((folder / "results.json").read_text())["tasks"]
    (name,) = [name for name in results if name.startswith("hellaswag_lm_eval-own-")]
    theirs, ours = results["lm_eval_our_hellaswag"], results[name]
    for their_name, our_name in (("acc", "by_sum"), ("acc_norm", "by_character"), ("acc_bytes", "by_byte")):
        assert theirs["accuracy"][their_name] == ours["accuracy"][our_name]
        assert theirs["standard_error"][their_name] == pytest.approx(ours["standard_error"][our_name], rel=1e-9)
    answers = read_predictions(folder / f"{name}.parquet")
    lines = [json.loads(line) for line in (folder / "lm_eval_our_hellaswag.jsonl").read_text().splitlines()]
    found = np.array([[-float(answer[0][0]) for answer in line["resps"]] for line in lines])
    np.testing.assert_allclose(found, answers.losses, atol=1e-4, rtol=0)
    assert results["lm_eval_our_last_words"]["accuracy"]["perplexity"] > 1


GROUP = """
group: our_group
task:
  - our_hellaswag
  - group: our_inner
    task: [our_last_words]
    aggregate_metric_list: [{metric: acc}]
aggregate_metric_list: [{metric: acc}]
"""
GONE = """
task: our_gone
dataset_path: json
dataset_name: moved
dataset_kwargs:
  data_files:
    validation: {file}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
"""


@pytest.fixture
def own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep lm-eval from reading its thousands of tasks, which takes ten seconds."""
    import lm_eval.tasks

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))


@pytest.mark.usefixtures("own_tasks_only")
def test_group_row_counts_the_items_of_its_tasks(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "tasks" / "group.yaml").write_text(GROUP)
    words = ["evaluate", "a", "--lm-eval", "--tasks", "our_group", "--include-path", "tasks", "--items", "5"]
    assert main(words) == DONE
    capsys.readouterr()
    folder = place / "runs" / "a" / "evaluations" / "step_000001"
    tasks = json.loads((folder / "results.json").read_text())["tasks"]
    items = {name: tasks[f"lm_eval_{name}"]["items"] for name in ("our_hellaswag", "our_last_words", "our_group")}
    assert items == {"our_hellaswag": "5 items", "our_last_words": "5 items", "our_group": "10 items of 2 tasks"}
    assert len((folder / "lm_eval_our_hellaswag.jsonl").read_text().splitlines()) == 5
    assert not (folder / "lm_eval_our_group.jsonl").exists()


def test_group_members_are_the_tasks_of_all_groups_in_it() -> None:
    groups = {"all": ["one", "inner", "two"], "inner": ["two", "deep"], "deep": ["three"], "one": []}
    assert members("all", groups) == ["one", "two", "three"]
    assert members("deep", groups) == ["three"]


@pytest.mark.usefixtures("own_tasks_only")
def test_dataset_that_cannot_be_loaded_is_named_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "tasks" / "gone.yaml").write_text(GONE.format(file=place / "nothing.jsonl"))
    assert main(["evaluate", "a", "--lm-eval", "--tasks", "our_gone", "--include-path", "tasks"]) == USAGE
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "json moved" in line and "our_gone" in line


def test_greedy_flag_equals_greedy_decoding(place: Path) -> None:
    opened = open_model("a", place / "runs", [])
    model = make_harness_model(opened, open_device(opened.recipe.run), RankGroup(), lambda what, done, of: None)
    context = opened.tokenizer.encode("def run(self")
    with torch.no_grad():
        hidden = opened.model.hidden(torch.tensor([[int(t) for t in context]]))
        best = int(opened.model.logits(hidden)[0, -1].argmax())
    other = (best + 1) % 50_000
    context = [int(token) for token in context]
    requests: list[Any] = [(("", ""), context, [best]), (("", ""), context, [other])]
    (one, is_best), (two, is_not) = model._loglikelihood_tokens(requests)
    assert is_best and not is_not
    assert 0 > one > two


def test_unsupported_requests_are_errors_with_a_remedy(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model("a", place / "runs", [])
    device = open_device(opened.recipe.run)
    with pytest.raises(UserError, match="regpt export"):
        make_harness_model(opened, device, RankGroup(), lambda what, done, of: None).generate_until([])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="lm-eval is not installed"):
        make_harness_model(opened, device, RankGroup(), lambda what, done, of: None)
