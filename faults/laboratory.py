"""A laboratory: a tiny recipe, its data, an undisturbed run, and the tools to disturb copies of it."""

import hashlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from faults.process import Outcome, checkpoint_folders, run
from regpt.checkpoint import store
from regpt.tracking.journal import read_history
from regpt.tracking.layout import RunPaths

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
n_head = 2
n_embd = 16
block_size = 64
mlp_hidden = 40
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


CHECKPOINT_FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@dataclass(frozen=True)
class Result:
    """One row of the table in docs/faults.md."""

    action: str
    times: int
    outcome: str


@dataclass(frozen=True)
class Experiment:
    """A function that disturbs runs a number of times and asserts what must hold afterwards."""

    run: "Callable[[Laboratory, int], Result]"
    times: int  # repetitions for docs/faults.md
    quick_times: int = 1  # repetitions in the short form
    quick: bool = False  # part of the short form of `make test`

    @property
    def name(self) -> str:
        return self.run.__name__


class Baseline:
    """A folder with the recipe, its data and an undisturbed run. Laboratories share it and do not change it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "tiny.toml"
        if not self.recipe.exists():
            self.build()
        record = json.loads((folder / "baseline.json").read_text())
        self.seconds, self.fingerprint = float(record["seconds"]), str(record["fingerprint"])

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "whole"

    def build(self) -> None:
        """Prepare the data and train the undisturbed run."""
        (self.folder / "text").mkdir(parents=True)
        text = Path(hashlib.__file__).read_text(encoding="utf-8") + Path(shutil.__file__).read_text(encoding="utf-8")
        (self.folder / "text" / "a.txt").write_text(text[:60_000], encoding="utf-8")
        recipe = self.folder / "building.toml"
        recipe.write_text(RECIPE.format(folder=self.folder))
        prepared = run(["prepare", str(recipe)])
        assert prepared.code == 0, prepared.output
        trained = run(["train", str(recipe), "--runs", str(self.folder / "runs"), "--name", "whole"])
        assert trained.code == 0, trained.output
        record = {"seconds": trained.seconds, "fingerprint": fingerprint(self.run)}
        (self.folder / "baseline.json").write_text(json.dumps(record))
        recipe.rename(self.recipe)


class Laboratory:
    """A folder for disturbed runs of the baseline's recipe."""

    def __init__(self, baseline: Baseline, folder: Path, seed: int = 1) -> None:
        self.baseline, self.folder, self.random = baseline, folder, random.Random(seed)
        self.seconds, self.runs = baseline.seconds, folder / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self.runs / name

    def start(
        self,
        name: str,
        inject: Callable[[], None] | None = None,
        kill_after: float | None = None,
        settings: Sequence[str] = (),
    ) -> Outcome:
        """Train a new run; see `faults.process.run` for the arguments."""
        arguments = ["train", str(self.baseline.recipe), "--runs", str(self.runs), "--name", name]
        return run([*arguments, *settings], inject, kill_after)

    def resume(self, name: str, inject: Callable[[], None] | None = None, kill_after: float | None = None) -> Outcome:
        """Resume a run; see `faults.process.run` for the arguments."""
        return run(["resume", name, "--runs", str(self.runs)], inject, kill_after)

    def copy(self, name: str) -> Path:
        """Copy the undisturbed run under a new name and return its path."""
        shutil.copytree(self.baseline.run, self.path(name))
        return self.path(name)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.path(name))

    def assert_same_as_baseline(self, name: str) -> None:
        """Assert that a finished run is bit-identical to the undisturbed one and left no temporary files."""
        assert fingerprint(self.path(name)) == self.baseline.fingerprint, f"{name} differs from the undisturbed run"
        left = [path.name for path in checkpoint_folders(self.path(name)) if path.name.startswith(".")]
        assert not left, f"left behind: {left}"

    def finish(self, name: str) -> Outcome:
        """Resume a run once, with no other action, and assert that it ends like the undisturbed one."""
        outcome = self.resume(name)
        assert outcome.code == 0, outcome.output
        self.assert_same_as_baseline(name)
        return outcome


def fingerprint(run_dir: Path) -> str:
    """Return a SHA-256 of the last weights and optimizer state, all steps, validations and samples."""
    digest = hashlib.sha256()
    last = RunPaths(run_dir).checkpoint(STEPS)
    for file in ("model.safetensors", "optimizer.safetensors"):
        with safe_open(last / file, "np") as tensors:
            for key in sorted(tensors.keys()):
                digest.update(key.encode() + tensors.get_tensor(key).tobytes())
    history = read_history(run_dir)
    assert [step.step for step in history.steps] == list(range(1, STEPS + 1)), "a step is missing or duplicated"
    for step in history.steps:
        digest.update(f"{step.loss!r} {step.gradient_norm!r} {step.batch}".encode())
    for validation in history.validations:
        digest.update(f"{validation.step} {validation.loss!r}".encode())
    for sample in history.samples:
        digest.update("".join(sample.texts).encode())
    return digest.hexdigest()


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest intact checkpoint; 0 if no checkpoint is intact."""
    intact = [step for step, path in store.list_checkpoints(run_dir) if next(store.find_faults(path), None) is None]
    return max(intact, default=0)


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def send(number: signal.Signals) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), number)
