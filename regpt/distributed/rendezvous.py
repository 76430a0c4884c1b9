"""Rendezvous: connect the ranks that torchrun started, and end them together."""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from regpt.base.errors import RanksError
from regpt.distributed.errors import OtherRankError, RankFailure
from regpt.distributed.failures import ENDED_KEY, POLL_SECONDS
from regpt.distributed.heartbeat import heartbeat
from regpt.distributed.rank_group import RankGroup
from regpt.distributed.signals import ignore_stop_signals
from regpt.machine.device import Device
from regpt.machine.env import current_launch


@contextmanager
def open_rank_group(device: Device, timeout: float) -> Iterator[RankGroup]:
    """Connect all ranks that torchrun started; a single rank if torchrun did not start this process.

    An exception on one rank ends the block on all, with the exit code of the first failure, which one rank reports.
    `timeout` is in seconds. Connections end with the process, see `env.exit_process`. Raises RankFailure for a
    UserError, with that error and whether this rank prints it; also if the ranks do not find each other.
    """
    launch = current_launch()
    if launch.ranks == 1:
        yield RankGroup()
        return
    ranks, heartbeat_store = connect(device, launch.rank, launch.ranks, timeout)
    with heartbeat(ranks.rank, ranks.size, heartbeat_store, timeout):
        try:
            yield ranks
            ignore_stop_signals()  # torchrun signals the others when one rank ends; they are about to end
            ranks.all_reduce_max(0)  # no rank ends while another may still ask
        except BaseException as error:
            ignore_stop_signals()
            final_error = ranks.publish_failure(error)
            if final_error is error:
                raise
            raise final_error from error


def connect(device: Device, rank: int, size: int, timeout: float) -> tuple[RankGroup, Store]:
    """Join the other ranks; return the group and a second connection to its store, for the heartbeat.

    Raises RankFailure if not all ranks come within `timeout` seconds, or if the run has ended before.
    """
    backend = "nccl" if device.torch_device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    try:
        shared, rank, size = next(rendezvous("env://", timeout=patience))
        shared.set_timeout(patience)
        if shared.check([ENDED_KEY]):
            is_first = shared.add(f"{ENDED_KEY}/reports", 1) == 1
            raise already_ended_error(int(shared.get(ENDED_KEY)), is_first)
        namespace = agree_on_namespace(shared, rank, size, timeout)
        store, second_store = PrefixStore(namespace, shared), PrefixStore(namespace, shared.clone())
        # NCCL's own watchdog aborts the process: gloo and the heartbeat, which can say more, must come first
        group_timeout = patience if backend == "gloo" else 2 * patience
        card = device.torch_device if backend == "nccl" else None  # so that NCCL does not guess it
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=group_timeout, device_id=card)
        cpu_group = None if backend == "gloo" else dist.new_group(backend="gloo", timeout=patience)
    except (RuntimeError, ValueError) as error:
        not_connected = RanksError(
            f"rank {rank} of {size}: the ranks cannot connect to each other ({str(error).splitlines()[0][:200]})",
            "start them with torchrun; docs/scale.md has the commands",
        )
        raise RankFailure(not_connected, not_connected.code, is_printed_here=True) from error
    persistent_store = shared if current_launch().elastic else None
    return RankGroup(rank, size, store, timeout, persistent_store, cpu_group), second_store


def already_ended_error(code: int, is_printed_here: bool) -> RankFailure:
    """Return the error for a rank that torchrun restarted although the run had ended by itself."""
    ignore_stop_signals()  # else the first rank to end would have torchrun end the others before they can report
    ended = OtherRankError(code, f"the run ended with exit code {code}; torchrun restarts it in vain")
    return RankFailure(ended, code, is_printed_here=is_printed_here)


def agree_on_namespace(store: Store, rank: int, size: int, timeout: float) -> str:
    """Return a prefix for keys in the store that all ranks share and no earlier group has used.

    torchrun keeps one store while it restarts ranks, so the keys of lost ranks are still in it. Each rank writes a
    unique mark. Rank 0 proposes a name together with the marks that it read. A rank accepts a proposal only if it
    contains the rank's own mark, and confirms it; when all have confirmed, they use that name. Marks of lost ranks are
    never confirmed. Raises RuntimeError after `timeout` seconds.
    """
    own_mark = uuid.uuid4().hex
    store.set(f"mark/{rank}", own_mark)
    until = time.monotonic() + timeout
    keys = [f"mark/{number}" for number in range(size)]
    while time.monotonic() < until:
        if rank == 0 and store.check(keys):
            marks = [store.get(key).decode() for key in keys]
            if not store.check(["proposal"]) or json.loads(store.get("proposal"))["marks"] != marks:
                store.set("proposal", json.dumps({"name": uuid.uuid4().hex, "marks": marks}))
        if store.check(["proposal"]):
            proposal = json.loads(store.get("proposal"))
            if rank < len(proposal["marks"]) and proposal["marks"][rank] == own_mark:
                store.set(f"{proposal['name']}/{rank}", "")
                if store.check([f"{proposal['name']}/{number}" for number in range(len(proposal["marks"]))]):
                    return str(proposal["name"])
        time.sleep(POLL_SECONDS[0])
    raise RuntimeError(f"not all {size} came within {timeout:g} s")
