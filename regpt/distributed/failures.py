"""Loss of a rank: a broken connection becomes a clear error, and the first failure decides every rank's exit code."""

import contextlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store  # torch.distributed.Store, which has no types

from regpt.base.errors import DONE, INTERRUPTED, RANKS, USAGE, RanksError, UserError
from regpt.distributed.errors import OtherRankError, RankFailure
from regpt.distributed.signals import StopRequested

FAILURE_KEY = "failure"  # in the store: why the first rank failed
ENDED_KEY = "ended"  # in the persistent store: the exit code of a run that must not be restarted
POLL_SECONDS = 0.01, 0.2  # between two polls of the store: the first pause and the longest
FAILURE_WAIT_SECONDS = 3.0  # for the other rank's own error, after the connection to it broke
UNEXPECTED = 1  # the exit code of an error that is not a user's


class RankConnections:
    """This process's connections to the other ranks, and the errors that their loss raises."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        store: Store | None = None,
        timeout: float = 600,
        persistent_store: Store | None = None,
        cpu_group: dist.ProcessGroup | None = None,
    ) -> None:
        """Hold connections that are open already; without arguments, a single rank that needs none.

        Args:
            rank: this process's number, from 0
            size: number of ranks
            store: for messages between ranks
            timeout: seconds after which a rank that does not answer is lost
            persistent_store: keeps its values while torchrun restarts ranks; None if it does not restart them
            cpu_group: gloo's process group, where the default one is NCCL
        """
        self.rank, self.size, self.store, self.timeout = rank, size, store, timeout
        self.persistent_store, self.cpu_group = persistent_store, cpu_group
        self.common_error: UserError | None = None  # the last one that rank 0 shared and every rank raised

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes all files except other ranks' parts of a checkpoint."""
        return self.rank == 0

    @contextmanager
    def connection_errors(self) -> Iterator[None]:
        """Within the block, turn a broken connection or a timeout into a UserError that says so."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and is_connection_error(error):
                raise self.connection_error(error) from error
            raise

    def connection_error(self, error: BaseException) -> UserError:
        """Return what a broken connection means: the other rank's own failure if it published one, else its loss."""
        until = time.monotonic() + FAILURE_WAIT_SECONDS
        while time.monotonic() < until:
            try:
                if self.store is not None and self.store.check([FAILURE_KEY]):
                    return self.other_rank_error()
            except RuntimeError:
                break  # the store is gone, too
            time.sleep(POLL_SECONDS[1])
        if is_timeout(error):
            return self.timeout_error(error)
        return self.lost_rank_error(str(error).splitlines()[0])

    def timeout_error(self, error: BaseException | None = None, waited: float | None = None) -> RanksError:
        """Return the error for a rank that does not answer; print where this rank waited for it."""
        where = traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0])
        where += traceback.format_tb(error.__traceback__) if error else []
        print(f"rank {self.rank} of {self.size} waited here:\n{''.join(where)}", file=sys.stderr, flush=True)
        return RanksError(
            f"rank {self.rank} of {self.size}: another rank did not answer within {waited or self.timeout:g} s",
            "check that process and its machine, then continue with `regpt resume`; run.rank_timeout sets the time",
        )

    def lost_rank_error(self, why: str) -> RanksError:
        return RanksError(
            f"rank {self.rank} of {self.size}: lost another rank ({why[:200]})",
            "read its last lines; continue with `regpt resume`, or start with torchrun --max-restarts",
        )

    def other_rank_error(self) -> OtherRankError:
        """Return the error for a failure that another rank has published."""
        assert self.store is not None
        failure = json.loads(self.store.get(FAILURE_KEY))
        return OtherRankError(failure["code"], failure["problem"])

    def publish_failure(self, error: BaseException) -> BaseException:
        """Publish this rank's failure; return the error to exit with, which has the first failure's exit code.

        For a UserError it is a RankFailure, which one rank prints: the first that failed, or rank 0 for an error that
        it shared with the others.
        """
        if isinstance(error, RuntimeError) and is_connection_error(error):
            error = self.connection_error(error)
        code, is_first = self.record_failure(exit_code(error), description(error))
        self.mark_ended(code)
        if isinstance(error, StopRequested):
            error.code = code
        if isinstance(error, OSError | KeyboardInterrupt) and not is_first:
            error = OtherRankError(code, description(error))
        if isinstance(error, UserError):
            return RankFailure(error, code, is_printed_here=self.prints(error, is_first))
        return error

    def prints(self, error: UserError, is_first: bool) -> bool:
        """Return whether this rank prints the error that ends it; `is_first`: whether it failed first."""
        if isinstance(error, OtherRankError):
            return False
        return self.is_main if error is self.common_error else is_first

    def record_failure(self, code: int, problem: str) -> tuple[int, bool]:
        """Record why this rank ends, unless another rank failed before.

        Return the first failure's exit code, and whether the first failure is this rank's.
        """
        if self.store is None:
            return code, True
        failure = json.dumps({"code": code, "problem": problem, "rank": self.rank})
        try:
            first = json.loads(self.store.compare_set(FAILURE_KEY, "", failure))
        except RuntimeError:  # rank 0 has ended, and the store with it
            return code, True
        return int(first["code"]), bool(first["rank"] == self.rank)

    def mark_ended(self, code: int) -> None:
        """Record that the run ended for a reason that a restart would meet again.

        Ranks that torchrun restarts then exit with `code`. A lost rank and an unexpected error are not recorded:
        torchrun restarts ranks for their sake.
        """
        if self.persistent_store is not None and code not in (DONE, UNEXPECTED, RANKS):
            with contextlib.suppress(RuntimeError):
                self.persistent_store.set(ENDED_KEY, str(code))


def exit_code(error: BaseException) -> int:
    if isinstance(error, UserError | StopRequested):
        return error.code
    if isinstance(error, OSError):
        return USAGE
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else UNEXPECTED


def description(error: BaseException) -> str:
    """Return one line for the other ranks."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, StopRequested):
        return f"stopped by {error.name}"
    return f"{type(error).__name__}: {error}"


def is_connection_error(error: BaseException) -> bool:
    """Return whether an error comes from the connection between ranks.

    NCCL and the store raise DistError. gloo raises plain RuntimeErrors, which only their text tells apart: it names a
    source file of gloo.
    """
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def is_timeout(error: BaseException) -> bool:
    """Return whether a connection error is a timeout; torch has no class for it, only these texts."""
    text = str(error).lower()
    return "timed out" in text or "timeout" in text
