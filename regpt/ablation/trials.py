"""Run the trials of an ablation: each an ordinary run, trained or resumed by a regpt command."""

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from regpt.ablation.design import RUNS_DIR, Design, Trial
from regpt.ablation.workers import Executor, Workers
from regpt.base.errors import LOCKED, LockedError, UserError
from regpt.filesystem.locks import holder_of, locked
from regpt.tracking.journal import RunState
from regpt.tracking.layout import RunPaths, step_directories
from regpt.tracking.run import Run, open_run

LOCK_POLL_SECONDS = 2.0


def run_trials(
    folder: Path,
    design: Design,
    trials: Sequence[Trial],
    best: dict[str, str],
    executor: Executor,
    finished: Callable[[Trial, Run], None],
    check_stop: Callable[[], None],
) -> dict[Trial, Run]:
    """Train or resume every trial to its end, and return the runs. `best` holds the tuned value of each arm.

    `finished` is called after each trial, and `check_stop`, which raises to stop, a few times a second.

    Raises UserError with the last line of a run that fails.
    """
    runs: dict[Trial, Run] = {}

    def done(trial: Trial, run: Run) -> None:
        runs[trial] = run
        finished(trial, run)

    missing: dict[str, Trial] = {}
    for trial in trials:
        if run := finished_run(folder / RUNS_DIR / trial.run_name):
            done(trial, run)
        else:
            missing[trial.run_name] = trial
    tasks = {
        name: partial(run_trial, folder, design, trial, best.get(design.tuned_arm(trial.arm), ""))
        for name, trial in missing.items()
    }
    executor.run_all(tasks, lambda name, run: done(missing[name], run), check_stop)
    return runs


def finished_run(path: Path) -> Run | None:
    """Return the run at a path if it has finished."""
    if RunPaths(path).journal.exists() and (run := open_run(path)).history.status is RunState.FINISHED:
        return run
    return None


def run_trial(folder: Path, design: Design, trial: Trial, best: str, workers: Workers, place: str) -> Run:
    """Train a run to its end, or resume it where an earlier call left it."""
    path = folder / RUNS_DIR / trial.run_name
    while True:
        if workers.stopping:
            raise UserError(f"{path}: was not started", "give the same command again")
        if run := finished_run(path):
            return run
        words = ["resume", str(path)]
        discard_without_checkpoint(path)
        if not RunPaths(path).journal.exists():
            named = ["--runs", str(folder / RUNS_DIR), "--name", trial.run_name]
            words = ["train", design.recipe, *named, *design.words_of(trial, best)]
        code, output = workers.call(words, trial.run_name, place)
        if code == LOCKED or (code and is_trained_elsewhere(path)):
            time.sleep(LOCK_POLL_SECONDS)
        elif code and not workers.stopping:
            last = output.strip().splitlines()[-1:] or [f"exit code {code}"]
            raise UserError(f"run {trial.run_name} failed: {last[0]}", f"see: regpt {' '.join(words)}")


def discard_without_checkpoint(path: Path) -> None:
    """Delete a run that was killed before its first checkpoint, which can only be trained from the start."""
    paths = RunPaths(path)
    if not path.exists() or step_directories(paths.checkpoints):
        return
    try:
        with locked(paths.lock):  # nobody trains it any more
            is_empty = not step_directories(paths.checkpoints)
    except LockedError:
        return
    if is_empty:
        shutil.rmtree(path)


def is_trained_elsewhere(path: Path) -> bool:
    """Return whether another process trains a run: a child of an ablation that was killed."""
    holder = holder_of(RunPaths(path).lock)
    return holder is not None and holder.is_alive is not False


def best_values(runs: dict[Trial, Run]) -> dict[str, str]:
    """Return for each arm the tuned value whose run has the lowest last validation loss; the first of equal ones."""
    best: dict[str, str] = {}
    losses: dict[str, float] = {}
    for trial, run in runs.items():
        loss = run.validation_loss
        if loss is not None and loss < losses.get(trial.arm, float("inf")):
            best[trial.arm], losses[trial.arm] = trial.value, loss
    return best
