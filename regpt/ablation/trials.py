"""Run the trials of an ablation: each an ordinary run in a process of its own, several at a time."""

import queue
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from regpt.ablation.design import RUNS_DIR, Design, Trial
from regpt.base.errors import LOCKED, UserError
from regpt.machine.env import with_cuda_devices
from regpt.tracking.journal import RunState
from regpt.tracking.layout import RunPaths
from regpt.tracking.run import Run, open_run

LOCK_POLL_SECONDS = 2.0
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


@dataclass
class Workers:
    """Where runs are trained: one place for each that trains at a time. A place is a card, or "" on a CPU."""

    places: Sequence[str]
    stopping: bool = False
    children: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)

    def stop(self) -> None:
        """Ask every running child to save a checkpoint and end."""
        self.stopping = True
        for child in list(self.children.values()):
            child.terminate()


def run_trials(
    folder: Path,
    design: Design,
    trials: Sequence[Trial],
    best: dict[str, str],
    workers: Workers,
    finished: Callable[[Trial, Run], None],
    check_stop: Callable[[], None],
) -> dict[Trial, Run]:
    """Train or resume every trial to its end, and return the runs. `best` holds the tuned value of each arm.

    `finished` is called after each trial, and `check_stop`, which raises to stop, a few times a second. After a stop or
    a failure the other runs save a checkpoint and end. Raises UserError with the last line of a run that fails.
    """
    tasks = {
        trial: partial(run_trial, folder, design, trial, best.get(design.tuned_arm(trial.arm), ""), workers)
        for trial in trials
    }
    return in_places(workers, tasks, finished, check_stop)


def in_places(
    workers: Workers,
    tasks: Mapping[Key, Callable[[str], Result]],
    finished: Callable[[Key, Result], None],
    check_stop: Callable[[], None],
) -> dict[Key, Result]:
    """Call every task with a place that no other task has meanwhile, and return the results."""
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for place in workers.places:
        free.put(place)

    def run(task: Callable[[str], Result]) -> Result:
        place = free.get()
        try:
            return task(place)
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(workers.places)) as pool:
        futures: dict[Future[Result], Key] = {}
        try:
            futures = {pool.submit(run, task): key for key, task in tasks.items()}
            waiting = set(futures)
            while waiting:
                check_stop()
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in done:
                    finished(futures[future], future.result())
        except BaseException:
            workers.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return {key: future.result() for future, key in futures.items()}


def run_trial(folder: Path, design: Design, trial: Trial, best: str, workers: Workers, place: str) -> Run:
    """Train a run to its end, or resume it where an earlier call left it."""
    path = folder / RUNS_DIR / trial.run_name
    while True:
        if workers.stopping:
            raise UserError(f"{path}: was not started", "give the same command again")
        started = RunPaths(path).journal.exists()
        if started and (run := open_run(path)).history.status is RunState.FINISHED:
            return run
        words = ["resume", str(path)]
        if not started:
            named = ["--runs", str(folder / RUNS_DIR), "--name", trial.run_name]
            words = ["train", design.recipe, *named, *design.words_of(trial, best)]
        code, output = call(words, trial.run_name, place, workers)
        if code == LOCKED:  # by a child of an ablation that was killed, which still trains
            time.sleep(LOCK_POLL_SECONDS)
        elif code and not workers.stopping:
            last = output.strip().splitlines()[-1:] or [f"exit code {code}"]
            raise UserError(f"run {trial.run_name} failed: {last[0]}", f"see: regpt {' '.join(words)}")


def call(words: Sequence[str], name: str, place: str, workers: Workers) -> tuple[int, str]:
    """Run a regpt command in a process group of its own, so that Ctrl-C reaches it once, through `Workers.stop`."""
    child = subprocess.Popen(
        [sys.executable, "-m", "regpt", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=with_cuda_devices(place),
        start_new_session=True,
    )
    workers.children[name] = child
    if workers.stopping:
        child.terminate()
    output, _ = child.communicate()
    del workers.children[name]
    return child.returncode, output


def best_values(runs: dict[Trial, Run]) -> dict[str, str]:
    """Return for each arm the tuned value whose run has the lowest last validation loss; the first of equal ones."""
    best: dict[str, str] = {}
    losses: dict[str, float] = {}
    for trial, run in runs.items():
        loss = run.validation_loss
        if loss is not None and loss < losses.get(trial.arm, float("inf")):
            best[trial.arm], losses[trial.arm] = trial.value, loss
    return best
