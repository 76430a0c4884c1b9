"""What a resume says and records: from which step it continues, and what has changed since the checkpoint."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regpt.base.errors import DATA, DONE
from regpt.cli.main import main
from regpt.console.training import Console
from regpt.machine import device
from regpt.machine.compute import ComputeEnvironment, compute_environment
from regpt.optimizer.schedule import learning_rate
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import as_tables, load_recipe
from regpt.reporting.wording import event_line
from regpt.tracking.events import Resumed
from regpt.tracking.journal import read_history
from regpt.tracking.layout import RunPaths
from regpt.tracking.resume_changes import COMPUTE_NAMES, changes_of_resume
from regpt.training.resume_point import learning_rate_change
from regpt.training.start import resume, train
from tests.conftest import tiny_recipe


@pytest.fixture
def three(tmp_path: Path, texts: Path) -> Recipe:
    """Three steps without samples."""
    return tiny_recipe(tmp_path, run={"max_steps": 3}, evaluation={"sample_every": 0, "sample_count": 0})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """A run of three steps that looks killed: its journal lacks the last event."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(real_text, encoding="utf-8")
    train(tiny_recipe(folder, run={"max_steps": 3}, evaluation={"sample_count": 0}), folder / "a")
    run_without_end(folder / "a")
    return folder / "a"


@pytest.fixture
def killed(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "a"))


def last_resume(run: Path) -> Resumed:
    return read_history(run).details(Resumed)[-1]


def report_line(run: Path) -> str:
    """Return what the report says about the last resume."""
    return event_line([event for event in read_history(run).events if isinstance(event.detail, Resumed)][-1])


def test_longer_schedule_names_old_and_new_learning_rate(
    three: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(three, tmp_path / "a")
    resume(tmp_path / "a", ["run.max_steps=5"], console=Console())
    longer = replace(three, run=replace(three.run, max_steps=5))
    old, new = learning_rate(3, three), learning_rate(3, longer)
    assert (old, new) == (1e-3, read_history(tmp_path / "a").steps[3].learning_rate)
    assert new > 2 * old
    assert last_resume(tmp_path / "a").learning_rate_changed == [old, new]
    report = report_line(tmp_path / "a")
    for text in (" ".join(capsys.readouterr().out.split()), report):
        assert f"{old:.3g}, is {new:.3g}" in text
    assert "run.max_steps was 3, is 5" in report.replace("\\", "")


def test_unchanged_schedule_names_no_learning_rate(three: Recipe) -> None:
    assert learning_rate_change(3, as_tables(three), three) == []
    changed = replace(three, evaluation=replace(three.evaluation, validation_every=1))
    assert learning_rate_change(3, as_tables(three), changed) == []


@pytest.mark.parametrize(("warmup", "steps"), [(5, 5), (9, 5), (0, 5)])
def test_learning_rate_is_finite_at_the_end_for_any_warmup(three: Recipe, warmup: int, steps: int) -> None:
    recipe = replace(three, run=replace(three.run, max_steps=steps))
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, warmup_steps=warmup))
    assert 1e-3 <= learning_rate(steps, recipe) <= 1.0000001e-2


def test_other_threads_and_precision_are_named_on_resume(
    three: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    three = replace(three, run=replace(three.run, precision="auto"))
    monkeypatch.setattr(device, "choose_precision", lambda wanted, kind: torch.bfloat16)
    train(three, tmp_path / "a")
    monkeypatch.setattr(device, "choose_precision", lambda wanted, kind: torch.float32)
    resume(tmp_path / "a", ["run.threads=2", "run.max_steps=4"], console=Console())
    changed = last_resume(tmp_path / "a").compute_changed
    assert changed == {"precision": ["bfloat16", "float32"], "threads": [1, 2]}
    out = " ".join(capsys.readouterr().out.split())
    assert "bfloat16, is float32" in out and "threads was 1, is 2" in out
    assert "bfloat16, is float32" in report_line(tmp_path / "a")


def test_resume_on_the_same_machine_names_nothing_and_the_step(
    killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume(killed, console=Console())
    assert list(changes_of_resume(last_resume(killed))) == []
    assert re.search(r"resuming .*\s?after step 3 of 3", capsys.readouterr().out)


def run_without_end(run: Path) -> None:
    """Make a finished run look killed: its journal lacks the last event."""
    lines = RunPaths(run).journal.read_text().splitlines()
    RunPaths(run).journal.write_text("\n".join(line for line in lines if '"finished"' not in line) + "\n")


def test_every_fact_of_the_machine_is_stored_and_has_a_name(killed: Path) -> None:
    stored = json.loads((RunPaths(killed).checkpoint(3) / "state.json").read_text())["compute"]
    now = compute_environment(device.open_device(load_recipe(RunPaths(killed).recipe).run), ranks=1)
    assert stored == now.to_json()
    assert stored["torch"] == torch.__version__ and stored["threads"] == 1 and stored["device"]
    assert COMPUTE_NAMES.keys() == ComputeEnvironment.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    ("field", "before", "now"),
    [
        ("torch", "2.9.0", torch.__version__),
        ("instructions", "AVX2", torch.backends.cpu.get_cpu_capability()),
        ("device", "Another CPU", device.device_model("cpu")),
        ("compiled", True, False),
    ],
)
def test_each_other_fact_of_the_machine_is_named(killed: Path, field: str, before: Any, now: Any) -> None:
    """The checkpoint is that of another machine; the manifest knows its new state.json."""
    from regpt.base.files import sha256_of_file, write_json

    folder = RunPaths(killed).checkpoint(3)
    state, about = (json.loads((folder / name).read_text()) for name in ("state.json", "manifest.json"))
    state["compute"][field] = before
    write_json(folder / "state.json", state)
    size, digest = (folder / "state.json").stat().st_size, sha256_of_file(folder / "state.json")
    about["files"]["state.json"] = {"bytes": size, "sha256": digest}
    write_json(folder / "manifest.json", about)
    resume(killed)
    assert last_resume(killed).compute_changed == {field: [before, now]}


def test_moved_dataset_is_named_found_and_remembered(
    three: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    three = replace(three, data=replace(three.data, path="data"))
    train(three, Path("runs/a"))
    run_without_end(Path("runs/a"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    assert main(["resume", "a"]) == DATA
    said = capsys.readouterr().err
    assert "'data'" in said and os.fspath(tmp_path / "elsewhere") in said and "regpt resume runs/a data.path=" in said
    assert main(["resume", "a", "data.path=../data", "run.time_limit=1:00:00"]) == DONE
    recipe = load_recipe(Path("runs/a/recipe.toml"))
    assert (recipe.data.path, recipe.run.time_limit) == ("../data", "")


def test_more_steps_before_the_cooldown_equal_a_run_of_those_steps_from_the_start(tmp_path: Path, texts: Path) -> None:
    """A trapezoid that was to end after four steps, without a cooldown, trains six, of which two cool down."""

    def trapezoid(steps: int, cooldown: int) -> Recipe:
        shape = {"schedule": "trapezoid", "cooldown_steps": cooldown, "max_lr": 1e-2, "warmup_steps": 2}
        return tiny_recipe(tmp_path, run={"max_steps": steps}, optimizer=shape, evaluation={"sample_count": 0})

    train(trapezoid(4, 0), tmp_path / "a")
    resume(tmp_path / "a", ["run.max_steps=6", "optimizer.cooldown_steps=2"])
    train(trapezoid(6, 2), tmp_path / "b")
    assert last_resume(tmp_path / "a").learning_rate_changed == []
    assert last_resume(tmp_path / "a").changed == {"run.max_steps": [4, 6], "optimizer.cooldown_steps": [0, 2]}
    steps = [[(s.loss, s.learning_rate) for s in read_history(tmp_path / name).steps] for name in "ab"]
    assert steps[0] == steps[1] and steps[0][-1][1] < 1e-2
