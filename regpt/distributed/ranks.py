"""Several processes as one run: what they agree on, what the first does for all, and what is said when one is lost.

Ranks talk in two ways. What all do at the same time goes by collectives of torch.distributed: NCCL between cards, gloo
for a few numbers between processes, which waits for no card. What takes long, or happens on a thread beside the
training, goes by notes in the store that torchrun keeps. With one rank everything here is free.
"""

import contextlib
import json
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from regpt.base.errors import (
    DONE,
    INTERRUPTED,
    RANKS,
    USAGE,
    CheckpointError,
    DataError,
    LockedError,
    NumericsError,
    OtherRankError,
    RanksError,
    UserError,
)
from regpt.distributed.device import Device
from regpt.distributed.env import current_launch
from regpt.distributed.heartbeat import FAILURE_KEY, heartbeat
from regpt.distributed.signals import StopRequested, ignore_stop_signals

Made = TypeVar("Made")
POLL_SECONDS = 0.01, 0.2  # seconds between two looks for a note, the first and the longest
ENDED = "ended"
FAILURE_WAIT_SECONDS = 3.0  # seconds that a rank which lost another waits for that one's last words
ERROR_TYPES = {
    kind.__name__: kind for kind in (UserError, CheckpointError, DataError, LockedError, NumericsError, RanksError)
}


class RankGroup:
    """This process among all ranks. Only values that JSON can write are shared."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        store: Store | None = None,
        timeout: float = 600,
        persistent_store: Store | None = None,
        cpu_group: dist.ProcessGroup | None = None,
    ) -> None:
        """`outliving` keeps its notes while torchrun starts ranks anew; `numbers` is gloo's group beside NCCL's."""
        self.rank, self.size, self.store, self.timeout = rank, size, store, timeout
        self.persistent_store, self.cpu_group = persistent_store, cpu_group
        self.shared = 0

    @property
    def is_main(self) -> bool:
        """Rank 0 writes all files but its own share of a sharded checkpoint, and prints."""
        return self.rank == 0

    # All at the same time

    def all_gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """Everybody's values, by rank; of one shape and type, float64 or int64.  (...) -> (ranks, ...)"""
        if self.size == 1:
            return values[None]
        mine = torch.from_numpy(np.ascontiguousarray(values))
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        with self.connection_errors():
            dist.all_gather(theirs, mine, group=self.cpu_group)
        return np.stack([tensor.numpy() for tensor in theirs])

    def all_reduce_max(self, number: int) -> int:
        """The highest of everybody's numbers."""
        return int(self.all_gather(np.array([number], dtype=np.int64)).max())

    def all_gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """Everybody's tensor, by rank, on the device."""
        if self.size == 1:
            return [tensor]
        theirs = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(theirs, tensor.contiguous())
        return theirs

    def broadcast_(self, tensor: Tensor) -> None:
        """Overwrite a tensor by that of rank 0."""
        if self.size > 1:
            with self.connection_errors():
                dist.broadcast(tensor, src=0)

    # One for all

    def on_main(
        self, make: Callable[[], Made], between: Callable[[], None] = lambda: None, patience: float | None = None
    ) -> Made:
        """What rank 0 makes, on every rank. An error of a user's that it meets there is raised on every rank.

        The others wait as long as `patience` says, in seconds (None: the ranks' timeout), and call `between` meanwhile.
        """
        if self.size == 1:
            return make()
        self.shared += 1
        name = f"made/{self.shared}"
        made: Made = (
            self.publish(name, make) if self.is_main else self.receive(name, between=between, patience=patience)
        )
        return made

    # Notes

    def post(self, name: str, value: Any) -> None:
        """Leave a note for all ranks."""
        assert self.store is not None
        with self.connection_errors():
            self.store.set(name, json.dumps(value))

    def publish(self, name: str, make: Callable[[], Made]) -> Made:
        """Make something, and leave a note with it, or with the user's error that came up, which is raised here too."""
        if self.size == 1:
            return make()
        try:
            made = make()
        except UserError as error:
            self.post(name, {"problem": error.problem, "fix": error.fix, "kind": type(error).__name__})
            error.reported_by_this_rank = self.is_main
            raise
        self.post(name, {"made": made})
        return made

    def receive(self, name: str, between: Callable[[], None] = lambda: None, patience: float | None = None) -> Any:
        """What another rank tells under that name, once it does; its error is raised here."""
        assert self.store is not None
        self.wait_for(name, between=between, patience=patience)
        with self.connection_errors():
            note = json.loads(self.store.get(name))
        if "problem" not in note:
            return note["made"]
        error = ERROR_TYPES.get(note["kind"], UserError)(note["problem"], note["fix"])
        error.reported_by_this_rank = self.is_main
        raise error

    def wait_for(self, *names: str, between: Callable[[], None] = lambda: None, patience: float | None = None) -> str:
        """Wait until there is a note of one of the names; returns that name.

        Raises RanksError after `patience` seconds (None: the ranks' timeout), or if a rank has failed.
        """
        assert self.store is not None
        until = time.monotonic() + (self.timeout if patience is None else patience)
        pause, longest = POLL_SECONDS
        while True:
            with self.connection_errors():
                for name in names:
                    if self.store.check([name]):
                        return name
                if self.store.check([FAILURE_KEY]):
                    raise self.other_rank_error()
            between()
            if time.monotonic() > until:
                raise self.timeout_error(waited=self.timeout if patience is None else patience)
            time.sleep(pause)
            pause = min(longest, 1.5 * pause)

    def mark_ended(self, code: int) -> None:
        """The run has stopped, or met what another try will meet: ranks that torchrun starts anew end with that code.

        A lost rank, and an error that is nobody's (1), are what it starts them anew for.
        """
        if self.persistent_store is not None and code not in (DONE, 1, RANKS):
            with contextlib.suppress(RuntimeError):
                self.persistent_store.set(ENDED, str(code))

    # Loss of another

    @contextmanager
    def connection_errors(self) -> Iterator[None]:
        """Within, a broken or silent connection is an error of a user's that says so."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and is_connection_error(error):
                raise self.connection_error(error) from error
            raise

    def connection_error(self, error: BaseException) -> UserError:
        """What a broken connection means: another rank's own error if it has told one, else that it is gone."""
        until = time.monotonic() + FAILURE_WAIT_SECONDS
        while time.monotonic() < until:
            try:
                if self.store is not None and self.store.check([FAILURE_KEY]):
                    return self.other_rank_error()
            except RuntimeError:
                break  # the store has gone with the rank
            time.sleep(POLL_SECONDS[1])
        waited = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        return self.timeout_error(error) if waited else self.lost_rank_error(str(error).splitlines()[0])

    def timeout_error(self, error: BaseException | None = None, waited: float | None = None) -> RanksError:
        """Another rank is there and says nothing; where this one waited is printed."""
        where = traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0])
        where += traceback.format_tb(error.__traceback__) if error else []
        print(f"rank {self.rank} of {self.size} waited here:\n{''.join(where)}", file=sys.stderr, flush=True)
        return RanksError(
            f"rank {self.rank} of {self.size}: another rank did not answer within {waited or self.timeout:g} s",
            "look at that process and its machine, then go on with `regpt resume`; run.rank_timeout sets the time",
        )

    def lost_rank_error(self, why: str) -> RanksError:
        return RanksError(
            f"rank {self.rank} of {self.size}: another rank has gone ({why[:200]})",
            "its own last lines say more; go on with `regpt resume`, or start with torchrun --max-restarts",
        )

    def other_rank_error(self) -> OtherRankError:
        assert self.store is not None
        told = json.loads(self.store.get(FAILURE_KEY))
        return OtherRankError(told["code"], told["problem"])

    def publish_failure(self, error: BaseException) -> BaseException:
        """Tell the others what ends this rank; returns what it is to end by, with the code of the first that failed."""
        if isinstance(error, RuntimeError) and is_connection_error(error):
            error = self.connection_error(error)
        code, what = 1, f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):
            code, what = error.code, str(error)
        elif isinstance(error, StopRequested):
            code, what = error.code, f"stopped by {error.name}"
        elif isinstance(error, OSError):
            code = USAGE
        elif isinstance(error, KeyboardInterrupt):
            code = INTERRUPTED
        told, ours = self.record_failure(code, what)
        self.mark_ended(told)
        if isinstance(error, UserError | StopRequested):
            error.code = told
        if isinstance(error, UserError) and error.reported_by_this_rank is None:
            error.reported_by_this_rank = ours  # all have met it, or this rank alone: whoever is first tells
        if isinstance(error, OSError | KeyboardInterrupt) and not ours:
            return OtherRankError(told, what)
        return error

    def record_failure(self, code: int, problem: str) -> tuple[int, bool]:
        """Leave a note of why this rank ends, unless another has; returns everybody's code, and if it is this one's."""
        if self.store is None:
            return code, True
        mine = json.dumps({"code": code, "problem": problem, "rank": self.rank})
        try:
            told = json.loads(self.store.compare_set(FAILURE_KEY, "", mine))
        except RuntimeError:  # the store has gone with rank 0
            return code, True
        return int(told["code"]), bool(told["rank"] == self.rank)


def is_connection_error(error: BaseException) -> bool:
    """gloo's errors are plain RuntimeErrors that name its files; those of NCCL and of the store have a class."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


@contextmanager
def open_rank_group(device: Device, timeout: float) -> Iterator[RankGroup]:
    """All ranks that torchrun started, connected; a single one if it was not torchrun.

    Whatever ends the block on one rank ends it on all, with the code of the first that failed; one of them tells.
    Connections end with the process, see `launch.leave`.
    """
    launch = current_launch()
    if launch.ranks == 1:
        yield RankGroup()
        return
    ranks, store = connect(device, launch.rank, launch.ranks, timeout)
    with heartbeat(ranks.rank, ranks.size, store, timeout):
        try:
            yield ranks
            ignore_stop_signals()  # torchrun tells the others to stop when one ends; they are about to
            ranks.all_reduce_max(0)  # nobody goes while another may still ask
        except BaseException as error:
            ignore_stop_signals()
            ended = ranks.publish_failure(error)
            if ended is error:
                raise
            raise ended from error


def connect(device: Device, rank: int, count: int, timeout: float) -> tuple[RankGroup, Store]:
    """Join the others; returns a second connection to their notes as well. Raises RanksError where they do not come."""
    backend = "nccl" if device.torch_device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    try:
        shared, rank, count = next(rendezvous("env://", timeout=patience))
        shared.set_timeout(patience)
        if shared.check([ENDED]):
            raise already_ended_error(int(shared.get(ENDED)), tells=shared.add(f"{ENDED}/told", 1) == 1)
        meeting_name = agree_on_namespace(shared, rank, count, timeout)
        store, beside = PrefixStore(meeting_name, shared), PrefixStore(meeting_name, shared.clone())
        # NCCL's own watchdog aborts the process: it is to come last, after gloo and our watch
        longer = patience if backend == "gloo" else 2 * patience
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=longer)
        numbers = None if backend == "gloo" else dist.new_group(backend="gloo", timeout=patience)
    except (RuntimeError, ValueError) as error:
        lost = RanksError(
            f"rank {rank} of {count}: the ranks do not find each other ({str(error).splitlines()[0][:200]})",
            "start them with torchrun; docs/scale.md has the commands",
        )
        lost.reported_by_this_rank = True
        raise lost from error
    outliving = shared if current_launch().elastic else None
    return RankGroup(rank, count, store, timeout, outliving, numbers), beside


def already_ended_error(code: int, tells: bool) -> UserError:
    """What a rank ends with that torchrun has started once more after the run had ended by itself."""
    ignore_stop_signals()  # or the first to end would have torchrun end the others before they can tell
    ended = OtherRankError(code, f"the run has ended with exit code {code}; torchrun starts it again for nothing")
    ended.reported_by_this_rank = tells
    return ended


def agree_on_namespace(store: Store, rank: int, count: int, timeout: float) -> str:
    """A name for this coming together of all ranks, that no earlier one had.

    torchrun keeps one store while it starts ranks anew, so what the lost ones wrote is still there. Every rank leaves a
    mark of its own; rank 0 puts a name to the marks that it finds; a rank takes the name only if its own mark is among
    them, and says so; once all have, all go. Marks of the lost never answer.
    """
    mine = uuid.uuid4().hex
    store.set(f"here/{rank}", mine)
    until = time.monotonic() + timeout
    names = [f"here/{number}" for number in range(count)]
    while time.monotonic() < until:
        if rank == 0 and store.check(names):
            marks = [store.get(name).decode() for name in names]
            if not store.check(["meeting"]) or json.loads(store.get("meeting"))["marks"] != marks:
                store.set("meeting", json.dumps({"name": uuid.uuid4().hex, "marks": marks}))
        if store.check(["meeting"]):
            found = json.loads(store.get("meeting"))
            if rank < len(found["marks"]) and found["marks"][rank] == mine:
                store.set(f"{found['name']}/{rank}", "")
                if store.check([f"{found['name']}/{number}" for number in range(len(found["marks"]))]):
                    return str(found["name"])
        time.sleep(POLL_SECONDS[0])
    raise RuntimeError(f"not all {count} came within {timeout:g} s")
