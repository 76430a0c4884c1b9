"""Run a few small steps of a recipe with its own model, data and machine, in a temporary folder.

python -m regpt.doctor.rehearsal RECIPE.toml RUN STEP     trains until it kills itself after STEP
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from subprocess import PIPE

import psutil

from regpt.base.errors import DONE, UserError
from regpt.base.files import write_text
from regpt.checkpoint import store
from regpt.console.training import Console, TrainingConsole, quiet_console
from regpt.data.shards import read_manifest
from regpt.distributed.signals import StopRequested
from regpt.machine.device import Device, open_device
from regpt.machine.oom import release_memory
from regpt.plan.measure_cpu import measured_rates
from regpt.plan.run_time import Rates
from regpt.preparation.existing import with_fixed_settings
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe, to_toml
from regpt.tracking.journal import StepRecord
from regpt.training.start import TrainResult, resume_training, start_training

STEPS = 4
SAVED_AT = 2
KILLED_AT = 3
STEP_SECONDS = 3.0  # limit for a step without a GPU; the micro-batch is reduced to meet it
HELLASWAG_ITEMS = 8
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows: SIGTERM also ends a process at once
KILLED = int(KILL) if os.name == "nt" else -int(KILL)  # exit code of a killed process
CHILD_TIMEOUT = 300  # seconds
SAVE_TIMEOUT = 30  # seconds


class Rehearsal:
    """The runs that the checks examine. Each is made when a check first needs it."""

    def __init__(self, recipe: Recipe, folder: Path, ranks: int = 1) -> None:
        self.recipe, self.folder, self.ranks = recipe, folder, ranks
        self.completed: set[str] = set()  # names of runs
        self.failed: dict[str, Exception] = {}  # by name of the run

    @cached_property
    def device(self) -> Device:
        return open_device(self.recipe.run)

    @cached_property
    def small(self) -> Recipe:
        """The recipe with few and small steps and short evaluations; model, optimizer and data are unchanged."""
        recipe = self.recipe
        micro_batch = self.quick_micro_batch()
        accumulation = max(self.ranks, min(2, recipe.batch_windows // micro_batch))
        evaluation = recipe.evaluation
        return replace(
            recipe,
            name="rehearsal",
            run=replace(recipe.run, max_steps=STEPS, sinks="", time_limit=""),
            optimizer=replace(recipe.optimizer, cooldown_steps=0, adam_cooldown_steps=0),
            data=replace(
                recipe.data,
                micro_batch=micro_batch,
                total_batch_tokens=micro_batch * recipe.model.block_size * accumulation,
                batch_ramp="",
            ),
            evaluation=replace(
                evaluation,
                validation_every=0,
                validation_batches=1,
                validation_batch_size=min(4, evaluation.validation_batch_size),
                hellaswag_every=STEPS if evaluation.hellaswag_every else 0,
                hellaswag_items=HELLASWAG_ITEMS,
                sample_every=0,
                sample_count=1,
                sample_tokens=min(24, evaluation.sample_tokens),
            ),
            checkpoint=replace(recipe.checkpoint, every=SAVED_AT, keep_last=0),
        )

    def quick_micro_batch(self) -> int:
        """Return the recipe's micro-batch on a GPU, to test its memory; elsewhere the largest with short steps."""
        configured = self.recipe.data.micro_batch
        if self.device.torch_device.type == "cuda":
            return configured

        def seconds(size: int) -> float:
            tokens = 2 * size * self.recipe.model.block_size
            data = replace(self.recipe.data, micro_batch=size, total_batch_tokens=tokens, batch_ramp="")
            return self.rates.step_seconds(replace(self.recipe, data=data))

        return max((size for size in range(1, configured + 1) if seconds(size) <= STEP_SECONDS), default=1)

    @cached_property
    def rates(self) -> Rates:
        return measured_rates(self.recipe, self.device, seconds=1.0)

    def token_time_ratio(self) -> float:
        """Return the time per token of the recipe's own steps, relative to the rehearsal's steps."""
        if self.small.data.micro_batch == self.recipe.data.micro_batch:
            return 1.0
        real, small = (self.rates.step_seconds(r) / r.data.total_batch_tokens for r in (self.recipe, self.small))
        return real / small

    # Runs

    @property
    def run(self) -> Path:
        """The run directory of an uninterrupted run, trained in this process."""
        return self.make_once(
            "straight", lambda path: self.finish(start_training(self.small, path, handle_signals=True))
        )

    @property
    def killed(self) -> Path:
        """The directory of a run whose process was killed after step KILLED_AT, with an earlier checkpoint."""
        arguments = ["-m", "regpt.doctor.rehearsal", str(self.recipe_file)]
        return self.make_once("killed", lambda path: self.run_child(*arguments, str(path), str(KILLED_AT), code=KILLED))

    @property
    def resumed(self) -> Path:
        """The directory of a copy of the killed run, resumed in this process."""

        def make(path: Path) -> None:
            shutil.copytree(self.killed, path)
            self.finish(resume_training(path, handle_signals=True))

        return self.make_once("resumed", make)

    @property
    def on_ranks(self) -> Path:
        """The directory of a run trained by torchrun on several ranks."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.ranks}", "-m", "regpt"]
        arguments = ["train", str(self.recipe_file), "--runs", str(self.folder), "--name", "ranks"]
        return self.make_once("ranks", lambda path: self.run_child(*torchrun, *arguments, code=DONE))

    def make_once(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the run directory of that name; make the run if needed. Raise again the error of a failed attempt."""
        if name in self.failed:
            raise self.failed[name]
        path = self.folder / name
        if name not in self.completed:
            try:
                make(path)
            except StopRequested:
                raise
            except Exception as error:  # raised again for every check that needs this run
                self.failed[name] = error
                raise
            self.completed.add(name)
        return path

    def finish(self, result: TrainResult) -> None:
        """Free the memory of a finished training. Raises StopRequested if a signal stopped it."""
        release_memory(self.device.torch_device.type, self.device.compiled)
        if result.stopped_by:
            raise StopRequested(result.stopped_by, result.exit_code)

    @cached_property
    def recipe_file(self) -> Path:
        path = self.folder / "rehearsal.toml"
        manifest = read_manifest(self.small.data.directory)
        write_text(path, to_toml(with_fixed_settings(self.small, manifest)))
        return path

    def run_child(self, *arguments: str, code: int) -> None:
        """Run Python with these arguments. Raises UserError with its last line if its exit code is not `code`."""
        with subprocess.Popen([sys.executable, *arguments], stdout=PIPE, stderr=PIPE, text=True) as process:
            try:
                printed, errors = process.communicate(timeout=CHILD_TIMEOUT)
            except subprocess.TimeoutExpired:
                raise UserError(
                    f"a process of the rehearsal did not finish within {CHILD_TIMEOUT} s",
                    f"try it: python {' '.join(arguments)}",
                ) from None
            finally:
                kill_tree(process)
        if process.returncode != code:
            last = (errors.strip() or printed.strip() or "no output").splitlines()[-1]
            command = f"python {' '.join(arguments)}"
            raise UserError(
                f"a process of the rehearsal exited with {process.returncode}: {last}", f"try it: {command}"
            )


def kill_tree(process: "subprocess.Popen[str]") -> None:
    """Kill a process and its descendants; torchrun's ranks would survive it otherwise."""
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


class KillAtStep(Console):
    """A console that kills its process after a step, once an earlier checkpoint is complete."""

    def __init__(self, run: Path, at: int) -> None:
        super().__init__(quiet_console().terminal)
        self.run, self.at = run, at

    def training_console(self, recipe: Recipe, device: Device, ranks: int) -> TrainingConsole:
        console = super().training_console(recipe, device, ranks)
        console.step = self.kill_at_step  # type: ignore[method-assign]
        return console

    def kill_at_step(self, record: StepRecord) -> None:
        if record.step == self.at:
            until = time.monotonic() + SAVE_TIMEOUT
            while not store.list_checkpoints(self.run) and time.monotonic() < until:
                time.sleep(0.01)
            os.kill(os.getpid(), KILL)


def main() -> int:
    file, run, step = sys.argv[1:]
    killer = KillAtStep(Path(run), int(step))
    return start_training(load_recipe(file), Path(run), console=killer, handle_signals=True).exit_code


if __name__ == "__main__":
    sys.exit(main())
