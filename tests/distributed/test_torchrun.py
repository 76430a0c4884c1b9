"""Runs under torchrun itself: signals, restarts of lost ranks, and ranks that hang."""

import os
import signal
import sys
import time
from collections.abc import Sequence

import pytest

from regpt.checkpoint import store
from regpt.tracking.events import Event
from regpt.tracking.journal import RunState, read_history
from regpt.tracking.layout import RunPaths
from tests.conftest import wait_until
from tests.helpers.parallel_runs import Workspace, at_step, evaluations, losses, same_tensors
from tests.helpers.torchrun import Agent, fork_agent, start_command

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun")]


def start(
    workspace: Workspace,
    name: str,
    settings: Sequence[str] = (),
    *,
    restarts: int = 0,
    module: Sequence[str] = ("regpt",),
) -> Agent:
    """Start the training of the run `name` under torchrun on two ranks."""
    words = workspace.words("train", name, settings)
    return fork_agent(words, workspace.folder / f"{name}.txt", module=module, restarts=restarts)


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_on_all_ranks(workspace: Workspace) -> None:
    words = workspace.words("train", "terminated", ["run.max_steps=100000"])
    agent = start_command(words, workspace.folder / "terminated.txt")
    wait_until(at_step(workspace, "terminated", 5), 60)
    began_at = time.monotonic()
    agent.send(signal.SIGTERM)
    agent.outcome(40)
    assert time.monotonic() - began_at < 30
    history = read_history(workspace.path("terminated"))
    assert history.status is RunState.STOPPED and store.newest_valid(workspace.path("terminated")).name.endswith(
        f"{history.step:06d}"
    )


@pytest.mark.slow
def test_stopped_run_stays_stopped_after_a_torchrun_restart(workspace: Workspace) -> None:
    agent = start(workspace, "stopped", ["run.max_steps=100000"], restarts=1)
    wait_until(at_step(workspace, "stopped", 5), 60)
    os.kill(agent.rank_pids()[1], signal.SIGTERM)
    ended = agent.outcome(60)
    assert ended.code != 0 and "the run ended with exit code 143" in ended.output
    assert [event.event for event in read_history(workspace.path("stopped")).events] == [Event.STARTED, Event.STOPPED]


@pytest.mark.slow
@pytest.mark.parametrize("faulty_rank", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_killed_rank_is_restarted_and_the_result_is_the_same(workspace: Workspace, faulty_rank: int) -> None:
    longer = ["run.max_steps=24"]  # time to kill a rank before the end
    clean = workspace.train(2, f"clean-{faulty_rank}", longer)
    agent = start(workspace, f"killed-{faulty_rank}", longer, restarts=1)
    wait_until(at_step(workspace, f"killed-{faulty_rank}", 7), 60)
    os.kill(agent.rank_pids()[faulty_rank], signal.SIGKILL)
    ended = agent.outcome(120)
    assert ended.code == 0, ended.output
    history = read_history(workspace.path(f"killed-{faulty_rank}"))
    assert [event.event for event in history.events] == [Event.STARTED, Event.RESUMED, Event.FINISHED]
    assert losses(history) == losses(clean) and evaluations(history) == evaluations(clean)
    last = [RunPaths(workspace.path(f"{name}-{faulty_rank}")).checkpoint(24) for name in ("clean", "killed")]
    assert same_tensors(*last)


@pytest.mark.slow
def test_unexpected_error_of_a_rank_is_retried_by_torchrun(workspace: Workspace) -> None:
    agent = start(
        workspace, "failing", ["run.max_steps=16"], restarts=1, module=("faults.rank", "fails in a step", "0")
    )
    ended = agent.outcome(120)
    assert ended.code == 0, ended.output
    assert "a fault of our own" in ended.output
    assert [event.event for event in read_history(workspace.path("failing")).events] == [
        Event.STARTED,
        Event.RESUMED,
        Event.FINISHED,
    ]


@pytest.mark.slow
def test_hanging_rank_is_given_up_with_a_stack_trace(workspace: Workspace) -> None:
    agent = start(workspace, "hangs", ["run.max_steps=100000", "run.rank_timeout=3"])
    wait_until(at_step(workspace, "hangs", 7), 60)
    stopped = agent.rank_pids()[1]
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: "did not answer within 3 s" in agent.output(), 30)
    os.kill(stopped, signal.SIGKILL)  # torchrun would do so after its own 30 s
    ended = agent.outcome(60)
    assert ended.code != 0
    assert "rank 0 of 2 waited here:" in ended.output and "regpt/training/trainer.py" in ended.output
    assert "another rank did not answer within 3 s" in ended.output
    newest = store.newest_valid(workspace.path("hangs"))
    assert int(newest.name.removeprefix("step_")) >= 5
    assert not [p for p in (workspace.path("hangs") / "checkpoints").glob("*") if p.name.startswith(".")]
