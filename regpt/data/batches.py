"""Batches by step number: which rows a rank trains on at a step, read ahead in the background."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from regpt.data.order import windows_of_step
from regpt.data.shards import TokenWindows


@dataclass(frozen=True)
class Batch:
    """A rank's share of one step's global batch, cut into micro-batches.

    inputs and targets: (accumulation steps, micro-batch, block_size), int64. digest names the global batch's windows
    and the tokens of this share, so that two runs can be seen to have read the same.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    windows: NDArray[np.int64]
    digest: str


class Batches:
    """`at(step)` gives that step's batch; asked in order or not, the answer is the same.

    The next step's batch is read by a thread while this one is trained on. Use as a context manager, or `close()`.
    """

    def __init__(
        self,
        windows: TokenWindows,
        *,
        batch_windows: int,
        micro_batch: int,
        seed: int,
        shuffled: bool,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.windows = windows
        self.batch_windows = batch_windows
        self.micro_batch = micro_batch
        self.seed = seed
        self.shuffled = shuffled
        self.rank = rank
        self.ranks = ranks
        self.reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self.ahead: dict[int, Future[Batch]] = {}

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        ahead = self.ahead.pop(step, None)
        batch = ahead.result() if ahead is not None else self.read(step)
        self.ahead = {step + 1: self.reader.submit(self.read, step + 1)}
        return batch

    def read(self, step: int) -> Batch:
        """Read a step's batch now, from the mapped shards."""
        of_step = windows_of_step(step, self.batch_windows, len(self.windows), self.seed, self.shuffled)
        share = self.batch_windows // self.ranks
        mine = of_step[self.rank * share : (self.rank + 1) * share]
        rows = self.windows.rows(mine)
        digest = hashlib.blake2b(of_step.tobytes() + rows.tobytes(), digest_size=8).hexdigest()
        cut = rows.reshape(-1, self.micro_batch, rows.shape[1])
        return Batch(cut[:, :, :-1].astype(np.int64), cut[:, :, 1:].astype(np.int64), of_step, digest)

    def close(self) -> None:
        self.reader.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
