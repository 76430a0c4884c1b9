"""Where the work of an ablation is done: in processes of this machine, several at a time."""

import queue
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from regpt.machine.env import with_cuda_devices

Result = TypeVar("Result")


class Executor(Protocol):
    """Calls tasks, which call regpt commands."""

    def run_all(
        self,
        tasks: Mapping[str, Callable[["Workers", str], Result]],
        finished: Callable[[str, Result], None],
        check_stop: Callable[[], None],
    ) -> dict[str, Result]:
        """Call every task with workers and a place of its own, and return the results by the names of the tasks.

        `finished` is called after each task, and `check_stop`, which raises to stop, a few times a second.
        """
        ...


@dataclass
class Workers:
    """Processes of this machine: one place for each that works at a time. A place is a card, or "" on a CPU."""

    places: Sequence[str]
    prefix: Sequence[str] = ()  # words before each command
    stopping: bool = False
    children: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)

    def stop(self) -> None:
        """Ask every running child to save a checkpoint and end."""
        self.stopping = True
        for child in list(self.children.values()):
            child.terminate()

    def call(self, words: Sequence[str], name: str, place: str) -> tuple[int, str]:
        """Run a regpt command; return its exit code and output.

        It has a process group of its own, so that Ctrl-C reaches it once, through `stop`.
        """
        child = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "regpt", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=with_cuda_devices(place),
            start_new_session=True,
        )
        self.children[name] = child
        if self.stopping:
            child.terminate()
        output, _ = child.communicate()
        del self.children[name]
        return child.returncode, output

    def run_all(
        self,
        tasks: Mapping[str, Callable[["Workers", str], Result]],
        finished: Callable[[str, Result], None],
        check_stop: Callable[[], None],
    ) -> dict[str, Result]:
        """Call the tasks in threads. After a stop or a failure the other children save a checkpoint and end."""
        free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for place in self.places:
            free.put(place)

        def run(task: Callable[[Workers, str], Result]) -> Result:
            place = free.get()
            try:
                return task(self, place)
            finally:
                free.put(place)

        with ThreadPoolExecutor(len(self.places)) as pool:
            futures: dict[Future[Result], str] = {}
            try:
                futures = {pool.submit(run, task): name for name, task in tasks.items()}
                waiting = set(futures)
                while waiting:
                    check_stop()
                    done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                    for future in done:
                        finished(futures[future], future.result())
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise
        return {name: future.result() for future, name in futures.items()}
