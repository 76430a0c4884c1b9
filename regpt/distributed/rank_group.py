"""The group of ranks that train together: collectives, messages, and what happens when a rank is lost."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from regpt.distributed.collectives import Collectives
from regpt.distributed.messages import Messages

Result = TypeVar("Result")


class RankGroup(Collectives, Messages):
    """This process as one of all ranks. With a single rank every method is free.

    `collectives` has what all ranks do at the same time, `messages` what takes long or runs on a thread, `failures`
    the errors that a lost rank raises. `open_rank_group` connects a group.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        store: Store | None = None,
        timeout: float = 600,
        persistent_store: Store | None = None,
        cpu_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(rank, size, store, timeout, persistent_store, cpu_group)
        self.shared_results = 0  # how often `on_main` was called: its messages are numbered

    def on_main(
        self,
        make: Callable[[], Result],
        while_waiting: Callable[[], None] = lambda: None,
        timeout: float | None = None,
    ) -> Result:
        """Call `make` on rank 0 and return its result, which must be JSON, on every rank. Every rank calls this.

        The other ranks wait up to `timeout` seconds (None: the ranks' timeout) and call `while_waiting` meanwhile.
        Raises rank 0's UserError on every rank, RanksError and OtherRankError as `wait_for` does.
        """
        if self.size == 1:
            return make()
        self.shared_results += 1
        name = f"result/{self.shared_results}"
        if self.is_main:
            return self.publish(name, make)
        result: Result = self.receive(name, while_waiting, timeout)
        return result
