"""The short form of the fault experiments: in `make test` each kind of fault once, nightly every other experiment.

The experiments fork, so they run in children of the fork server, which has imported torch but computed nothing with it.
"""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from faults.catalog import EXPERIMENTS, RANK_EXPERIMENTS, SELF_TESTS
from faults.laboratory import Baseline, Experiment, Laboratory
from tests.helpers.ranks import PROCESSES, start_server

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the experiments fork"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def baseline_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Build the undisturbed run once for all workers, and return its folder."""
    root = tmp_path_factory.getbasetemp()
    shared = root if worker_id == "master" else root.parent
    with FileLock(shared / "faults.lock"):
        run_in_child(build_baseline, shared / "faults-baseline", log=root / "baseline.log")
    return shared / "faults-baseline"


def run_in_child(function: Callable[..., None], *arguments: object, log: Path) -> None:
    start_server()
    process = PROCESSES.Process(target=log_errors, args=(function, arguments, log))
    process.start()
    process.join(500)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0, log.read_text() if log.exists() else f"exit code {process.exitcode}"


def log_errors(function: Callable[..., None], arguments: tuple[object, ...], log: Path) -> None:
    try:
        function(*arguments)
    except BaseException:
        log.write_text(traceback.format_exc())
        raise


def build_baseline(folder: Path) -> None:
    Baseline(folder)


def run_experiment(name: str, baseline: Path, folder: Path) -> None:
    """Run one experiment with its fewest repetitions."""
    experiment = next(one for one in (*EXPERIMENTS, *SELF_TESTS) if one.name == name)
    result = experiment.run(Laboratory(Baseline(baseline), folder), experiment.quick_times)
    assert result.times >= 1


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(one, id=one.name, marks=() if one.quick else pytest.mark.nightly)
        for one in (*EXPERIMENTS, *SELF_TESTS)
    ],
)
def test_run_survives_a_fault_and_a_bug_is_detected(
    experiment: Experiment, baseline_folder: Path, tmp_path: Path
) -> None:
    run_in_child(run_experiment, experiment.name, baseline_folder, tmp_path / "lab", log=tmp_path / "log")


def test_experiments_have_unique_names() -> None:
    names = [one.name for one in (*EXPERIMENTS, *RANK_EXPERIMENTS, *SELF_TESTS)]
    assert len(set(names)) == len(names) == 36
