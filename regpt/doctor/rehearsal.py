"""A recipe's rehearsal: the same model, data and machine, a few small steps, in a folder that goes afterwards.

python -m regpt.doctor.rehearsal RECIPE.toml RUN STEP     trains, and is killed after that step
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
from regpt.base.recipe import Recipe
from regpt.base.settings import load_recipe, to_toml
from regpt.checkpoint import store
from regpt.distributed.device import Device, open_device
from regpt.distributed.signals import StopRequested
from regpt.plan.measure_cpu import Rates, measured_rates
from regpt.tracking.journal import StepRecord
from regpt.train.console import Console, quiet_console
from regpt.train.oom import release_memory
from regpt.train.start import TrainResult, resume_training, start_training

STEPS = 4
SAVED_AT = 2
KILLED_AT = 3
STEP_SECONDS = 3.0  # that a step may take where the machine is no GPU; the micro-batch is cut until it does
ITEMS = 8  # of HellaSwag
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows SIGTERM ends a process as suddenly
KILLED = int(KILL) if os.name == "nt" else -int(KILL)  # exit code of a process that it ended
PATIENCE = 300  # seconds that a child may take
SAVING_PATIENCE = 30  # ... and its checkpoint


class Rehearsal:
    """What the checks look at; each part is made when the first of them asks for it."""

    def __init__(self, recipe: Recipe, folder: Path, ranks: int = 1) -> None:
        self.recipe, self.folder, self.ranks = recipe, folder, ranks
        self.made: set[str] = set()
        self.failed: dict[str, Exception] = {}  # what making a run raised

    @cached_property
    def device(self) -> Device:
        return open_device(self.recipe.run)

    @cached_property
    def small(self) -> Recipe:
        """The recipe with few and small steps, and little to look at. Model, optimizer and data are its own."""
        recipe = self.recipe
        micro_batch = self.quick_micro_batch()
        accumulation = max(self.ranks, min(2, recipe.batch_windows // micro_batch))
        asked = recipe.evaluation
        return replace(
            recipe,
            name="rehearsal",
            run=replace(recipe.run, max_steps=STEPS, sinks="", time_limit=""),
            data=replace(
                recipe.data,
                micro_batch=micro_batch,
                total_batch_tokens=micro_batch * recipe.model.block_size * accumulation,
            ),
            evaluation=replace(
                asked,
                validation_every=0,
                validation_batches=1,
                validation_batch_size=min(4, asked.validation_batch_size),
                hellaswag_every=STEPS if asked.hellaswag_every else 0,
                hellaswag_items=ITEMS,
                sample_every=0,
                sample_count=1,
                sample_tokens=min(24, asked.sample_tokens),
            ),
            checkpoint=replace(recipe.checkpoint, every=SAVED_AT, keep_last=0),
        )

    def quick_micro_batch(self) -> int:
        """The recipe's own on a GPU, whose memory is on trial; elsewhere so large that steps are short."""
        asked = self.recipe.data.micro_batch
        if self.device.torch_device.type == "cuda":
            return asked

        def seconds(size: int) -> float:
            tokens = 2 * size * self.recipe.model.block_size
            cut = replace(self.recipe.data, micro_batch=size, total_batch_tokens=tokens)
            return self.rates.step_seconds(replace(self.recipe, data=cut))

        return max((size for size in range(1, asked + 1) if seconds(size) <= STEP_SECONDS), default=1)

    @cached_property
    def rates(self) -> Rates:
        return measured_rates(self.recipe, self.device, seconds=1.0)

    def tokens_take(self) -> float:
        """How many times as long a token takes in the recipe's own steps as in the rehearsal's."""
        if self.small.data.micro_batch == self.recipe.data.micro_batch:
            return 1.0
        real, small = (self.rates.step_seconds(r) / r.data.total_batch_tokens for r in (self.recipe, self.small))
        return real / small

    # Runs

    @property
    def run(self) -> Path:
        """Trained from the first step to the last, in this process."""
        return self.once("straight", lambda path: self.ended(start_training(self.small, path, handle_signals=True)))

    @property
    def killed(self) -> Path:
        """Begun by another process, which was killed after a step, with a checkpoint before it."""
        words = ["-m", "regpt.doctor.rehearsal", str(self.recipe_file)]
        return self.once("killed", lambda path: self.child(*words, str(path), str(KILLED_AT), code=KILLED))

    @property
    def resumed(self) -> Path:
        """A copy of the killed one, gone on with in this process."""

        def make(path: Path) -> None:
            shutil.copytree(self.killed, path)
            self.ended(resume_training(path, handle_signals=True))

        return self.once("resumed", make)

    @property
    def on_ranks(self) -> Path:
        """Trained by torchrun on several ranks."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.ranks}", "-m", "regpt"]
        words = ["train", str(self.recipe_file), "--runs", str(self.folder), "--name", "ranks"]
        return self.once("ranks", lambda path: self.child(*torchrun, *words, code=DONE))

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The run of that name, made where it is not there yet. What its making raised is raised again."""
        if name in self.failed:
            raise self.failed[name]
        path = self.folder / name
        if name not in self.made:
            try:
                make(path)
            except StopRequested:
                raise
            except Exception as error:  # raised again for whoever needs that run
                self.failed[name] = error
                raise
            self.made.add(name)
        return path

    def ended(self, result: TrainResult) -> None:
        """Free the memory of a training that has ended. Raises StopRequested where a signal stopped it."""
        release_memory(self.device)
        if result.stopped_by:
            raise StopRequested(result.stopped_by, result.exit_code)

    @cached_property
    def recipe_file(self) -> Path:
        path = self.folder / "rehearsal.toml"
        write_text(path, to_toml(self.small))
        return path

    def child(self, *words: str, code: int) -> None:
        """Run Python with these words. Raises UserError with its last words where it ends otherwise than by `code`."""
        with subprocess.Popen([sys.executable, *words], stdout=PIPE, stderr=PIPE, text=True) as process:
            try:
                printed, errors = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                raise UserError(
                    f"a process of the rehearsal hung for {PATIENCE} s", f"try it: python {' '.join(words)}"
                ) from None
            finally:
                end(process)
        if process.returncode != code:
            last = (errors.strip() or printed.strip() or "it said nothing").splitlines()[-1]
            raise UserError(f"a process of the rehearsal ended with {process.returncode}: {last}", "mend that first")


def end(process: "subprocess.Popen[str]") -> None:
    """With all that it has started: torchrun's ranks would outlive it."""
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


class KillAtStep(Console):
    """A console that kills its process after a step, once a checkpoint of an earlier one is there."""

    def __init__(self, run: Path, at: int) -> None:
        super().__init__(quiet_console().terminal)
        self.run, self.at = run, at

    def step(self, record: StepRecord) -> None:
        if record.step == self.at:
            until = time.monotonic() + SAVING_PATIENCE
            while not store.list_checkpoints(self.run) and time.monotonic() < until:
                time.sleep(0.01)
            os.kill(os.getpid(), KILL)


def main() -> int:
    file, run, step = sys.argv[1:]
    killer = KillAtStep(Path(run), int(step))
    return start_training(load_recipe(file), Path(run), console=killer, handle_signals=True).exit_code


if __name__ == "__main__":
    sys.exit(main())
