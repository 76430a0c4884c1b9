"""Environment variables: who started this process, and with how many threads."""

import psutil
import pytest
import torch

from regpt.cli.main import main
from regpt.machine import device, limits
from regpt.machine.device import set_threads
from regpt.machine.env import Launch, current_launch, exported_threads, unused_ranks
from regpt.machine.limits import GroupLimits

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
TWO_RANKS = Launch(ranks=2, local_ranks=2)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHER_VARIABLES, "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_launch_ignores_rank_and_world_size_that_torchrun_did_not_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert current_launch() == Launch() and unused_ranks() == "WORLD_SIZE=2"
    assert main(["recipe", "list"]) == 0
    assert "demo-modern" in capsys.readouterr().out
    assert main(["resume", "no-such-run"]) == 2
    assert "note: WORLD_SIZE=2 is ignored" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"])
def test_launch_is_read_where_torchrun_started_the_process(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", variable: "2"}.items():
        monkeypatch.setenv(name, value)
    launch = current_launch()
    assert (launch.ranks, launch.rank, launch.local_rank) == (4, 3, 1) and unused_ranks() == ""


def torchrun_with(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str] | None) -> None:
    """Let this process's parent have started with these variables; None: nobody may read them."""

    class Parent:
        def parent(self) -> "Parent":
            return self

        def environ(self) -> dict[str, str]:
            if environment is None:
                raise psutil.AccessDenied
            return environment

    monkeypatch.setattr(psutil, "Process", Parent)


@pytest.mark.parametrize(
    ("variables", "of_torchrun", "launch", "exported"),
    [
        ({}, {}, Launch(), False),
        ({"OMP_NUM_THREADS": "1"}, {}, Launch(), True),
        ({"OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "3"}, TWO_RANKS, True),
        ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1"}, TWO_RANKS, True),
        ({"OMP_NUM_THREADS": "1"}, {}, TWO_RANKS, False),  # torchrun set it
        ({"OMP_NUM_THREADS": "1"}, None, TWO_RANKS, False),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"}, {}, TWO_RANKS, True),
        ({"OMP_NUM_THREADS": "4,2"}, {}, Launch(), True),
        *(({"OMP_NUM_THREADS": junk}, {}, Launch(), False) for junk in ("0", "-1", "all", "")),
    ],
)
def test_exported_threads_are_the_users_and_not_torchruns(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    of_torchrun: dict[str, str] | None,
    launch: Launch,
    exported: bool,
) -> None:
    torchrun_with(monkeypatch, of_torchrun)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert exported_threads(launch) == exported


@pytest.mark.parametrize(
    ("wanted", "exported", "launch", "quota", "threads"),
    [
        (5, True, TWO_RANKS, 1.0, 5),
        (0, True, TWO_RANKS, 4.0, 7),  # as PyTorch has read it
        (0, False, TWO_RANKS, 6.0, 3),
        (0, False, Launch(ranks=8, local_ranks=8), 6.0, 1),
        (0, False, Launch(), 2.0, 2),
        (0, False, Launch(), 64.0, 7),
    ],
)
def test_threads_are_the_usable_cores_divided_by_the_ranks_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, wanted: int, exported: bool, launch: Launch, quota: float, threads: int
) -> None:
    monkeypatch.setattr(limits, "physical_cores", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(limits, "group_limits", lambda: GroupLimits(processors=quota))
    monkeypatch.setattr(device, "exported_threads", lambda launch: exported)
    torch.set_num_threads(7)
    set_threads(wanted, launch)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
