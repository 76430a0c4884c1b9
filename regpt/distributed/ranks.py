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
from regpt.run.devices import Device
from regpt.run.launch import launched
from regpt.run.stopping import Stopped, ignore_stops
from regpt.run.watch import FAILURE, watching

Made = TypeVar("Made")
LOOKS = 0.01, 0.2  # seconds between two looks for a note, the first and the longest
ENDED = "ended"
TOLD_WITHIN = 3.0  # seconds that a rank which lost another waits for that one's last words
KINDS = {
    kind.__name__: kind for kind in (UserError, CheckpointError, DataError, LockedError, NumericsError, RanksError)
}


class Ranks:
    """This process among all ranks. Only values that JSON can write are shared."""

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        store: Store | None = None,
        timeout: float = 600,
        outliving: Store | None = None,
        numbers: dist.ProcessGroup | None = None,
    ) -> None:
        """`outliving` keeps its notes while torchrun starts ranks anew; `numbers` is gloo's group beside NCCL's."""
        self.rank, self.count, self.store, self.timeout = rank, count, store, timeout
        self.outliving, self.numbers = outliving, numbers
        self.shared = 0

    @property
    def first(self) -> bool:
        """Rank 0 writes all files but its own share of a sharded checkpoint, and prints."""
        return self.rank == 0

    # All at the same time

    def gathered(self, values: NDArray[Any]) -> NDArray[Any]:
        """Everybody's values, by rank; of one shape and type, float64 or int64.  (...) -> (ranks, ...)"""
        if self.count == 1:
            return values[None]
        mine = torch.from_numpy(np.ascontiguousarray(values))
        theirs = [torch.empty_like(mine) for _ in range(self.count)]
        with self.watched():
            dist.all_gather(theirs, mine, group=self.numbers)
        return np.stack([tensor.numpy() for tensor in theirs])

    def highest(self, number: int) -> int:
        """The highest of everybody's numbers."""
        return int(self.gathered(np.array([number], dtype=np.int64)).max())

    def gathered_in_order(self, tensor: Tensor) -> list[Tensor]:
        """Everybody's tensor, by rank, on the device."""
        if self.count == 1:
            return [tensor]
        theirs = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(theirs, tensor.contiguous())
        return theirs

    def take_from_first(self, tensor: Tensor) -> None:
        """Overwrite a tensor by that of rank 0."""
        if self.count > 1:
            with self.watched():
                dist.broadcast(tensor, src=0)

    # One for all

    def by_first(
        self, make: Callable[[], Made], between: Callable[[], None] = lambda: None, patience: float | None = None
    ) -> Made:
        """What rank 0 makes, on every rank. An error of a user's that it meets there is raised on every rank.

        The others wait as long as `patience` says, in seconds (None: the ranks' timeout), and call `between` meanwhile.
        """
        if self.count == 1:
            return make()
        self.shared += 1
        name = f"made/{self.shared}"
        made: Made = self.tell(name, make) if self.first else self.heard(name, between=between, patience=patience)
        return made

    # Notes

    def post(self, name: str, value: Any) -> None:
        """Leave a note for all ranks."""
        assert self.store is not None
        with self.watched():
            self.store.set(name, json.dumps(value))

    def tell(self, name: str, make: Callable[[], Made]) -> Made:
        """Make something, and leave a note with it, or with the user's error that came up, which is raised here too."""
        if self.count == 1:
            return make()
        try:
            made = make()
        except UserError as error:
            self.post(name, {"problem": error.problem, "fix": error.fix, "kind": type(error).__name__})
            error.tells = self.first
            raise
        self.post(name, {"made": made})
        return made

    def heard(self, name: str, between: Callable[[], None] = lambda: None, patience: float | None = None) -> Any:
        """What another rank tells under that name, once it does; its error is raised here."""
        assert self.store is not None
        self.awaited(name, between=between, patience=patience)
        with self.watched():
            note = json.loads(self.store.get(name))
        if "problem" not in note:
            return note["made"]
        error = KINDS.get(note["kind"], UserError)(note["problem"], note["fix"])
        error.tells = self.first
        raise error

    def awaited(self, *names: str, between: Callable[[], None] = lambda: None, patience: float | None = None) -> str:
        """Wait until there is a note of one of the names; returns that name.

        Raises RanksError after `patience` seconds (None: the ranks' timeout), or if a rank has failed.
        """
        assert self.store is not None
        until = time.monotonic() + (self.timeout if patience is None else patience)
        pause, longest = LOOKS
        while True:
            with self.watched():
                for name in names:
                    if self.store.check([name]):
                        return name
                if self.store.check([FAILURE]):
                    raise self.failure_of_another()
            between()
            if time.monotonic() > until:
                raise self.silence(waited=self.timeout if patience is None else patience)
            time.sleep(pause)
            pause = min(longest, 1.5 * pause)

    def end_for_good(self, code: int) -> None:
        """The run has stopped, or met what another try will meet: ranks that torchrun starts anew end with that code.

        A lost rank, and an error that is nobody's (1), are what it starts them anew for.
        """
        if self.outliving is not None and code not in (DONE, 1, RANKS):
            with contextlib.suppress(RuntimeError):
                self.outliving.set(ENDED, str(code))

    # Loss of another

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, a broken or silent connection is an error of a user's that says so."""
        try:
            yield
        except RuntimeError as error:
            if self.count > 1 and is_of_connection(error):
                raise self.lost(error) from error
            raise

    def lost(self, error: BaseException) -> UserError:
        """What a broken connection means: another rank's own error if it has told one, else that it is gone."""
        until = time.monotonic() + TOLD_WITHIN
        while time.monotonic() < until:
            try:
                if self.store is not None and self.store.check([FAILURE]):
                    return self.failure_of_another()
            except RuntimeError:
                break  # the store has gone with the rank
            time.sleep(LOOKS[1])
        waited = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        return self.silence(error) if waited else self.gone(str(error).splitlines()[0])

    def silence(self, error: BaseException | None = None, waited: float | None = None) -> RanksError:
        """Another rank is there and says nothing; where this one waited is printed."""
        where = traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0])
        where += traceback.format_tb(error.__traceback__) if error else []
        print(f"rank {self.rank} of {self.count} waited here:\n{''.join(where)}", file=sys.stderr, flush=True)
        return RanksError(
            f"rank {self.rank} of {self.count}: another rank did not answer within {waited or self.timeout:g} s",
            "look at that process and its machine, then go on with `regpt resume`; run.rank_timeout sets the time",
        )

    def gone(self, why: str) -> RanksError:
        return RanksError(
            f"rank {self.rank} of {self.count}: another rank has gone ({why[:200]})",
            "its own last lines say more; go on with `regpt resume`, or start with torchrun --max-restarts",
        )

    def failure_of_another(self) -> OtherRankError:
        assert self.store is not None
        told = json.loads(self.store.get(FAILURE))
        return OtherRankError(told["code"], told["problem"])

    def ended_by(self, error: BaseException) -> BaseException:
        """Tell the others what ends this rank; returns what it is to end by, with the code of the first that failed."""
        if isinstance(error, RuntimeError) and is_of_connection(error):
            error = self.lost(error)
        code, what = 1, f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):
            code, what = error.code, str(error)
        elif isinstance(error, Stopped):
            code, what = error.code, f"stopped by {error.name}"
        elif isinstance(error, OSError):
            code = USAGE
        elif isinstance(error, KeyboardInterrupt):
            code = INTERRUPTED
        told, ours = self.tell_failure(code, what)
        self.end_for_good(told)
        if isinstance(error, UserError | Stopped):
            error.code = told
        if isinstance(error, UserError) and error.tells is None:
            error.tells = ours  # all have met it, or this rank alone: whoever is first tells
        if isinstance(error, OSError | KeyboardInterrupt) and not ours:
            return OtherRankError(told, what)
        return error

    def tell_failure(self, code: int, problem: str) -> tuple[int, bool]:
        """Leave a note of why this rank ends, unless another has; returns everybody's code, and if it is this one's."""
        if self.store is None:
            return code, True
        mine = json.dumps({"code": code, "problem": problem, "rank": self.rank})
        try:
            told = json.loads(self.store.compare_set(FAILURE, "", mine))
        except RuntimeError:  # the store has gone with rank 0
            return code, True
        return int(told["code"]), bool(told["rank"] == self.rank)


def is_of_connection(error: BaseException) -> bool:
    """gloo's errors are plain RuntimeErrors that name its files; those of NCCL and of the store have a class."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


@contextmanager
def open_ranks(device: Device, timeout: float) -> Iterator[Ranks]:
    """All ranks that torchrun started, connected; a single one if it was not torchrun.

    Whatever ends the block on one rank ends it on all, with the code of the first that failed; one of them tells.
    Connections end with the process, see `launch.leave`.
    """
    launch = launched()
    if launch.ranks == 1:
        yield Ranks()
        return
    ranks, store = connect(device, launch.rank, launch.ranks, timeout)
    with watching(ranks.rank, ranks.count, store, timeout):
        try:
            yield ranks
            ignore_stops()  # torchrun tells the others to stop when one ends; they are about to
            ranks.highest(0)  # nobody goes while another may still ask
        except BaseException as error:
            ignore_stops()
            ended = ranks.ended_by(error)
            if ended is error:
                raise
            raise ended from error


def connect(device: Device, rank: int, count: int, timeout: float) -> tuple[Ranks, Store]:
    """Join the others; returns a second connection to their notes as well. Raises RanksError where they do not come."""
    backend = "nccl" if device.place.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    try:
        shared, rank, count = next(rendezvous("env://", timeout=patience))
        shared.set_timeout(patience)
        if shared.check([ENDED]):
            raise ended_before(int(shared.get(ENDED)), tells=shared.add(f"{ENDED}/told", 1) == 1)
        meeting_name = meeting(shared, rank, count, timeout)
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
        lost.tells = True
        raise lost from error
    outliving = shared if launched().elastic else None
    return Ranks(rank, count, store, timeout, outliving, numbers), beside


def ended_before(code: int, tells: bool) -> UserError:
    """What a rank ends with that torchrun has started once more after the run had ended by itself."""
    ignore_stops()  # or the first to end would have torchrun end the others before they can tell
    ended = OtherRankError(code, f"the run has ended with exit code {code}; torchrun starts it again for nothing")
    ended.tells = tells
    return ended


def meeting(store: Store, rank: int, count: int, timeout: float) -> str:
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
        time.sleep(LOOKS[0])
    raise RuntimeError(f"not all {count} came within {timeout:g} s")
