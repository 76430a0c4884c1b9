"""Runs made by version 0.1 (commit cd77568) still work. The fixture's README says what they contain."""

import json
import re
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from regpt.cli.main import main
from regpt.fairness.claims import paired_tests
from regpt.fairness.loading import load_models
from regpt.stats.paired import PairedLossTest
from regpt.tracking.events import Event, Resumed, Rollback
from regpt.tracking.journal import RunState, read_history

FIXTURE = Path(__file__).parent / "fixtures" / "version_0_1"
MODERN, CLASSIC = Path("runs/old-modern"), Path("runs/old-classic")
CHECKPOINT = MODERN / "checkpoints" / "step_000024"

# What commit cd77568 itself records when it resumes old-modern with run.max_steps=28.
RESUMED_LOSSES = {25: 10.065066576004028, 26: 10.051011800765991, 27: 10.041271209716797, 28: 10.039348840713501}
RESUMED_BATCHES = {25: "31c9612a80a5d410", 26: "b31cf6ce28aa48ba", 27: "99ed7924ef8b0820", 28: "e6a8c7ff21d8455b"}
RESUMED_VALIDATION_LOSS = 10.033680081367493


@pytest.fixture(autouse=True)
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a copy of the fixture."""
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """Read the records of one kind from a journal, in the order of the file."""
    lines = (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def last_validation_loss(run: Path) -> float:
    return float(records(run, "validation")[-1]["loss"])


def window_losses(run: Path) -> np.ndarray:
    """Read the loss of each window at the last validation."""
    return np.load(run / records(run, "validation")[-1]["path"])


def test_fixture_contains_every_kind_of_record_and_event() -> None:
    lines = (MODERN / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = {json.loads(line)["kind"] for line in lines}
    assert kinds == {"step", "skipped", "validation", "task", "sample", "checkpoint", "event"}
    events = {record["event"] for record in records(MODERN, "event")}
    interruptions = {"stopped", "resumed", "went back", "out of memory", "not saved", "failed"}
    assert events == {"started", "finished"} | interruptions


def test_old_journal_is_read_with_its_skipped_steps_and_rollback() -> None:
    history = read_history(MODERN)
    assert history.status is RunState.FINISHED and history.step == 24 and history.attempts == 3
    assert [record.step for record in history.skipped] == [3, 17]
    assert [record.step for record in history.steps] == [n for n in range(1, 25) if n not in (3, 17)]
    rollbacks = [(event.step, event.detail) for event in history.events if event.event is Event.ROLLBACK]
    assert rollbacks == [(12, Rollback(from_step=14, excluded_batches=[13, 14]))]
    assert [record.step for record in history.validations] == [0, 4, 8, 12, 16, 20, 24]
    assert [record.step for record in history.tasks] == [0, 8, 16, 24]
    assert [record.step for record in history.samples] == [8, 16, 24]


def test_old_runs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for run, steps in ((MODERN, "24/24"), (CLASSIC, "12/12")):
        assert steps in listed[run.name] and f"{last_validation_loss(run):.4f}" in listed[run.name]


def test_old_run_is_watched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "old-modern", "--once"]) == 0
    assert f"{last_validation_loss(MODERN):.4f}" in capsys.readouterr().out


def test_old_run_gets_a_report() -> None:
    assert main(["report", "old-modern", "--against", "old-classic"]) == 0
    report = (MODERN / "report.md").read_text(encoding="utf-8")
    for run in (MODERN, CLASSIC):
        assert f"{last_validation_loss(run):.4f}" in report
    assert records(MODERN, "skipped")[0]["reason"] in report
    assert records(MODERN, "sample")[-1]["texts"][0] in report


def test_old_runs_are_compared_window_by_window() -> None:
    """Expect the mean difference of the losses and its standard error over 8 groups of neighbouring windows."""
    assert main(["compare", "old-modern", "old-classic", "--into", "compared"]) == 0
    comparison = Path("compared/comparison.md").read_text(encoding="utf-8")
    loss = paired_tests(*load_models(["old-modern", "old-classic"], Path("runs"))).loss
    groups = (window_losses(MODERN) - window_losses(CLASSIC)).reshape(8, 2).mean(axis=1)
    assert loss and isinstance(loss.verdict.test, PairedLossTest) and not loss.is_about_recipes
    assert loss.verdict.test.difference == pytest.approx(groups.mean())
    assert loss.verdict.test.standard_error == pytest.approx(groups.std(ddof=1) / 8**0.5)
    for run in (MODERN, CLASSIC):
        assert f"{last_validation_loss(run):.4f}" in comparison


def test_old_evaluation_is_compared() -> None:
    """Compare the folder that `regpt evaluate` wrote. Its 12 items stand only there."""
    folder = MODERN / "evaluations" / "step_000024"
    assert main(["compare", str(folder), "old-classic", "--into", "compared"]) == 0
    comparison = Path("compared/comparison.md").read_text(encoding="utf-8")
    tasks = json.loads((folder / "results.json").read_text(encoding="utf-8"))["tasks"]
    (items,) = (name for name in tasks if name.startswith("hellaswag"))
    for value in (tasks["validation"]["loss"], *tasks[items]["accuracy"].values()):
        assert f"{value:.4f}" in comparison


def test_old_checkpoint_is_checked_against_its_hashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "old-modern"]) == 0
    assert re.search(r"\b24\b", capsys.readouterr().out)
    path = CHECKPOINT / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert main(["checkpoints", "old-modern"]) == 4


def test_old_run_resumes_with_the_same_batches_and_losses() -> None:
    """Resume to step 28.

    The expected values were computed by commit cd77568, which resumed the same fixture. The losses agree within 1e-5
    relative. The digests of the batches agree exactly: they depend on the batches that the rollback left out and
    on the order of the second epoch.
    """
    before = len(records(MODERN, "step"))
    assert main(["resume", "old-modern", "run.max_steps=28"]) == 0
    steps = records(MODERN, "step")[before:]
    assert {record["step"]: record["loss"] for record in steps} == pytest.approx(RESUMED_LOSSES, rel=1e-5)
    assert {record["step"]: record["batch"] for record in steps} == RESUMED_BATCHES
    assert records(MODERN, "validation")[-1]["step"] == 28
    assert last_validation_loss(MODERN) == pytest.approx(RESUMED_VALIDATION_LOSS, rel=1e-5)
    history = read_history(MODERN)
    assert history.step == 28 and history.attempts == 4 and history.status is RunState.FINISHED
    assert history.details(Resumed)[-1].changed == {"run.max_steps": [24, 28]}
    assert (MODERN / "checkpoints" / "step_000028").is_dir()


def test_old_run_that_is_complete_is_left_alone() -> None:
    before = (MODERN / "journal.jsonl").read_bytes()
    assert main(["resume", "old-modern"]) == 0
    assert (MODERN / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("setting", ["guard.window=16", "model.n_embd=8"])
def test_old_run_refuses_to_resume_as_another_run(setting: str) -> None:
    assert main(["resume", "old-modern", "run.max_steps=28", setting]) == 4


@pytest.mark.parametrize("step", [17, 22])
def test_old_run_replays_its_batches(step: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Replay a skipped step and an ordinary one, both after the rollback. The command checks the digest itself."""
    assert main(["replay", "old-modern", "--step", str(step)]) == 0
    (digest,) = {r["batch"] for kind in ("step", "skipped") for r in records(MODERN, kind) if r["step"] == step}
    assert digest in capsys.readouterr().out


def test_old_run_samples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "old-modern", "--prompt", "The river", "--tokens", "8", "--temperature", "0"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The river") and len(out.removeprefix("The river").split()) >= 4


def test_old_run_evaluates_to_its_recorded_loss() -> None:
    """Measure the validation loss of the checkpoint again, into another folder."""
    assert main(["evaluate", "old-modern", "--tasks", "validation", "--into", "again"]) == 0
    results = json.loads(Path("again/results.json").read_text(encoding="utf-8"))
    assert results["tasks"]["validation"]["loss"] == pytest.approx(last_validation_loss(MODERN), rel=1e-5)
    (losses,) = (np.load(path) for path in Path("again").glob("validation-*.npy"))
    np.testing.assert_allclose(losses, window_losses(MODERN), rtol=1e-5)


def test_old_run_is_exported() -> None:
    transformers = pytest.importorskip("transformers")
    assert main(["export", "old-modern", "out"]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained("out")
    weight = load_file(CHECKPOINT / "model.safetensors")["token_embedding.weight"]
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach().numpy(), weight[:50_257])
    assert f"{last_validation_loss(MODERN):.4f} ±" in Path("out/README.md").read_text(encoding="utf-8")


def test_old_guard_settings_keep_their_effect() -> None:
    """Train with guard.skips = 1 and guard.returns = 2, and a guard that refuses about every second step.

    Expect never two skipped steps in a row, two rollbacks, and the exit code of a run that gave up.
    """
    assert main(["train", "recipes/old-guard.toml"]) == 5
    run = Path("runs/old-guard")
    lines = map(json.loads, (run / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    kinds = [record["kind"] for record in lines]
    assert max(len(list(group)) for kind, group in groupby(kinds) if kind == "skipped") == 1
    _, *rollbacks, _ = records(run, "event")
    assert [event["step"] for event in rollbacks] == [0, 0]
