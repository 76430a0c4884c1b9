"""An ablation on a Slurm cluster, through submitit and a fake Slurm."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regpt.ablation.slurm import JOBS_DIR, SlurmJobs, minutes, slurm_options
from regpt.base.errors import USAGE, UserError
from regpt.cli.main import main
from regpt.recipe.settings import to_toml
from regpt.tracking.events import Stopped
from regpt.tracking.journal import RunState, read_history
from tests.conftest import tiny_recipe, wait_until
from tests.helpers.fake_slurm import FakeSlurm

CHANGE = ["--change", "muon: optimizer.kind=muon", "--seeds", "1"]
OPTIONS = ["--slurm", "--option", "time=00:10:00", "--option", "partition=gpu", "--option", "gpus=1"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    pytest.importorskip("submitit")
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.mark.slow
def test_killed_ablation_finds_its_jobs_and_requeued_ones_continue(
    slurm: FakeSlurm, texts: Path, tmp_path: Path
) -> None:
    """The ablation is killed while two jobs train, one of which Slurm preempts; the same command waits for both."""
    evaluation: dict[str, object] = {"sample_count": 0, "validation_every": 0}
    recipe = tiny_recipe(tmp_path, run={"max_steps": 80}, evaluation=evaluation, checkpoint={"every": 0})
    (tmp_path / "tiny.toml").write_text(to_toml(recipe), encoding="utf-8")
    into = tmp_path / "ablation"
    words = ["ablate", str(tmp_path / "tiny.toml"), *CHANGE, *OPTIONS, "--into", str(into)]
    child = subprocess.Popen([sys.executable, "-m", "regpt", *words], stdout=subprocess.DEVNULL)
    runs = [into / "runs" / name for name in ("base-1337", "muon-1337")]
    journal = runs[0] / "journal.jsonl"
    wait_until(lambda: len(slurm.scripts) == 2 and journal.exists() and read_history(runs[0]).step > 0, seconds=100)
    child.kill()
    child.wait()
    slurm.signal_job(slurm.first, signal.SIGUSR2)
    assert main(words) == 0
    assert len(slurm.scripts) == 2, (slurm.folder / "log").read_text()
    first, second = (read_history(run) for run in runs)
    assert (first.status, second.status) == (RunState.FINISHED, RunState.FINISHED)
    assert (first.attempts, second.attempts) == (2, 1)
    assert len(first.details(Stopped)) == 1  # it saved a checkpoint, and was not killed by Slurm's signal
    flags = ("--partition=gpu", "--time=10", "--gpus-per-node=1", "--job-name=regpt-base-1337")
    assert all(flag in slurm.scripts[0] for flag in flags)
    assert "muon" in (into / "ablation.md").read_text(encoding="utf-8")


def test_failure_of_a_job_is_the_error_of_the_ablation(slurm: FakeSlurm, tmp_path: Path) -> None:
    def fail(workers: object, place: str) -> int:
        raise UserError("run x failed: no space", "free some")

    jobs = SlurmJobs(tmp_path, {"time": 5}, 0)
    with pytest.raises(UserError, match="run x failed: no space") as caught:
        jobs.run_all({"x": fail}, lambda *_: None, lambda: None)
    assert caught.value.fix == "free some"
    assert jobs.queued_job("x") is None and jobs.queued_job("y") is None
    assert len(list((tmp_path / JOBS_DIR / "x").glob(f"{slurm.first}_*"))) >= 2  # its log and its result


def test_stop_leaves_a_job_in_the_queue_and_names_it(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, may_end, calls = SlurmJobs(tmp_path, {"time": 5}, 0), tmp_path / "may-end", []

    def task(workers: object, place: str) -> int:
        while not may_end.exists():
            time.sleep(0.01)
        return 7

    def stop() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run_all({"x": task}, lambda *_: None, stop)
    assert f"queue: {slurm.first};" in capsys.readouterr().err
    calls.clear()

    def let_it_end() -> None:
        calls.append(1)
        if len(calls) > 1:  # the job was found
            may_end.touch()

    assert jobs.run_all({"x": lambda workers, place: 8}, lambda *_: None, let_it_end) == {"x": 7}
    assert len(slurm.scripts) == 1


def test_unknown_option_of_slurm_is_refused_by_name(slurm: FakeSlurm, tmp_path: Path) -> None:
    jobs = SlurmJobs(tmp_path, slurm_options([("time", 5), ("partion", "gpu")]), 0)
    with pytest.raises(UserError, match="partion"):
        jobs.submit("x", lambda workers, place: None)
    assert not slurm.scripts


def test_options_of_the_command_line_become_those_of_submitit() -> None:
    words = [("time", "1-02:03:04"), ("gpus", 2), ("setup", "module load a"), ("setup", "b"), ("qos", "low")]
    assert slurm_options(words) == {
        "time": 1440 + 123 + 1,
        "gpus_per_node": 2,
        "setup": ["module load a", "b"],
        "qos": "low",
    }
    assert (minutes(90), minutes("04:00:00"), minutes("1-12:00"), minutes("0:00:10")) == (90, 240, 2160, 1)
    with pytest.raises(UserError, match="time=soon"):
        slurm_options([("time", "soon")])
    with pytest.raises(UserError, match="time limit"):
        slurm_options([("gpus", 1)])


@pytest.mark.parametrize(
    ("words", "named"),
    [(OPTIONS, "pip install 'regpt[slurm]'"), (["--option", "gpus=1"], "--slurm")],
)
def test_missing_package_and_option_without_slurm_are_one_line(
    words: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["ablate", "demo-modern", *CHANGE, *words, "--into", str(tmp_path / "new")]) == USAGE
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert named in line and not (tmp_path / "new").exists()


def test_machine_without_slurm_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["ablate", "demo-modern", *CHANGE, *OPTIONS, "--into", str(tmp_path / "new")]) == USAGE
    assert "srun" in capsys.readouterr().err
