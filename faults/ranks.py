"""Disturb runs on several ranks: gloo processes under torchrun that are killed, stopped, signalled or given NaN."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from faults.laboratory import STEPS, Laboratory, Result, newest_step
from regpt.base.errors import NUMERICS, USAGE
from regpt.base.files import sha256_of_file
from regpt.checkpoint import store
from regpt.tracking.events import Event
from regpt.tracking.journal import read_history
from regpt.tracking.layout import RunPaths

FSDP = ["run.parallel=fsdp"]
STRICT = ["run.strict_sum=true"]
TIMEOUT = 120.0  # seconds for any command


class Agent:
    """A torchrun process and its ranks."""

    def __init__(
        self, lab: Laboratory, command: str, name: str, settings: Sequence[str], inject: str, of_rank: int, ranks: int
    ) -> None:
        self.run, self.began_at = lab.path(name), time.monotonic()
        arguments = ["--runs", str(lab.runs), *settings]
        if command == "train":
            arguments = ["train", str(lab.baseline.recipe), "--name", name, *arguments]
        else:
            arguments = [command, name, *arguments]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        torchrun += ["--max-restarts=1", "-m", "faults.rank", inject, str(of_rank)]
        self.path = lab.folder / f"{name}.output"
        with self.path.open("a") as output:
            self.process = subprocess.Popen([*torchrun, *arguments], stdout=output, stderr=subprocess.STDOUT)

    def ranks(self) -> list[psutil.Process]:
        found = [child for child in psutil.Process(self.process.pid).children() if "RANK" in child.environ()]
        return sorted(found, key=lambda child: int(child.environ()["RANK"]))

    def wait_for(self, step: int) -> None:
        while read_history(self.run).step < step:
            assert self.process.poll() is None, self.output
            assert time.monotonic() - self.began_at < TIMEOUT, self.output
            time.sleep(0.02)

    def wait(self) -> int:
        try:
            return self.process.wait(TIMEOUT)
        finally:
            for process in [*psutil.Process(self.process.pid).children()] if self.process.poll() is None else []:
                process.kill()
            self.process.kill()

    @property
    def output(self) -> str:
        return self.path.read_text(errors="replace")


def start(
    lab: Laboratory,
    name: str,
    settings: Sequence[str] = (),
    *,
    command: str = "train",
    inject: str = "nothing",
    of_rank: int = 0,
    ranks: int = 2,
) -> Agent:
    return Agent(lab, command, name, settings, inject, of_rank, ranks)


def finished(lab: Laboratory, name: str, settings: Sequence[str] = (), **how: object) -> Agent:
    agent = start(lab, name, settings, **how)  # type: ignore[arg-type]
    assert agent.wait() == 0, agent.output
    return agent


def clean(lab: Laboratory, mode: Sequence[str]) -> list[object]:
    """Return the result of an undisturbed run on two ranks, trained once per laboratory."""
    name = f"clean-{'-'.join(mode)}"
    if not lab.path(name).exists():
        finished(lab, name, mode)
    return result(lab, name)


def result(lab: Laboratory, name: str) -> list[object]:
    """Return all steps and evaluations, and the hashes of the last checkpoint."""
    history = read_history(lab.path(name))
    assert [step.step for step in history.steps] == list(range(1, STEPS + 1)), "a step is missing or duplicated"
    steps = [(step.loss, step.gradient_norm, step.batch) for step in history.steps]
    evaluations = (
        [(record.step, record.loss) for record in history.validations],
        [sample.texts for sample in history.samples],
    )
    last = RunPaths(lab.path(name)).checkpoint(STEPS)
    assert next(store.find_faults(last), None) is None
    left = [path.name for path in last.parent.iterdir() if path.name.startswith(".")]
    assert not left, f"left behind: {left}"
    tensors = {path.name: sha256_of_file(path) for path in last.glob("*.safetensors")}
    return [steps, evaluations, tensors]


# Kills


def killed_ranks(lab: Laboratory, times: int) -> Result:
    """Kill one of two ranks at random steps; torchrun restarts both."""
    moments = random.Random(2)
    expected = clean(lab, [])
    for number in range(times):
        agent = start(lab, "killed")
        agent.wait_for(moments.randrange(1, STEPS - 1))
        time.sleep(0.05 * moments.random())
        agent.ranks()[number % 2].kill()
        assert agent.wait() == 0, agent.output
        assert result(lab, "killed") == expected, agent.output
        lab.remove("killed")
    return Result("kill -9 of one of two ranks at random steps", times, "restarted; bit-identical")


def killed_in_phases(lab: Laboratory, times: int) -> Result:
    """Kill a rank at chosen points of a save, a step, validation and sampling."""
    cases = [
        ("killed after the first file", 1, FSDP),
        ("killed before the manifest", 0, FSDP),
        ("killed after its last file", 1, FSDP),
        ("killed before the rename", 0, FSDP),
        ("killed before the rename", 0, []),
        ("killed in a step", 1, FSDP),
        ("killed in validation", 0, FSDP),
        ("killed in sampling", 1, []),
        ("fails in a step", 0, []),
    ][:times]
    for inject, of_rank, mode in cases:
        expected = clean(lab, mode)
        agent = start(lab, "placed", mode, inject=inject, of_rank=of_rank)
        assert agent.wait() == 0, agent.output
        assert Event.RESUMED in [event.event for event in read_history(lab.path("placed")).events], (
            inject,
            agent.output,
        )
        assert result(lab, "placed") == expected, (inject, agent.output)
        lab.remove("placed")
    return Result(
        "a rank killed in a save, a step, validation, sampling; a rank that raises an error",
        len(cases),
        "bit-identical",
    )


# Signals and unresponsive ranks


def signalled_ranks(lab: Laboratory, times: int) -> Result:
    """Send SIGTERM to torchrun or to one rank."""
    moments = random.Random(3)
    for number in range(times):
        mode, to = (FSDP if number % 4 > 1 else []), ("torchrun", "rank 1", "rank 0")[number % 3]
        expected = clean(lab, mode)
        agent = start(lab, "signalled", mode)
        agent.wait_for(moments.randrange(1, STEPS - 5))
        sent_at = time.monotonic()
        if to == "torchrun":
            agent.process.send_signal(signal.SIGTERM)
        else:
            agent.ranks()[int(to[-1])].send_signal(signal.SIGTERM)
        code = agent.wait()
        assert time.monotonic() - sent_at < 30 or to != "torchrun", agent.output
        stops = [event.step for event in read_history(lab.path("signalled")).events if event.event is Event.STOPPED]
        assert len(stops) == 1, agent.output
        # torchrun restarts signalled ranks; they see that the run was stopped
        assert code != 0 and newest_step(lab.path("signalled")) == stops[0], agent.output
        finished(lab, "signalled", mode, command="resume")
        assert result(lab, "signalled") == expected, agent.output
        lab.remove("signalled")
    return Result("SIGTERM to torchrun, and to one of two ranks", times, "all ranks save; bit-identical")


def silent_rank(lab: Laboratory, times: int) -> Result:
    """Stop one rank with SIGSTOP; the other must end after run.rank_timeout."""
    for of_rank in (1, 0)[:times]:
        agent = start(lab, "silent", ["run.rank_timeout=4", "run.max_steps=100000"])
        agent.wait_for(12)  # the checkpoint of step 5 has been written by then
        stopped = agent.ranks()[of_rank]
        os.kill(stopped.pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        while "regpt/training/trainer.py" not in agent.output or "4 s" not in agent.output:
            assert time.monotonic() - stopped_at < 30, agent.output
            time.sleep(0.1)
        assert newest_step(lab.path("silent")) >= 5
        agent.process.send_signal(signal.SIGTERM)
        stopped.kill()
        agent.wait()
        assert not list((lab.path("silent") / "checkpoints").glob(".*"))
        lab.remove("silent")
    return Result("one of two ranks stopped (SIGSTOP)", times, "exit 7 after run.rank_timeout, with a stack trace")


# The same run on other numbers of ranks


def moved_between_ranks(lab: Laboratory, times: int) -> Result:
    """Move a run from one rank to two and back, with sums in a fixed order."""
    for first, second in ((7, 20), (1, 39), (19, 21))[:times]:
        stopping = [*STRICT, f"run.max_steps={STEPS}"]
        agent = start(lab, "moved", stopping, ranks=1)
        agent.wait_for(first)
        agent.process.send_signal(signal.SIGTERM)
        agent.wait()
        agent = start(lab, "moved", STRICT, command="resume")
        agent.wait_for(second)
        agent.process.send_signal(signal.SIGTERM)
        agent.wait()
        assert lab.resume("moved").code == 0
        lab.assert_same_as_baseline("moved")
        lab.remove("moved")
    return Result("1 rank, then 2, then 1", times, "bit-identical (run.strict_sum)")


def rank_layouts(lab: Laboratory, times: int) -> Result:
    """Train on different numbers of ranks: the same batches and, within rounding, the same losses."""
    settings = ["model.dropout=0.0", "data.total_batch_tokens=256"]
    shares = [(1, []), (2, []), (4, []), (2, ["data.micro_batch=2"]), (2, FSDP), (4, FSDP), (2, STRICT), (4, STRICT)]
    runs = []
    for number, (ranks, more) in enumerate(shares):
        finished(lab, f"share{number}", [*settings, *more], ranks=ranks)
        runs.append(read_history(lab.path(f"share{number}")).steps[:20])
    most = 0.0
    for steps in runs[1:]:
        assert [step.batch for step in steps] == [step.batch for step in runs[0]]
        most = max([most, *(abs(a.loss / b.loss - 1) for a, b in zip(steps, runs[0], strict=True))])
    assert most < 1e-6, most
    for steps in runs[-2:]:
        assert [step.loss for step in steps] == [step.loss for step in runs[0]]
    agent = start(lab, "thirds", settings, ranks=3)
    agent.wait()
    assert not lab.path("thirds").exists() and f"(exitcode: {USAGE})" in agent.output, agent.output
    return Result(
        "1, 2, 4 ranks; ddp, fsdp, strict_sum; micro-batches of 1 and 2",
        len(shares),
        f"the same batches; losses of 20 steps within {most:.1e}, bit-identical with strict_sum; 3 ranks are rejected",
    )


# NaN and infinity


def nan_on_one_rank(lab: Laboratory, times: int) -> Result:
    """Make a loss infinite or a gradient NaN on one rank only."""
    cases = [(kind, mode) for kind in ("infinite loss in one step", "NaN in one gradient") for mode in ([], FSDP)]
    for kind, mode in cases:
        agent = finished(lab, "poisoned", mode, inject=kind, of_rank=1)
        history = read_history(lab.path("poisoned"))
        assert [record.step for record in history.skipped] == [18], agent.output
        assert [step.step for step in history.steps] == [step for step in range(1, STEPS + 1) if step != 18]
        lab.remove("poisoned")
    agent = start(lab, "poisoned", inject="infinite loss in twenty steps", of_rank=1)
    agent.wait()
    history = read_history(lab.path("poisoned"))
    assert [event.event for event in history.events].count(Event.ROLLBACK) >= 1
    assert f"exitcode: {NUMERICS}" in agent.output.replace("(exitcode", "exitcode"), agent.output
    lab.remove("poisoned")
    return Result(
        "infinite loss or NaN gradient on one of two ranks, in 1 step and in 20",
        len(cases) + 1,
        "skipped by both; rollback, then exit 5",
    )
