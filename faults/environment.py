"""Disturb the environment of a run: its disk, clock, journal, output and trackers, and a second process."""

import os
import signal
import time
from functools import partial
from pathlib import Path

from faults.laboratory import STEPS, Laboratory, Result, newest_step
from faults.process import at_call, checkpoint_folders, kill_this_process, run
from regpt.base import files
from regpt.checkpoint import store
from regpt.data.batches import BatchLoader
from regpt.tracking import journal, trackers
from regpt.tracking.journal import read_history
from regpt.tracking.layout import RunPaths
from regpt.training import trainer


def full_disk(lab: Laboratory, times: int) -> Result:
    """Limit the file size during a run, so that further checkpoints cannot be written."""
    import resource

    def limit_file_size() -> None:
        while not RunPaths(lab.path("full")).checkpoint(10).exists():  # it may still be being written
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))

    def inject() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        at_call(trainer.Trainer, "train_step", 12, limit_file_size)

    outcome = lab.start("full", inject)
    assert outcome.code == 4 and "Traceback" not in outcome.output, outcome.output
    for step in (15, 40):  # the first failed save and the last are reported
        assert f"step_{step:06d}" in outcome.output, outcome.output
    assert read_history(lab.path("full")).step == STEPS
    assert newest_step(lab.path("full")) == 10
    assert [path.name for path in checkpoint_folders(lab.path("full"))] == ["step_000005", "step_000010"]
    lab.finish("full")
    lab.remove("full")
    return Result(
        "no file can grow from step 12 on",
        1,
        "reported; exit 4 at the last save; older checkpoints intact; resumed, bit-identical",
    )


def clock_jumps(lab: Laboratory, times: int) -> Result:
    """Let the wall clock jump, and reverse the modification times of checkpoints."""

    def backwards() -> None:
        began = time.time()
        time.time = lambda: began - 365 * 86400 * (time.monotonic() % 7)

    outcome = lab.start("clock", backwards)
    assert outcome.code == 0, outcome.output
    for place, (_, path) in enumerate(store.list_checkpoints(lab.path("clock"))):
        os.utime(path, (10**9 - place, 10**9 - place))
    assert store.newest_valid(lab.path("clock")).name == f"step_{STEPS:06d}"
    assert all(step.seconds > 0 for step in read_history(lab.path("clock")).steps)
    lab.assert_same_as_baseline("clock")
    lab.remove("clock")
    return Result(
        "the clock jumps back a year; file times are reversed",
        1,
        "the highest step is resumed; no negative durations",
    )


def no_prefetch(lab: Laboratory, times: int) -> Result:
    """Read each batch only when it is needed."""

    def inject() -> None:
        BatchLoader.at = BatchLoader.read  # type: ignore[method-assign]

    assert lab.start("no-prefetch", inject).code == 0
    lab.assert_same_as_baseline("no-prefetch")
    lab.remove("no-prefetch")
    return Result("batches are not prefetched", 1, "bit-identical")


def slow_saves(lab: Laboratory, times: int) -> Result:
    """Delay a background save; it must not contain later weights."""

    def slow() -> None:
        at_call(store, "write_tensors", 1, partial(time.sleep, 1.0))

    assert lab.start("slow", slow).code == 0
    runs = (lab.path("slow"), lab.baseline.run)
    slow_file, expected = (RunPaths(run_dir).checkpoint(5) / "model.safetensors" for run_dir in runs)
    assert slow_file.read_bytes() == expected.read_bytes(), "the file holds later weights"
    lab.assert_same_as_baseline("slow")
    lab.remove("slow")
    return Result(
        "a save takes one second during training",
        1,
        "the file has the weights of its start",
    )


def unwritable_journal(lab: Laboratory, times: int) -> Result:
    """Let 20 writes to the journal fail."""

    def inject() -> None:
        append, calls = files.append_line, 0

        def append_line(path: Path, line: str) -> None:
            nonlocal calls
            calls += 1
            if 10 <= calls < 30:
                raise OSError(28, "No space left on device")
            append(path, line)

        vars(journal)["append_line"] = append_line

    outcome = lab.start("mute", inject)
    assert outcome.code == 0 and outcome.output.count("journal.jsonl") == 1, outcome.output
    lab.assert_same_as_baseline("mute")
    lab.remove("mute")
    return Result("the journal is not writable for 20 records", 1, "reported once; no record missing or duplicated")


def failing_tracker(lab: Laboratory, times: int) -> Result:
    """Let TensorBoard raise an error at every record."""

    def fail() -> None:
        def log(self: object, figures: object, step: int) -> None:
            raise ConnectionError("server lost")

        trackers.TensorBoard.log = log  # type: ignore[method-assign]

    outcome = lab.start("untracked", fail, settings=["run.sinks=tensorboard"])
    assert outcome.code == 0 and outcome.output.count("server lost") == 1, outcome.output
    lab.assert_same_as_baseline("untracked")
    lab.remove("untracked")
    return Result("a tracker raises an error at every record", 1, "reported once; bit-identical")


def two_writers(lab: Laboratory, times: int) -> Result:
    """Resume a run that another process is writing, then kill that process and resume again."""
    lab.start("shared", partial(at_call, trainer.Trainer, "train_step", 12, kill_this_process))  # leaves its lock file
    child = os.fork()
    if child == 0:
        sleep = partial(at_call, trainer.Trainer, "train_step", 3, partial(time.sleep, 60))
        lab.resume("shared", sleep)
        os._exit(0)
    until = time.monotonic() + 20
    while not (lab.path("shared") / "lock.holder").exists() or read_history(lab.path("shared")).attempts < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    outcome = lab.resume("shared")
    holder = int((lab.path("shared") / "lock.holder").read_text().split()[1])
    assert outcome.code == 6 and str(holder) in outcome.output, outcome.output
    runs = ["--runs", str(lab.runs)]
    assert run(["report", "shared", *runs]).code == 0 and run(["sample", "shared", "--tokens", "2", *runs]).code == 0
    os.kill(holder, signal.SIGKILL)
    os.waitpid(child, 0)
    lab.finish("shared")
    lab.remove("shared")
    return Result(
        "two processes write one run; the first is killed",
        1,
        "exit 6, naming the holder; report and sample work; a dead process's lock is ignored",
    )


def truncated_journal(lab: Laboratory, times: int) -> Result:
    """Kill a run and append half a record to its journal."""
    lab.start("cut", partial(at_call, trainer.Trainer, "train_step", 18, kill_this_process))
    with (lab.path("cut") / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "step": 18, "lo')
    lab.finish("cut")
    lab.remove("cut")
    return Result("the journal's last line is truncated", 1, "no step missing or duplicated")


def closed_output(lab: Laboratory, times: int) -> Result:
    """Close the reading end of standard output before the run starts."""

    def inject() -> None:
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(reader)

    outcome = lab.start("unread", inject)
    assert "Traceback" not in outcome.output, outcome.output
    lab.assert_same_as_baseline("unread")
    lab.remove("unread")
    return Result("standard output is closed", 1, "bit-identical")
