"""Inject bugs into regpt itself: an experiment that does not detect its bug proves nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from faults.kills import files_are_flushed_before_the_rename
from faults.laboratory import STEPS, Laboratory, Result, fingerprint, flip_bit
from faults.numerics import spike_after_nan_is_skipped
from faults.process import at_call, kill_this_process
from regpt.base import files
from regpt.checkpoint import store
from regpt.parallel import model as parallel_model
from regpt.tracking.layout import RunPaths
from regpt.tracking.rejections import Rejection
from regpt.training import guard, trainer


def differs_after_a_kill(lab: Laboratory, inject: Callable[[], None]) -> bool:
    """Return whether a run that is killed, and resumed with a bug, differs from the undisturbed run."""
    lab.start("bug", partial(at_call, trainer.Trainer, "train_step", 13, kill_this_process))
    outcome = lab.resume("bug", inject)
    same = outcome.code == 0 and fingerprint(lab.path("bug")) == lab.baseline.fingerprint
    lab.remove("bug")
    return not same


def bug_moments(lab: Laboratory, times: int) -> Result:
    def inject() -> None:
        parallel_model.load_moments = lambda *given: None  # type: ignore[attr-defined]

    assert differs_after_a_kill(lab, inject), "not detected: moments are not restored"
    return Result("bug: optimizer moments are not restored", 1, "detected by its result")


def bug_data_position(lab: Laboratory, times: int) -> Result:
    def inject() -> None:
        guard.Guard.batch_of = lambda self, step: step + 1  # type: ignore[method-assign]

    assert differs_after_a_kill(lab, inject), "not detected: data position off by one"
    action = "the data position is off by one after a resume"
    return Result(f"bug: {action}", 1, "detected by its result")


def bug_hashes(lab: Laboratory, times: int) -> Result:
    def inject() -> None:
        store.find_faults = lambda path: iter(())

    run_dir, earlier = lab.copy("bug"), f"step_{STEPS - 5:06d}"
    flip_bit(RunPaths(run_dir).checkpoint(STEPS) / "model.safetensors")
    assert earlier not in lab.resume("bug", inject).output, "the bug had no effect"
    assert earlier in lab.resume("bug").output, "not detected: hashes are not checked"
    lab.remove("bug")
    return Result("bug: hashes are not checked", 1, "detected by a flipped bit")


def bug_guard_window(lab: Laboratory, times: int) -> Result:
    def inject() -> None:
        real = guard.Guard.rejection

        def rejection(self: guard.Guard, loss: float, norm: float) -> Rejection | None:
            found = real(self, loss, norm)
            if found:
                self.losses.append(loss)
            return found

        guard.Guard.rejection = rejection  # type: ignore[method-assign]

    assert not spike_after_nan_is_skipped(lab, inject), "not detected: NaN in the guard's window"
    return Result("bug: NaN enters the guard's window", 1, "detected by a spike")


def bug_flush_order(lab: Laboratory, times: int) -> Result:
    def inject() -> None:
        @contextmanager
        def new_directory(path: Path) -> Iterator[Path]:
            staging = path.with_name(f".{path.name}.partial")
            staging.mkdir(parents=True)
            yield staging
            staging.rename(path)
            for file in path.iterdir():
                files.flush_file(file)

        vars(store)["new_directory"] = new_directory

    assert not files_are_flushed_before_the_rename(lab, inject), "not detected: rename before flush"
    action = "a checkpoint is renamed before its files are flushed"
    return Result(f"bug: {action}", 1, "detected by the order of calls")
