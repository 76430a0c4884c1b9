"""The experiments. Each does something to a tiny run, and asserts what must be true of it afterwards."""

import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors import safe_open

from faults.victim import KILLED, Outcome, at_call, checkpoint_folders, kill_myself, run
from regpt.base import files
from regpt.base.files import sha256_of_file
from regpt.checkpoint import store
from regpt.data.batches import Batch, BatchLoader
from regpt.distributed.signals import GracefulStop
from regpt.prepare import encoders
from regpt.tracking import journal, trackers
from regpt.tracking.journal import SkippedRecord, StepRecord, read_history
from regpt.tracking.layout import RunPaths
from regpt.train import guard, parallel, periodic_eval, trainer

STEPS = 40
RECIPE = """
[run]
max_steps = 40
device = "cpu"
precision = "float32"
threads = 1
[data]
path = "{folder}/data"
source = "{folder}/text"
validation_tokens = 2000
shard_tokens = 3000
micro_batch = 1
total_batch_tokens = 128
[model]
n_layer = 2
n_head = 4
n_embd = 64
block_size = 64
mlp_hidden = 172
dropout = 0.1
[optimizer]
max_lr = 3e-3
min_lr = 3e-4
warmup_steps = 5
[evaluation]
validation_every = 10
validation_batches = 1
validation_batch_size = 8
hellaswag_every = 0
sample_every = 20
sample_count = 1
sample_tokens = 12
[checkpoint]
every = 5
"""


@dataclass(frozen=True)
class Finding:
    """A row of the table."""

    fault: str  # its number in the list of faults, where it has one
    done: str
    times: int
    happened: str


class Laboratory:
    """A folder with a recipe, its data, and the run that nothing happened to."""

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self.folder, self.random = folder, random.Random(seed)
        (folder / "text").mkdir(parents=True)
        words = Path(hashlib.__file__).read_text(encoding="utf-8") + Path(shutil.__file__).read_text(encoding="utf-8")
        (folder / "text" / "a.txt").write_text(words[:60_000], encoding="utf-8")
        (folder / "tiny.toml").write_text(RECIPE.format(folder=folder))
        whole = self.start("whole")
        assert whole.code == 0, whole.output
        self.seconds = self.start("timed").seconds
        self.expected = self.fingerprint("whole")

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name

    def start(
        self,
        name: str,
        plant: Callable[[], None] | None = None,
        kill_after: float | None = None,
        settings: Sequence[str] = (),
    ) -> Outcome:
        words = ["train", str(self.folder / "tiny.toml"), "--runs", str(self.folder / "runs"), "--name", name]
        return run([*words, *settings], plant, kill_after)

    def resume(self, name: str, plant: Callable[[], None] | None = None, kill_after: float | None = None) -> Outcome:
        return run(["resume", name, "--runs", str(self.folder / "runs")], plant, kill_after)

    def copy(self, name: str) -> Path:
        """A finished run to do something to."""
        shutil.copytree(self.path("whole"), self.path(name))
        return self.path(name)

    def forget(self, name: str) -> None:
        shutil.rmtree(self.path(name))

    def fingerprint(self, name: str) -> str:
        """SHA-256 over the last weights, the optimizer's state, and every step's loss and batch."""
        digest = hashlib.sha256()
        last = RunPaths(self.path(name)).checkpoint(STEPS)
        for file in ("model.safetensors", "optimizer.safetensors"):
            with safe_open(last / file, "np") as tensors:
                for key in sorted(tensors.keys()):
                    digest.update(key.encode() + tensors.get_tensor(key).tobytes())
        history = read_history(self.path(name))
        assert [step.step for step in history.steps] == list(range(1, STEPS + 1)), "a step is missing or stands twice"
        for step in history.steps:
            digest.update(f"{step.loss!r} {step.gradient_norm!r} {step.batch}".encode())
        for validation in history.validations:
            digest.update(f"{validation.step} {validation.loss!r}".encode())
        for text in history.samples:
            digest.update("".join(text.texts).encode())
        return digest.hexdigest()

    def finished_the_same(self, name: str) -> None:
        assert self.fingerprint(name) == self.expected, f"{name} came out otherwise"
        left = [path.name for path in checkpoint_folders(self.path(name)) if path.name.startswith(".")]
        assert not left, f"left behind: {left}"

    def finish(self, name: str) -> Outcome:
        """Go on until the run is complete, as somebody would who only knows `resume`."""
        outcome = self.resume(name)
        assert outcome.code == 0, outcome.output
        self.finished_the_same(name)
        return outcome


def newest_step(where: Path) -> int:
    whole = [step for step, path in store.list_checkpoints(where) if next(store.find_faults(path), None) is None]
    return max(whole, default=0)


# Killed


def kills_in_training(lab: Laboratory, kills: int) -> Finding:
    done = 0
    while done < kills:
        while True:
            path = lab.path("killed")
            before = newest_step(path) if path.exists() else 0
            if path.exists() and before == 0:
                lab.forget("killed")  # killed before its first checkpoint: begun anew, as its message says
            act = lab.resume if before else lab.start
            outcome = act("killed", kill_after=lab.random.uniform(0.05, 1.1 * lab.seconds) if done < kills else None)
            if outcome.code != KILLED:
                assert outcome.code == 0, outcome.output
                break
            done += 1
            assert newest_step(path) >= before if path.exists() else before == 0, "a committed checkpoint was lost"
        lab.finished_the_same("killed")
        lab.forget("killed")
    return Finding("F2", "kill -9 at random moments of training", done, "every run, resumed to its end: the same bits")


POINTS: dict[str, Callable[[int], None]] = {
    "after its first file": lambda n: at_call(store, "write_tensors", 2 * n - 1, kill_myself, after=True),
    "before a flush": lambda n: at_call(files, "flush_file", 4 * n - 2, kill_myself),
    "before the rename": lambda n: at_call(Path, "rename", n, kill_myself, only=".step_"),
    "after the rename": lambda n: at_call(Path, "rename", n, kill_myself, after=True, only=".step_"),
    "before its manifest": lambda n: at_call(store, "write_json", 2 * n, kill_myself),
}


def kills_in_saving(lab: Laboratory, kills: int) -> Finding:
    done = 0
    while done < kills:
        for name, plant in list(POINTS.items())[: kills - done]:
            number = lab.random.randint(1, 6)
            outcome = lab.start("saving", partial(plant, number))
            assert outcome.code == KILLED, f"{name}: {outcome.output}"
            done += 1
            whole = newest_step(lab.path("saving"))
            assert whole >= 5 * (number - 1), f"{name}: a committed checkpoint was lost"
            if whole == 0:
                lab.forget("saving")
                lab.start("saving")
                lab.finished_the_same("saving")
            else:
                lab.finish("saving")
            lab.forget("saving")
    return Finding("F2", f"kill -9 in a save: {', '.join(POINTS)}", done, "no checkpoint lost, the same bits")


# Stopped


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def stops_at_steps(lab: Laboratory, times: int) -> Finding:
    """Before the checks of these numbers: between micro-batches, at the first, at an epoch's edge, at a save."""
    checks = [61, 1, 2, 15, 40, 58, 59, 60][:times]
    for number in checks:
        outcome = lab.start("stopped", partial(at_call, GracefulStop, "wanted", number, partial(send, signal.SIGINT)))
        assert outcome.code == 130, outcome.output
        assert "go on with: regpt resume" in outcome.output.splitlines()[-1]
        lab.finish("stopped")
        lab.forget("stopped")
    return Finding(
        "F1",
        "Ctrl-C between micro-batches, steps, validation and samples, with dropout",
        len(checks),
        "exit 130, resumed to the same bits",
    )


PLACES: dict[str, Callable[[], None]] = {
    "a step": lambda: at_call(trainer.Trainer, "train_step", 7, partial(send, signal.SIGTERM)),
    "validation": lambda: at_call(periodic_eval, "validation", 2, partial(send, signal.SIGTERM)),
    "sampling": lambda: at_call(periodic_eval, "continuations", 1, partial(send, signal.SIGTERM)),
    "a save": lambda: at_call(store, "write", 2, partial(send, signal.SIGTERM)),
}


def sigterm_everywhere(lab: Laboratory, times: int) -> Finding:
    for name, plant in list(PLACES.items())[:times]:
        outcome = lab.start("terminated", plant)
        assert outcome.code == 143, f"{name}: {outcome.output}"
        assert outcome.seconds < 10 + lab.seconds
        assert newest_step(lab.path("terminated")) == read_history(lab.path("terminated")).step, name
        lab.finish("terminated")
        lab.forget("terminated")
    places = ", in ".join(list(PLACES)[:times])
    return Finding("F3", f"SIGTERM in {places}", min(times, len(PLACES)), "exit 143, a checkpoint of that step")


def sigterm_twice(lab: Laboratory, times: int) -> Finding:
    def twice() -> None:
        send(signal.SIGTERM)
        time.sleep(0.05)
        send(signal.SIGTERM)

    outcome = lab.start("twice", partial(at_call, trainer.Trainer, "train_step", 13, twice))
    assert outcome.code == -signal.SIGTERM, outcome.output
    assert newest_step(lab.path("twice")) == 10
    lab.finish("twice")
    lab.forget("twice")
    return Finding("F3", "a second SIGTERM at once", 1, "ends at once; the checkpoint before is whole")


def sigterm_in_preparing(lab: Laboratory, times: int) -> Finding:
    settings = [f"data.path={lab.folder}/later"]
    plant = partial(at_call, encoders, "encode_chunk", 1, partial(send, signal.SIGTERM))
    outcome = lab.start("unprepared", plant, settings=settings)
    assert outcome.code == 143 and "the same command goes on from there" in outcome.output, outcome.output
    assert not lab.path("unprepared").exists() and lab.start("unprepared", settings=settings).code == 0
    lab.finished_the_same("unprepared")
    lab.forget("unprepared")
    return Finding(
        "F3", "SIGTERM while the data is prepared", 1, "exit 143; the same command again comes to the same bits"
    )


# Damaged


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit flipped": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
    "of another checkpoint": lambda path: shutil.copy(path.parent.parent / "step_000005" / path.name, path),
}
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def damaged_files(lab: Laboratory, times: int) -> Finding:
    done = 0
    for file in FILES:
        for name, damage in DAMAGES.items():
            if done == times:
                break
            where = lab.copy("damaged")
            for step in (35, 40):
                damage(RunPaths(where).checkpoint(step) / file)
            outcome = lab.finish("damaged")
            assert "going on from an earlier checkpoint, step_000030" in " ".join(outcome.output.split()), (file, name)
            lab.forget("damaged")
            done += 1
    return Finding(
        "F10, F11",
        f"the two newest checkpoints damaged: each file {', '.join(DAMAGES)}",
        done,
        "named, passed over, the same bits",
    )


def all_damaged(lab: Laboratory, times: int) -> Finding:
    where = lab.copy("hopeless")
    for _, path in store.list_checkpoints(where):
        flip(path / "model.safetensors")
    before = (where / "journal.jsonl").read_bytes()
    outcome = lab.resume("hopeless")
    assert outcome.code == 4 and "no checkpoint is whole" in outcome.output, outcome.output
    assert (where / "journal.jsonl").read_bytes() == before
    lab.forget("hopeless")
    return Finding("F11", "all checkpoints damaged", 1, "exit 4; nothing begun anew, nothing touched")


class Payload:
    """What a pickle can do to whoever loads it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (os.system, (f"touch {self.marker}",))  # type: ignore[return-value]


def hostile_checkpoints(lab: Laboratory, times: int) -> Finding:
    where = lab.copy("hostile")
    marker = lab.folder / "it-ran"
    hostile = pickle.dumps(Payload(marker))
    model = RunPaths(where).checkpoint(STEPS) / "model.safetensors"
    done = 0
    for content in (hostile, struct.pack("<Q", 1 << 40) + b"{}", struct.pack("<Q", 8) + b"{broken}"):
        model.write_bytes(content)
        manifest = model.with_name("manifest.json")
        values = json.loads(manifest.read_text())
        values["files"][model.name] = {"bytes": len(content), "sha256": sha256_of_file(model)}
        manifest.write_text(json.dumps(values))
        distributed = RunPaths(where).checkpoint(99)
        distributed.mkdir(exist_ok=True)
        (distributed / ".metadata").write_bytes(hostile)
        (distributed / "__0_0.distcp").write_bytes(hostile)
        runs = ["--runs", str(lab.folder / "runs")]
        for words in (
            ["resume", "hostile", "run.max_steps=41"],
            ["sample", "hostile", "--tokens", "2"],
            ["export", "hostile", str(lab.folder / "exported")],
            ["checkpoints", "hostile"],
        ):
            outcome = run([*words, *runs])
            assert outcome.code == 4 and "Traceback" not in outcome.output, outcome.output
            assert not marker.exists(), "a pickle was loaded"
            done += 1
        assert run(["report", "hostile", *runs]).code == 0
    lab.forget("hostile")
    return Finding(
        "F12",
        "a pickle, a header of 2^40 bytes, a DCP folder in a checkpoint's place; every command",
        done,
        "exit 4; nothing ran",
    )


def older_format(lab: Laboratory, times: int) -> Finding:
    where = lab.copy("older")
    for _, path in store.list_checkpoints(where):
        manifest = path / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    outcome = lab.resume("older")
    assert outcome.code == 4 and "version 1; this regpt reads regpt-checkpoint version 2" in outcome.output
    lab.forget("older")
    return Finding("F17", "checkpoints of an older format", 1, "exit 4 with both versions")


# The machine


def full_disk(lab: Laboratory, times: int) -> Finding:
    import resource

    def fill_up() -> None:
        while not RunPaths(lab.path("full")).checkpoint(10).exists():  # it may still be on its way
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        at_call(trainer.Trainer, "train_step", 12, fill_up)

    outcome = lab.start("full", little_room)
    said = " ".join(outcome.output.split())
    assert outcome.code == 4 and "bytes are free" in said and "the run goes on" in said, outcome.output
    assert newest_step(lab.path("full")) == 10
    assert [path.name for path in checkpoint_folders(lab.path("full"))] == ["step_000005", "step_000010"]
    lab.finish("full")
    lab.forget("full")
    return Finding(
        "F9",
        "no file may grow any more from step 12 on",
        1,
        "each failed save is said; exit 4 at the last; the older ones whole; resumed to the same bits",
    )


def clock_jumps(lab: Laboratory, times: int) -> Finding:
    def backwards() -> None:
        began = time.time()
        time.time = lambda: began - 365 * 86400 * (time.monotonic() % 7)

    outcome = lab.start("clock", backwards)
    assert outcome.code == 0, outcome.output
    for place, (_, path) in enumerate(store.list_checkpoints(lab.path("clock"))):
        os.utime(path, (10**9 - place, 10**9 - place))
    assert store.newest_valid(lab.path("clock")).name == f"step_{STEPS:06d}"
    assert all(step.seconds > 0 for step in read_history(lab.path("clock")).steps)
    lab.finished_the_same("clock")
    lab.forget("clock")
    return Finding(
        "F15",
        "the clock jumps back a year, file times the wrong way round",
        1,
        "the newest is the highest step; no negative time",
    )


def read_when_asked(lab: Laboratory, times: int) -> Finding:
    def nothing_ahead() -> None:
        BatchLoader.at = BatchLoader.read  # type: ignore[method-assign]

    assert lab.start("unhurried", nothing_ahead).code == 0
    lab.finished_the_same("unhurried")
    lab.forget("unhurried")
    return Finding("F8", "no batch is read ahead", 1, "the same bits")


def slow_saves(lab: Laboratory, times: int) -> Finding:
    def slow() -> None:
        at_call(store, "write_tensors", 1, partial(time.sleep, 1.0))

    assert lab.start("slow", slow).code == 0
    files_of = [RunPaths(lab.path(name)).checkpoint(5) / "model.safetensors" for name in ("slow", "whole")]
    assert files_of[0].read_bytes() == files_of[1].read_bytes(), "the file holds later weights"
    lab.finished_the_same("slow")
    lab.forget("slow")
    return Finding("F13", "a save takes a second, while training goes on", 1, "the file holds what was when it began")


def retention(lab: Laboratory, times: int) -> Finding:
    keep = ["checkpoint.keep_last=2", "checkpoint.keep_best=false"]
    done = 0
    for number in (1, 2, 4):  # dies in the middle of removing one
        plant = partial(at_call, shutil, "rmtree", number, kill_myself, only=".removed")
        outcome = lab.start("kept", plant, settings=keep)
        assert outcome.code == KILLED, outcome.output
        assert newest_step(lab.path("kept")) >= 10
        lab.finish("kept")
        assert [step for step, _ in store.list_checkpoints(lab.path("kept"))] == [35, 40]
        lab.forget("kept")
        done += 1
    return Finding(
        "F14", "kill -9 while an old checkpoint is removed (keep_last = 2)", done, "the newest two are whole"
    )


def troubled_journal(lab: Laboratory, times: int) -> Finding:
    def sometimes() -> None:
        append, calls = files.append_line, 0

        def append_line(path: Path, line: str) -> None:
            nonlocal calls
            calls += 1
            if 10 <= calls < 30:
                raise OSError(28, "No space left on device")
            append(path, line)

        vars(journal)["append_line"] = append_line

    outcome = lab.start("mute", sometimes)
    assert outcome.code == 0 and outcome.output.count("cannot be written") == 1, outcome.output
    lab.finished_the_same("mute")
    lab.forget("mute")
    return Finding(
        "F27", "the journal cannot be written for twenty records", 1, "said once; no record missing or twice"
    )


def failing_sink(lab: Laboratory, times: int) -> Finding:
    def fail() -> None:
        def log(self: object, figures: object, step: int) -> None:
            raise ConnectionError("the server has gone")

        trackers.TensorBoard.log = log  # type: ignore[method-assign]

    outcome = lab.start("unwatched", fail, settings=["run.sinks=tensorboard"])
    assert outcome.code == 0 and outcome.output.count("failed and is let go") == 1, outcome.output
    lab.finished_the_same("unwatched")
    lab.forget("unwatched")
    return Finding("F27", "a sink raises at every record", 1, "said once; the same bits")


def two_writers(lab: Laboratory, times: int) -> Finding:
    lab.start("shared", partial(at_call, trainer.Trainer, "train_step", 12, kill_myself))  # its lock is left lying
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
    assert outcome.code == 6 and "is being written by another process (process" in outcome.output, outcome.output
    runs = ["--runs", str(lab.folder / "runs")]
    assert run(["report", "shared", *runs]).code == 0 and run(["sample", "shared", "--tokens", "2", *runs]).code == 0
    holder = int((lab.path("shared") / "lock.holder").read_text().split()[1])
    os.kill(holder, signal.SIGKILL)
    os.waitpid(child, 0)
    lab.finish("shared")
    lab.forget("shared")
    return Finding(
        "F16",
        "two processes on one run; then the first is killed",
        1,
        "exit 6 with the holder; report and sample read; the dead one's lock is none",
    )


def cut_journal(lab: Laboratory, times: int) -> Finding:
    lab.start("cut", partial(at_call, trainer.Trainer, "train_step", 18, kill_myself))
    with (lab.path("cut") / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "step": 18, "lo')
    lab.finish("cut")
    lab.forget("cut")
    return Finding("F27", "a journal whose last line is cut", 1, "no step missing or twice")


def closed_output(lab: Laboratory, times: int) -> Finding:
    def nobody_reads() -> None:
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(reader)

    outcome = lab.start("unheard", nobody_reads)
    assert "Traceback" not in outcome.output, outcome.output
    lab.finished_the_same("unheard")
    lab.forget("unheard")
    return Finding(
        "F27", "nobody reads the standard output, from the first line on", 1, "the run goes on to the same bits"
    )


# Numbers


def no_numbers(lab: Laboratory, times: int) -> Finding:
    nan = float("nan")
    outcome = lab.start("once", partial(poison, {17: nan}))
    history = read_history(lab.path("once"))
    assert outcome.code == 0 and [record.step for record in history.skipped] == [18]
    outcome = lab.start("often", partial(poison, dict.fromkeys(range(17, 1000), nan)))
    assert outcome.code == 5 and "the loss is nan" in outcome.output and "Traceback" not in outcome.output
    assert newest_step(lab.path("often")) >= 15
    for name in ("once", "often"):
        lab.forget(name)
    return Finding(
        "F26",
        "NaN in one loss; NaN in every loss from a step on",
        2,
        "one step passed over; back to a checkpoint, then exit 5 with good weights",
    )


def bad_recipes(lab: Laboratory, times: int) -> Finding:
    before = sorted(path.name for path in (lab.folder / "runs").iterdir())
    wrong = [
        "optimizer.max_lrr=1",
        "optimizer.max_lr=-1",
        "optimizer.max_lr=nan",
        "run.max_steps=ten",
        "data.total_batch_tokens=100",
        "run.time_limit=soon",
    ]
    for word in wrong:
        outcome = run(["train", str(lab.folder / "tiny.toml"), "--runs", str(lab.folder / "runs"), "--name", "x", word])
        assert outcome.code == 2 and "Traceback" not in outcome.output and outcome.seconds < 2, outcome
    assert before == sorted(path.name for path in (lab.folder / "runs").iterdir())
    where = lab.copy("other")
    for word in ("model.n_embd=32", "run.seed=2", "data.total_batch_tokens=512"):
        outcome = run(["resume", "other", "--runs", str(lab.folder / "runs"), "run.max_steps=50", word])
        assert outcome.code == 4 and " there, " in outcome.output, outcome.output
    assert run(["resume", "other", "--runs", str(where.parent), "run.max_steps=42"]).code == 0
    lab.forget("other")
    return Finding(
        "F28",
        "wrong settings; a resume with another model, seed or batch",
        len(wrong) + 3,
        "exit 2 in under 2 s, or exit 4 with both values; more steps are allowed",
    )


def poison(values: dict[int, float]) -> None:
    """From now on the loss of these batches is multiplied by what stands behind them."""
    real = trainer.Trainer.train_step

    def train_step(self: trainer.Trainer, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        forward, factor = self.model.forward, values.get(self.guard.batch_of(step), 1.0)
        self.model.__dict__["forward"] = lambda *given: forward(*given) * factor
        try:
            return real(self, step, batch)
        finally:
            del self.model.__dict__["forward"]

    trainer.Trainer.train_step = train_step  # type: ignore[method-assign]


def spike_after_nan(lab: Laboratory, also: Callable[[], None] = lambda: None) -> bool:
    """Whether a tenfold loss is passed over after many a NaN."""

    def plant() -> None:
        also()
        poison({**dict.fromkeys(range(5, 30, 2), float("nan")), 30: 10.0})

    settings = ["guard.window=16", "guard.loss_deviations=10.0"]
    outcome = lab.start("spike", plant, settings=settings)
    assert outcome.code == 0, outcome.output
    skipped = [record.step for record in read_history(lab.path("spike")).skipped]
    lab.forget("spike")
    assert skipped[:13] == list(range(6, 31, 2)), skipped
    return 31 in skipped


def spikes(lab: Laboratory, times: int) -> Finding:
    assert spike_after_nan(lab)
    return Finding(
        "F26", "a tenfold loss, after NaN in every second loss", 1, "passed over: the NaN has not bent what is usual"
    )


def flushed_before_named(lab: Laboratory, also: Callable[[], None] = lambda: None) -> bool:
    """Whether all four files of every checkpoint are flushed before the rename, by the order of the calls."""
    log = lab.folder / "order"

    def plant() -> None:
        also()
        flush, rename = files.flush_file, Path.rename

        def noted(words: str) -> None:
            with log.open("a") as file:
                file.write(words + "\n")

        def flush_file(path: Path) -> None:
            noted(f"flush {path.name}")
            flush(path)

        def renamed(self: Path, target: Path) -> Path:
            noted("rename" if self.name.startswith(".step_") else "other")
            return rename(self, target)

        files.flush_file = flush_file
        Path.rename = renamed  # type: ignore[method-assign,assignment]

    outcome = lab.start("order", plant)
    assert outcome.code == 0, outcome.output
    lines, right = log.read_text().split("\n"), True
    log.unlink()
    lab.forget("order")
    for place, line in enumerate(lines):
        if line == "rename":
            before = {word.removeprefix("flush ") for word in lines[max(0, place - 4) : place]}
            right = right and before == set(FILES)
    return right


def order_of_saving(lab: Laboratory, times: int) -> Finding:
    assert flushed_before_named(lab)
    return Finding("F2", "the order of flushes and renames in a run's saves", 1, "all four files first, then the name")


# Planted faults: each must be seen


def planted(lab: Laboratory) -> Iterator[Finding]:
    """Faults put into regpt itself. An experiment that does not notice one is worth nothing."""

    def other_after_a_kill(plant: Callable[[], None]) -> bool:
        lab.start("planted", partial(at_call, trainer.Trainer, "train_step", 13, kill_myself))
        outcome = lab.resume("planted", plant)
        same = outcome.code == 0 and lab.fingerprint("planted") == lab.expected
        lab.forget("planted")
        return not same

    def moments() -> None:
        parallel.load_moments = lambda *given: None  # type: ignore[attr-defined]

    def position() -> None:
        guard.Guard.batch_of = lambda self, step: step + 1  # type: ignore[method-assign]

    def no_hash() -> None:
        store.find_faults = lambda path: iter(())

    def let_in() -> None:
        real = guard.Guard.reason

        def reason(self: guard.Guard, loss: float, norm: float) -> str:
            found = real(self, loss, norm)
            if found:
                self.losses.append(loss)
            return found

        guard.Guard.reason = reason  # type: ignore[method-assign]

    def rename_first() -> None:
        @contextmanager
        def new_directory(path: Path) -> Iterator[Path]:
            beside = path.with_name(f".{path.name}.partial")
            beside.mkdir(parents=True)
            yield beside
            beside.rename(path)
            for file in path.iterdir():
                files.flush_file(file)

        vars(store)["new_directory"] = new_directory

    seen = "seen: the run comes out otherwise"
    assert other_after_a_kill(moments), "not seen: moments not restored"
    yield Finding("planted", "the optimizer's moments are not restored", 1, seen)
    assert other_after_a_kill(position), "not seen: data position off by one"
    yield Finding("planted", "the data position is off by one after a resume", 1, seen)
    where = lab.copy("planted")
    flip(RunPaths(where).checkpoint(STEPS) / "model.safetensors")
    outcome = lab.resume("planted", no_hash)
    assert "earlier checkpoint" not in outcome.output, "the planted fault did nothing"
    assert "earlier checkpoint" in lab.resume("planted").output, "not seen: hashes not looked at"
    lab.forget("planted")
    yield Finding("planted", "hashes are not looked at", 1, "seen: a flipped bit is no longer named")
    assert not spike_after_nan(lab, let_in), "not seen: NaN let into the window"
    yield Finding("planted", "NaN is let into the guard's window", 1, "seen: a spike is no longer passed over")
    assert not flushed_before_named(lab, rename_first), "not seen: rename before flush"
    yield Finding("planted", "a checkpoint has its name before its files are flushed", 1, "seen: by the order of calls")


EXPERIMENTS: list[
    tuple[Callable[[Laboratory, int], Finding], int, int]
] = [  # (experiment, times, times when quick: the rest has tests)
    (kills_in_training, 100, 2),
    (kills_in_saving, 30, 2),
    (stops_at_steps, 8, 1),
    (sigterm_everywhere, 4, 2),
    (sigterm_twice, 1, 0),
    (sigterm_in_preparing, 1, 0),
    (read_when_asked, 1, 0),
    (slow_saves, 1, 0),
    (retention, 3, 0),
    (full_disk, 1, 0),
    (damaged_files, 20, 2),
    (all_damaged, 1, 1),
    (hostile_checkpoints, 1, 1),
    (clock_jumps, 1, 0),
    (two_writers, 1, 1),
    (older_format, 1, 1),
    (no_numbers, 1, 0),
    (spikes, 1, 0),
    (order_of_saving, 1, 0),
    (cut_journal, 1, 1),
    (closed_output, 1, 0),
    (troubled_journal, 1, 0),
    (failing_sink, 1, 0),
    (bad_recipes, 1, 1),
]
