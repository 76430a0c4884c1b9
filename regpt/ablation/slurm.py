"""Run each task of an ablation as a Slurm job, through submitit.

A job's files are in FOLDER/jobs/NAME, which all machines must see. They hold the number of the job, so an ablation that
continues waits for a job that still exists instead of submitting another.
"""

import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regpt.ablation.workers import Result, Workers
from regpt.base.errors import UserError

JOBS_DIR = "jobs"
SUBMITTED = "_submitted.pkl"  # submitit names the file of a queued job by its number and this
POLL_SECONDS = 1.0
STOP_SECONDS = 60.0  # to save a checkpoint; Slurm sends its signal 90 s before it kills
# Slurm sends its signal to all processes of a job. The run's own must not die by it, but save and stop when asked.
WITHOUT_SIGNAL = ("sh", "-c", 'trap "" USR2; exec "$@"', "sh")
TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?")


@dataclass(frozen=True)
class Failure:
    """The error of a task, as a job returns it."""

    problem: str
    fix: str


@dataclass
class Job:
    """A task as a Slurm job. At its time limit or when preempted, it saves a checkpoint and is queued again."""

    task: Callable[[Workers, str], Any]
    workers: Workers | None = field(default=None, init=False)

    def __call__(self) -> Any:
        self.workers = Workers([""], WITHOUT_SIGNAL)
        try:
            return self.task(self.workers, "")
        except UserError as error:
            return Failure(error.problem, error.fix)

    def checkpoint(self) -> Any:
        """Stop the run, and return what submitit queues again. submitit calls it in a signal handler."""
        from submitit.helpers import DelayedSubmission

        if self.workers is not None:
            self.workers.stop()
            until = time.monotonic() + STOP_SECONDS
            while any(child.poll() is None for child in self.workers.children.values()) and time.monotonic() < until:
                time.sleep(0.1)
        return DelayedSubmission(Job(self.task))


@dataclass(frozen=True)
class SlurmJobs:
    """The queue of a Slurm cluster."""

    folder: Path  # of the ablation
    options: Mapping[str, Any]  # of submitit's SlurmExecutor
    jobs: int  # queued at a time; 0: all

    def run_all(
        self,
        tasks: Mapping[str, Callable[[Workers, str], Result]],
        finished: Callable[[str, Result], None],
        check_stop: Callable[[], None],
    ) -> dict[str, Result]:
        """Queue the tasks, or find the jobs that an earlier call queued, and wait. A stop leaves jobs in the queue."""
        waiting, queued, results = dict(tasks), dict[str, Any](), dict[str, Result]()
        try:
            while waiting or queued:
                check_stop()
                while waiting and (not self.jobs or len(queued) < self.jobs):
                    name = next(iter(waiting))
                    queued[name] = self.queued_job(name) or self.submit(name, waiting[name])
                    del waiting[name]
                for name in [name for name, job in queued.items() if job.done()]:
                    results[name] = result_of(queued.pop(name), name)
                    finished(name, results[name])
                time.sleep(POLL_SECONDS if queued else 0.0)
        except BaseException:
            if numbers := ", ".join(job.job_id for job in queued.values()):
                print(f"jobs stay in the queue: {numbers}; `scancel` cancels them", file=sys.stderr)
            raise
        return results

    def queued_job(self, name: str) -> Any:
        """Return the newest job of a task if it waits or runs; otherwise None."""
        import_submitit()
        from submitit import SlurmJob

        files = sorted((self.folder / JOBS_DIR / name).glob(f"*{SUBMITTED}"), key=lambda path: path.stat().st_mtime)
        if not files:
            return None
        job: Any = SlurmJob(folder=files[-1].parent, job_id=files[-1].name.removesuffix(SUBMITTED))
        is_known = job.watcher.get_state(job.job_id, mode="force") != "UNKNOWN"
        return job if is_known and not job.done() else None

    def submit(self, name: str, task: Callable[[Workers, str], Any]) -> Any:
        """Queue a task. Raises UserError where Slurm refuses it."""
        submitit = import_submitit()
        try:
            executor = submitit.SlurmExecutor(self.folder / JOBS_DIR / name)
            executor.update_parameters(job_name=f"regpt-{name}", **self.options)
            return executor.submit(Job(task))
        except ValueError as error:
            fix = "use the parameters of submitit's SlurmExecutor"
            raise UserError(f"--option: {str(error).splitlines()[0]}", fix) from None
        except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError) as error:
            raise UserError(f"Slurm refused the job of {name}: {last_line(error)}", "change it with --option") from None


def result_of(job: Any, name: str) -> Any:
    """Return the result of a job that has ended. Raises UserError for a failure, or where the job left no result."""
    submitit = import_submitit()
    try:
        result = job.result()
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
        raise UserError(
            f"job {job.job_id} of {name} ended without a result ({job.state}): {last_line(error)}",
            f"see {job.paths.stderr}; the same command submits it again",
        ) from None
    if isinstance(result, Failure):
        raise UserError(result.problem, result.fix)
    return result


def slurm_options(words: Sequence[tuple[str, str | int]]) -> dict[str, Any]:
    """Return submitit's parameters for the options of the command line: partition, time, gpus, setup and any other.

    Raises UserError without a time limit, or for one that is not a time.
    """
    options: dict[str, Any] = {}
    for key, value in words:
        if key == "setup":  # a line of the shell; may be given several times
            options.setdefault("setup", []).append(str(value))
        else:
            options["gpus_per_node" if key == "gpus" else key] = value
    if "time" not in options:
        raise UserError("--slurm needs the time limit of a job", "add for example --option time=04:00:00")
    return {**options, "time": minutes(options["time"])}


def minutes(limit: str | int) -> int:
    """Return Slurm's time limit in minutes: '90', '04:00:00' or '1-12:00'. Raises UserError for another form."""
    if isinstance(limit, int):
        return limit
    if not (found := TIME.fullmatch(limit)):
        raise UserError(f"--option time={limit} is not a time", "write hours:minutes:seconds, as in 04:00:00")
    days, hours, rest, seconds = (int(part or 0) for part in found.groups())
    return max(1, 1440 * days + 60 * hours + rest + (seconds > 0))


def last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[-1]


def import_submitit() -> Any:
    """Return the package. Raises UserError if it is missing, or if this machine is not part of a cluster."""
    try:
        import submitit
    except ImportError:
        raise UserError("submitit is not installed", "pip install 'regpt[slurm]'") from None
    if shutil.which("srun") is None:
        raise UserError("--slurm: this machine has no srun", "run the command on a login node of the cluster")
    return submitit
