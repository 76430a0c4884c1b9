"""Batches by step number: which rows a rank trains on at a step, read ahead in the background."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from regpt.data.order import windows_of_step
from regpt.data.shards import TokenWindows


@dataclass(frozen=True)
class Batch:
    """A rank's micro-batches of one step.

    Of the global batch's micro-batches, number n is rank n mod ranks': which windows stand together in one, and their
    order, does not depend on the ranks.
    """

    inputs: NDArray[np.int64]  # (this rank's micro-batches, sequences in one, block_size)
    targets: NDArray[np.int64]
    numbers: NDArray[np.int64]  # of these micro-batches in the global batch
    windows: NDArray[np.int64]  # of the whole global batch
    partial_digest: int  # of this rank's share; all ranks' seals together name the global batch

    @property
    def digest(self) -> str:
        """The global batch's, where there is one rank."""
        return combine_digests([self.partial_digest])


def combine_digests(seals: Iterable[int]) -> str:
    """A global batch's name: the same whatever the ranks and the micro-batch, so that two runs can be compared.

    The sum, modulo 2^64, of BLAKE2 over each window's place in the batch, its number and its tokens.
    """
    return f"{sum(seals) % 2**64:016x}"


class BatchLoader:
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
        """Read a step's batch now."""
        of_step = windows_of_step(step, self.batch_windows, len(self.windows), self.seed, self.shuffled)
        places = np.arange(self.batch_windows).reshape(-1, self.micro_batch)[self.rank :: self.ranks]
        mine = places.ravel()
        rows = self.windows.rows(of_step[mine])
        seal = sum(
            int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8, key=key.tobytes()).digest(), "little")
            for row, key in zip(rows, np.stack([mine, of_step[mine]], axis=1), strict=True)
        )
        cut = rows.reshape(*places.shape, rows.shape[1])
        inputs, targets = cut[:, :, :-1].astype(np.int64), cut[:, :, 1:].astype(np.int64)
        numbers = np.arange(self.rank, self.batch_windows // self.micro_batch, self.ranks)
        return Batch(inputs, targets, numbers, of_step, seal % 2**64)

    def set_micro_batch(self, micro_batch: int) -> None:
        """Hand over the same batches in micro-batches of so many windows from now on."""
        self.micro_batch, self.ahead = micro_batch, {}

    def close(self) -> None:
        self.reader.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
