"""Runs under torchrun itself: signals, restarts of lost ranks, and ranks that hang."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from regpt.checkpoint import store
from regpt.tracking.events import Event
from regpt.tracking.journal import RunState, read_history
from regpt.tracking.layout import RunPaths
from tests.conftest import wait_until
from tests.helpers.parallel_runs import STEPS, Workspace, at_step, evaluations, losses, same_tensors

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun")]


def torchrun(
    workspace: Workspace,
    name: str,
    settings: Sequence[str] = (),
    *,
    restarts: int = 0,
    module: Sequence[str] = ("regpt",),
) -> "subprocess.Popen[str]":
    """Start the training of the run `name` under torchrun on two ranks, with its output as text."""
    words = ["--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}", "-m", *module]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *words, *workspace.words("train", name, settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rank_processes(agent: "subprocess.Popen[str]") -> list[int]:
    """Return the ids of the processes that torchrun started, by rank."""
    import psutil

    def rank(process: psutil.Process) -> int:
        return int(process.environ().get("RANK", -1))

    children = psutil.Process(agent.pid).children()
    return [process.pid for process in sorted(children, key=rank) if rank(process) >= 0]


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_on_all_ranks(workspace: Workspace) -> None:
    agent = torchrun(workspace, "terminated", ["run.max_steps=100000"])
    wait_until(at_step(workspace, "terminated", 5), 60)
    began_at = time.monotonic()
    agent.send_signal(signal.SIGTERM)
    agent.communicate(timeout=40)
    assert time.monotonic() - began_at < 30
    history = read_history(workspace.path("terminated"))
    assert history.status is RunState.STOPPED and store.newest_valid(workspace.path("terminated")).name.endswith(
        f"{history.step:06d}"
    )


@pytest.mark.slow
def test_stopped_run_stays_stopped_after_a_torchrun_restart(workspace: Workspace) -> None:
    agent = torchrun(workspace, "stopped", ["run.max_steps=100000"], restarts=1)
    wait_until(at_step(workspace, "stopped", 5), 60)
    os.kill(rank_processes(agent)[1], signal.SIGTERM)
    output, _ = agent.communicate(timeout=60)
    assert agent.returncode != 0 and "the run ended with exit code 143" in output
    assert [event.event for event in read_history(workspace.path("stopped")).events] == [Event.STARTED, Event.STOPPED]


@pytest.mark.slow
@pytest.mark.parametrize("faulty_rank", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_killed_rank_is_restarted_and_the_result_is_the_same(workspace: Workspace, faulty_rank: int) -> None:
    clean = workspace.train(2, f"clean-{faulty_rank}")
    agent = torchrun(workspace, f"killed-{faulty_rank}", restarts=1)
    wait_until(at_step(workspace, f"killed-{faulty_rank}", 7), 60)
    os.kill(rank_processes(agent)[faulty_rank], signal.SIGKILL)
    output, _ = agent.communicate(timeout=120)
    assert agent.returncode == 0, output
    history = read_history(workspace.path(f"killed-{faulty_rank}"))
    assert [event.event for event in history.events] == [Event.STARTED, Event.RESUMED, Event.FINISHED]
    assert losses(history) == losses(clean) and evaluations(history) == evaluations(clean)
    last = [RunPaths(workspace.path(f"{name}-{faulty_rank}")).checkpoint(STEPS) for name in ("clean", "killed")]
    assert same_tensors(*last)


@pytest.mark.slow
def test_unexpected_error_of_a_rank_is_retried_by_torchrun(workspace: Workspace) -> None:
    agent = torchrun(workspace, "failing", restarts=1, module=("faults.rank", "fails in a step", "0"))
    output, _ = agent.communicate(timeout=120)
    assert agent.returncode == 0, output
    assert "a fault of our own" in output
    assert [event.event for event in read_history(workspace.path("failing")).events] == [
        Event.STARTED,
        Event.RESUMED,
        Event.FINISHED,
    ]


@pytest.mark.slow
def test_hanging_rank_is_given_up_with_a_stack_trace(workspace: Workspace) -> None:
    agent = torchrun(workspace, "hangs", ["run.max_steps=100000", "run.rank_timeout=3"])
    wait_until(at_step(workspace, "hangs", 7), 60)
    stopped = rank_processes(agent)[1]
    os.kill(stopped, signal.SIGSTOP)
    time.sleep(5)
    os.kill(stopped, signal.SIGKILL)  # torchrun would do so after its own 30 s
    output, _ = agent.communicate(timeout=60)
    assert agent.returncode != 0
    assert "rank 0 of 2 waited here:" in output and "regpt/training/trainer.py" in output
    assert "another rank did not answer within 3 s" in output
    newest = store.newest_valid(workspace.path("hangs"))
    assert int(newest.name.removeprefix("step_")) >= 5
    assert not [p for p in (workspace.path("hangs") / "checkpoints").glob("*") if p.name.startswith(".")]
