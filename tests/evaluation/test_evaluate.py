"""The commands `regpt evaluate` and `regpt compare` on trained models."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from regpt.base.errors import DONE, INTERRUPTED, USAGE
from regpt.cli.main import main
from regpt.evaluation import scoring
from regpt.fairness.claims import paired_tests
from regpt.fairness.loading import load_models
from regpt.recipe.settings import to_toml
from regpt.stats.outcome import NotTested, Outcome
from regpt.stats.paired import PairedLossTest
from regpt.stats.verdicts import hellaswag_verdict
from regpt.tasks.catalog import BY_TOKEN
from regpt.tracking.journal import read_history
from regpt.tracking.predictions import read_predictions
from regpt.tracking.run import open_run
from regpt.training.start import train
from tests.conftest import tiny_recipe
from tests.helpers.ranks import run_ranks
from tests.tasks.test_catalog import ROW


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """A directory with two runs in runs/."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.py").write_text(real_text, encoding="utf-8")
    looking = {"hellaswag_every": 3, "hellaswag_items": 20}
    train(tiny_recipe(folder, evaluation=looking), folder / "runs" / "a")
    train(tiny_recipe(folder, evaluation=looking, run={"seed": 7, "max_steps": 3}), folder / "runs" / "b")
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs; their parent is the current directory."""
    shutil.copytree(trained, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place" / "runs"


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int = DONE) -> str:
    capsys.readouterr()
    assert main(list(words)) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out + err


def test_run_is_evaluated_on_the_named_tasks_and_its_predictions_are_kept(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "evaluate", "a", "--tasks", "validation,hellaswag,piqa,winogrande", "--items", "20")
    history = read_history(runs / "a")
    folder = runs / "a" / "evaluations" / "step_000006"
    results = json.loads((folder / "results.json").read_text())
    assert results["step"] == 6
    assert results["tokens"] == 768
    assert list(results["tasks"]) == ["validation", "hellaswag-20", "piqa-20", "winogrande-20"]
    assert results["tasks"]["validation"]["loss"] == pytest.approx(history.validations[-1].loss, abs=1e-9)
    assert results["tasks"]["hellaswag-20"]["accuracy"] == history.tasks[-1].accuracy
    answers = read_predictions(folder / "piqa-20.parquet")
    accuracy = answers.accuracy(answers.metrics[0])
    assert f"{accuracy.value:.4f}" in out
    assert f"{accuracy.error:.4f}" in out
    assert "bits per byte" in out
    assert "subset of 20 of 1,838 items" in out
    assert "lm-eval's acc_norm" in out


def test_checkpoint_and_exported_model_predict_as_the_run_does(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "evaluate", "runs/a/checkpoints/step_000003", "--tasks", "hellaswag", "--items", "20")
    at_three = read_predictions(runs / "a" / "evaluations" / "step_000003" / "hellaswag-20.parquet")
    assert at_three.accuracy(BY_TOKEN).value == read_history(runs / "a").tasks[1].accuracy["by_token"]
    printed(capsys, "export", "a", "out", "--keep-padding")
    data = tiny_recipe(runs.parent).data.path
    out = printed(capsys, "evaluate", "out", "--items", "20", f"data.path={data}", "run.precision=float32")
    assert "validation" in out
    exported = read_predictions(Path("evaluations/out/hellaswag-20.parquet"))
    at_six = read_predictions(runs / "a" / "evaluations" / "step_000006" / "hellaswag-20.parquet")
    assert exported.digest == at_six.digest
    assert abs(exported.losses - at_six.losses).max() < 1e-4
    out = printed(capsys, "compare", "a", "evaluations/out")
    assert "first got right: 0; only the second: 0." in out


def test_runs_with_the_same_items_are_compared_by_paired_tests(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "compare", "a", "b")
    assert re.search(r"^ +a +b *$", out, re.MULTILINE)  # the head of the table
    loss = paired_tests(*load_models(["a", "b"], runs)).loss
    assert loss and isinstance(loss.verdict.test, PairedLossTest) and loss.verdict.test.windows == 8
    assert re.search(r"- Validation loss: [\d.]+ vs [\d.]+\. No claim about the recipes: .*training tokens", out)
    assert "- Training tokens: 2 times those of b" in out
    assert "- HellaSwag accuracy (subset of 20 of 10,042 items), by mean loss per token: " in out
    assert "McNemar's p = " in out
    printed(capsys, "evaluate", "b", "--tasks", "piqa", "--items", "10")
    out = printed(capsys, "compare", "a", "b")
    assert "Not tested, because the models were not scored on the same items: PIQA" in out


def test_predictions_of_two_models_never_share_a_directory(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        printed(capsys, "export", name, f"{name}s/model")
    printed(capsys, "evaluate", "as/model", "--tasks", "piqa,winogrande", "--items", "10")
    out = printed(capsys, "evaluate", "bs/model", "--tasks", "piqa", "--items", "10", code=USAGE)
    assert "evaluations/model:" in out and "--into" in out
    printed(capsys, "evaluate", "bs/model", "--tasks", "piqa", "--items", "10", "--into", "other")
    assert list(json.loads(Path("evaluations/model/results.json").read_text())["tasks"]) == ["piqa-10", "winogrande-10"]
    shutil.copy("evaluations/model/winogrande-10.parquet", "other")  # not listed there
    printed_comparison = printed(capsys, "compare", "evaluations/model", "other")
    assert re.search("not .*scored on the same items: WinoGrande", printed_comparison)


def test_own_items_are_kept_next_to_the_published_ones(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_predictions(runs / "a" / "evaluations" / "step_000006" / "hellaswag-20.parquet")
    lines = [json.dumps({**ROW, "ctx": f"{number} cooks"}) for number in range(3)]
    Path("mine.jsonl").write_text("\n".join(lines))
    printed(capsys, "evaluate", "a", "--tasks", "hellaswag", "evaluation.hellaswag_file=mine.jsonl")
    folder = runs / "a" / "evaluations" / "step_000006"
    (own,) = folder.glob("hellaswag-own-*.parquet")
    assert read_predictions(own).description == "3 items of mine.jsonl"
    assert read_predictions(folder / "hellaswag-20.parquet").digest == before.digest
    assert "report:" in printed(capsys, "report", "a", "--against", "b")
    shutil.copy(own, folder / "hellaswag-20.parquet")
    printed(capsys, "report", "a", "--against", "b")
    verdict = hellaswag_verdict(open_run(runs / "a"), open_run(runs / "b"))
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_TESTED, NotTested.UNREADABLE_PREDICTIONS)


def test_damaged_predictions_do_not_hide_other_results(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "a" / "evaluations" / "step_000006" / "hellaswag-20.parquet").write_bytes(b"PAR1")
    (runs / "a" / "evaluations" / "step_000006_backup").mkdir()
    out = printed(capsys, "compare", "a", "b")
    assert "hellaswag-20.parquet" in out and "not a file of predictions" in out
    assert "- Validation loss: " in out


def test_predictions_of_steps_that_a_resume_undid_do_not_count(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = runs / "b" / "evaluations" / "step_000099"
    later.mkdir()
    (later / "hellaswag-20.parquet").write_bytes(b"of another past")
    assert "step 3)" in printed(capsys, "compare", "a", "b")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["evaluate", "none"],
            "'none' is not a run in runs, a checkpoint or a Hugging Face directory — there are a, b",
        ),
        (["evaluate", "a", "--tasks", "hellaswagg"], "hellaswagg"),
        (["evaluate", "a", "--tasks", ","], "--tasks ,"),
        (["evaluate", "a", "model.n_layer=3"], "model.n_layer=3: model.*"),
        (["evaluate", "a", "run.devise=cpu"], "did you mean 'run.device'"),
        (["evaluate", "a", "--include-path", "x"], "add --lm-eval"),
        (["evaluate", "a", "--lm-eval"], "--tasks"),
        (["compare", "a"], "only one model is named: a"),
        (["compare", "a", "none"], "'none'"),
    ],
)
def test_unusable_arguments_give_one_line_that_names_them(
    runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    out = printed(capsys, *words, code=USAGE)
    assert says in out
    assert out.count("error:") == 1


def test_ctrl_c_stops_an_evaluation_and_keeps_finished_tasks(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sent = scoring.pack, []

    def send(question: Any) -> Any:
        if len(question.choices) == 2 and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        return real(question)

    monkeypatch.setattr(scoring, "pack", send)
    out = printed(capsys, "evaluate", "a", "--tasks", "hellaswag,piqa", "--items", "8", code=INTERRUPTED)
    assert "SIGINT" in out and f"{runs}/a/evaluations/step_000006" in out
    folder = runs / "a" / "evaluations" / "step_000006"
    assert (folder / "hellaswag-8.parquet").is_file()
    assert not (folder / "piqa-8.parquet").exists()


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_evaluate_to_the_bit_as_one(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "a", "--runs", str(runs), "--tasks", "validation,hellaswag,arc_easy", "--items", "20"]
    printed(capsys, *words, "--into", "one", "data.micro_batch=1")
    ended = run_ranks(2, [*words, "--into", str(runs / "two"), "data.micro_batch=1"], runs / "output")
    assert [outcome.code for outcome in ended] == [0, 0], ended
    assert "arc_easy" in ended[0].output
    assert ended[1].output == ""
    one, two = (json.loads((Path(name) / "results.json").read_text())["tasks"] for name in ("one", runs / "two"))
    for name in one:
        for key in ("accuracy", "loss", "bits_per_byte", "digest"):
            assert one[name].get(key) == two[name].get(key), (name, key)


def test_full_size_recipes_evaluate_all_hellaswag_items() -> None:
    from regpt.recipe.settings import load_recipe

    for name in ("gpt2-modern", "gpt2-classic"):
        assert load_recipe(name).evaluation.hellaswag_items == 0
        assert "hellaswag_items = 0" in to_toml(load_recipe(name))


def test_own_recipe_evaluates_a_recorded_subset_by_default(tmp_path: Path) -> None:
    from regpt.recipe.settings import load_recipe

    (tmp_path / "mine.toml").write_text("[model]\nn_layer = 2\n", encoding="utf-8")
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert recipe.evaluation.hellaswag_items == 400
    assert "hellaswag_items = 400" in to_toml(recipe)
