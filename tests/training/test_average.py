"""The average of the weights: what it holds, that training does not notice it, and who reads it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regpt.base.errors import CHECKPOINT, DONE, RecipeError
from regpt.cli.main import main
from regpt.comparison.final_metrics import Missing, Quantity, Value, final_metrics
from regpt.console.training import Console, TrainingConsole
from regpt.fairness.loading import load_models
from regpt.interop.open_model import open_model
from regpt.machine.device import open_device
from regpt.optimizer.sizes import checkpoint_bytes, moment_bytes
from regpt.plan.workload import count_work
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe
from regpt.reporting.figures import averaged_accuracy_curve, averaged_curve
from regpt.tracking.journal import TaskRecord, ValidationRecord, read_history, to_json
from regpt.tracking.layout import RunPaths
from regpt.tracking.run import averaged_accuracy, open_run
from regpt.tracking.status import RunMonitor
from regpt.tracking.trackers import metrics_of
from regpt.training.start import resume, train
from regpt.watch.view import status_items
from tests.conftest import tiny_recipe, write_texts
from tests.helpers.parallel_runs import same_tensors


def averaging(folder: Path, steps: int = 6, average: int = 4, hellaswag: int = 0, **optimizer: object) -> Recipe:
    shape = {"schedule": "trapezoid", "max_lr": 1e-2, "warmup_steps": 1, "average_steps": average, **optimizer}
    return tiny_recipe(
        folder,
        run={"max_steps": steps},
        optimizer=shape,
        checkpoint={"every": 1},
        evaluation={
            "sample_count": 0,
            "validation_every": 2,
            "hellaswag_every": 6 if hellaswag else 0,
            "hellaswag_items": hellaswag,
        },
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """Run averaged, run plain without an average, and run stopped, which was stopped after three steps and resumed."""
    folder = tmp_path_factory.mktemp("averaged")
    write_texts(folder / "texts", real_text)
    train(averaging(folder, hellaswag=16), folder / "runs" / "averaged")
    train(averaging(folder, average=0), folder / "runs" / "plain")
    train(averaging(folder, 3), folder / "runs" / "stopped")
    resume(folder / "runs" / "stopped", ["run.max_steps=6"])
    return folder


@pytest.fixture
def runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(RunPaths(run).checkpoint(step) / "model.safetensors")


def average(run: Path, step: int) -> dict[str, torch.Tensor]:
    state = load_file(RunPaths(run).checkpoint(step) / "optimizer.safetensors")
    return {name.removesuffix("/average"): state[name] for name in state if name.endswith("/average")}


def open_averaged(runs: Path) -> tuple[list[ValidationRecord], list[TaskRecord]]:
    history = read_history(runs / "averaged")
    return history.validations, history.tasks


def test_average_moves_a_share_of_the_way_to_the_weights_of_each_step(folder: Path) -> None:
    run = folder / "runs" / "averaged"
    expected = weights(run, 1)
    assert average(run, 1).keys() == expected.keys()
    for step in range(2, 7):
        now = weights(run, step)
        expected = {name: expected[name].lerp(now[name], 1 / 4) for name in now}
        assert all(torch.equal(average(run, step)[name], expected[name]) for name in now), step


def test_training_with_an_average_is_training_without_it(folder: Path) -> None:
    averaged, plain = (read_history(folder / "runs" / name) for name in ("averaged", "plain"))
    assert [step.loss for step in averaged.steps] == [step.loss for step in plain.steps]
    assert [v.loss for v in averaged.validations] == [v.loss for v in plain.validations]
    assert weights(folder / "runs" / "plain", 6).keys() == weights(folder / "runs" / "averaged", 6).keys()
    for name, tensor in weights(folder / "runs" / "plain", 6).items():
        assert torch.equal(tensor, weights(folder / "runs" / "averaged", 6)[name])
    assert all("averaged_loss" not in to_json(v) for v in plain.validations)  # its journal is as before


def test_resumed_run_with_an_average_equals_an_undisturbed_one(folder: Path) -> None:
    runs = [folder / "runs" / name for name in ("averaged", "stopped")]
    assert same_tensors(*(RunPaths(run).checkpoint(6) for run in runs))
    looks = [{v.step: v.averaged_loss for v in read_history(run).validations} for run in runs]
    assert looks[0] == {step: loss for step, loss in looks[1].items() if step != 3}
    assert looks[0][0] is None and all(looks[0][step] for step in (2, 4, 6))


def test_averaged_loss_is_that_of_the_averaged_weights_of_the_checkpoint(runs: Path) -> None:
    assert main(["evaluate", "averaged", "--averaged", "--tasks", "validation"]) == DONE
    assert main(["evaluate", "averaged", "--tasks", "validation"]) == DONE
    look = read_history(runs / "averaged").validations[-1]
    for place, loss in (("step_000006", look.loss), ("step_000006-averaged", look.averaged_loss)):
        results = json.loads((runs / "averaged" / "evaluations" / place / "results.json").read_text())
        assert results["tasks"]["validation"]["loss"] == loss
    assert look.loss != look.averaged_loss
    last, mean = weights(runs / "averaged", 6), average(runs / "averaged", 6)
    opened = open_model("averaged", runs, ["optimizer.average_share=1"], averaged=True)
    assert all(torch.equal(parameter, mean[name]) for name, parameter in opened.model.named_parameters())
    blended = dict(open_model("averaged", runs, averaged=True).model.named_parameters())
    assert all(torch.equal(blended[name], last[name].lerp(mean[name], 0.6)) for name in last)


def test_averaged_hellaswag_is_that_of_the_averaged_weights_of_the_checkpoint(runs: Path) -> None:
    assert main(["evaluate", "averaged", "--averaged", "--tasks", "hellaswag", "--items", "16"]) == DONE
    results = json.loads((runs / "averaged" / "evaluations" / "step_000006-averaged" / "results.json").read_text())
    first, last = read_history(runs / "averaged").tasks
    assert first.averaged_accuracy is None and "averaged_accuracy" not in to_json(first)  # there is no average yet
    (measured,) = results["tasks"].values()
    assert last.averaged_accuracy == {rule: measured["accuracy"][rule] for rule in last.accuracy}
    assert last.averaged_accuracy != last.accuracy


def test_averaged_weights_are_sampled_and_exported(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "averaged", "--averaged", "--tokens", "4"]) == DONE
    assert main(["export", "averaged", "exported", "--averaged"]) == DONE
    capsys.readouterr()
    assert main(["sample", "plain", "--averaged"]) == CHECKPOINT
    assert "average_steps = 0" in capsys.readouterr().err
    assert main(["sample", "exported", "--averaged"]) != DONE
    assert "exported" in capsys.readouterr().err


def test_averaged_loss_is_reported_drawn_and_tracked(runs: Path, undrawn_figures: None) -> None:
    assert main(["report", "averaged"]) == DONE and main(["report", "plain"]) == DONE
    look = read_history(runs / "averaged").validations[-1]
    row = f"| Validation Loss, averaged weights | {look.averaged_loss:.4f} |"
    assert row in (runs / "averaged" / "report.md").read_text()
    assert "averaged weights" not in (runs / "plain" / "report.md").read_text()
    assert averaged_curve(open_run(runs / "averaged")).validation[-1] == look.averaged_loss
    assert metrics_of(look, lambda step: 128)["validation/averaged_loss"] == look.averaged_loss
    scored = read_history(runs / "averaged").tasks[-1]
    share = averaged_accuracy(scored)
    assert f"| HellaSwag, averaged weights | {share:.4f} " in (runs / "averaged" / "report.md").read_text()
    assert averaged_accuracy_curve(open_run(runs / "averaged")).shares[-1] == share
    assert metrics_of(scored, lambda step: 128)["hellaswag/averaged_by_token"] == share


def test_averaged_values_have_rows_of_their_own_in_a_comparison(runs: Path) -> None:
    look, scored = (records[-1] for records in open_averaged(runs))
    averaged, plain = load_models(["averaged", "plain"], runs)
    rows = {(row.quantity, row.metric): row.cells for row in final_metrics([averaged, plain])}
    assert rows[Quantity.AVERAGED_LOSS, ""] == [Value(look.averaged_loss or 0.0), Missing.NOT_APPLICABLE]
    (cell, other) = rows[Quantity.AVERAGED_ACCURACY, "by_token"]
    assert isinstance(cell, Value) and cell.value == averaged_accuracy(scored) and other is Missing.NOT_APPLICABLE
    assert not [row for row in final_metrics([plain, plain]) if row.quantity.name.startswith("AVERAGED")]


def test_averaged_values_are_watched_and_printed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks, scores = open_averaged(runs)
    console = TrainingConsole(Console(), averaging(runs), open_device(averaging(runs).run), 1)
    console.validation(looks[-1])
    console.task(scores[-1])
    watched = " ".join(status_items(RunMonitor(runs / "averaged").update()))
    for text in (capsys.readouterr().out, watched):
        assert f"averaged weights {looks[-1].averaged_loss:.4f}" in text
        assert f"averaged weights {averaged_accuracy(scores[-1]):.4f}" in text
    assert "averaged" not in " ".join(status_items(RunMonitor(runs / "plain").update()))


def test_average_begins_and_ends_at_a_resume(runs: Path) -> None:
    resume(runs / "plain", ["run.max_steps=7", "optimizer.average_steps=4"])
    begun = average(runs / "plain", 7)
    assert all(torch.equal(tensor, begun[name]) for name, tensor in weights(runs / "plain", 7).items())
    resume(runs / "averaged", ["run.max_steps=7", "optimizer.average_steps=0"])
    assert average(runs / "averaged", 7) == {}
    assert read_history(runs / "averaged").validations[-1].averaged_loss is None


def test_plan_counts_the_average_and_its_evaluations() -> None:
    with_average, without = (load_recipe("demo-modern", [f"optimizer.average_steps={n}"]) for n in (150, 0))
    more = 4 * without.model.parameters
    assert moment_bytes(with_average) - moment_bytes(without) == more
    assert checkpoint_bytes(with_average) - checkpoint_bytes(without) == more
    counts = [count_work(recipe) for recipe in (with_average, without)]
    assert counts[0].validations == counts[1].validations  # the first one has no average yet
    assert counts[0].validation_positions * counts[0].validations == counts[1].validation_positions * (
        2 * counts[0].validations - 1
    )
    assert counts[0].task_evaluations == counts[1].task_evaluations > 1
    assert counts[0].scored_items == counts[1].scored_items + counts[1].task_items * (counts[1].task_evaluations - 1)
    assert counts[0].task_positions / counts[0].scored_items == counts[1].task_positions / counts[1].scored_items


@pytest.mark.parametrize("setting", ["average_steps=-1", "average_share=0.0", "average_share=1.5"])
def test_impossible_average_is_refused_with_its_value(setting: str) -> None:
    with pytest.raises(RecipeError, match=setting.replace("=", " = ")):
        load_recipe("demo-modern", [f"optimizer.{setting}"])
