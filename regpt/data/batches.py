"""Batches by step number: the windows that a rank trains on at each step, read in the background."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from regpt.data.loss_masks import IGNORED, targets_of
from regpt.data.order import windows_at


class Windows(Protocol):
    """Windows of block_size + 1 tokens, by number."""

    @property
    def block_size(self) -> int: ...

    def __len__(self) -> int: ...

    def rows(self, windows: NDArray[np.int64] | range, /) -> NDArray[np.integer]: ...

    def counted(self, windows: NDArray[np.int64] | range, /) -> NDArray[np.bool_] | None: ...


@dataclass(frozen=True)
class Batch:
    """A rank's micro-batches of one step.

    Micro-batch n of the global batch belongs to rank n mod ranks. Which windows a micro-batch holds, and their order,
    does not depend on the number of ranks.
    """

    inputs: NDArray[np.int64]  # (micro-batches of this rank, windows in each, block_size)
    targets: NDArray[np.int64]  # same shape: the inputs one token later, or IGNORED where they do not count
    numbers: NDArray[np.int64]  # of these micro-batches in the global batch
    windows: NDArray[np.int64]  # of the whole global batch
    partial_digest: int  # of this rank's windows; `combine_digests` joins those of all ranks
    is_masked: bool = False  # whether targets may be ignored

    @property
    def digest(self) -> str:
        """Digest of the global batch if there is only one rank."""
        return combine_digests([self.partial_digest])

    @property
    def counted_targets(self) -> int:
        """Number of this rank's targets that count in the loss."""
        return int(np.count_nonzero(self.targets != IGNORED))


def combine_digests(partial_digests: Iterable[int]) -> str:
    """Return the digest of a global batch from those of all ranks, so that two runs can be compared.

    It is the sum, modulo 2^64, of BLAKE2 over each window's position in the batch, its number and its tokens. It is the
    same for any number of ranks and any micro-batch.
    """
    return f"{sum(partial_digests) % 2**64:016x}"


# The positions of a batch's windows in the order of all, by its number and the step that trains on it.
Positions = Callable[[int, int], range]


def equal_batches(batch_windows: int) -> Positions:
    """Return the positions of batches that all have the same number of windows."""
    return lambda number, step: range(number * batch_windows, (number + 1) * batch_windows)


class BatchLoader:
    """Reads the batch of any step, in any order. A thread reads the next one meanwhile.

    Use as a context manager, or call `close()`.
    """

    def __init__(
        self,
        windows: Windows,
        *,
        positions: Positions,
        micro_batch: int,
        seed: int,
        shuffled: bool,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.windows = windows
        self.positions = positions
        self.micro_batch = micro_batch
        self.seed = seed
        self.shuffled = shuffled
        self.rank = rank
        self.ranks = ranks
        self.reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self.ahead: dict[tuple[int, int], Future[Batch]] = {}

    def at(self, number: int, step: int | None = None) -> Batch:
        """Return the batch of a number, counted from 0, as `step` trains on it: the step of that number by default."""
        step = number if step is None else step
        ahead = self.ahead.pop((number, step), None)
        batch = ahead.result() if ahead is not None else self.read(number, step)
        self.ahead = {(number + 1, step + 1): self.reader.submit(self.read, number + 1, step + 1)}
        return batch

    def read(self, number: int, step: int | None = None) -> Batch:
        """Read a batch in this thread."""
        step = number if step is None else step
        of_step = windows_at(self.positions(number, step), len(self.windows), self.seed, self.shuffled)
        positions = np.arange(len(of_step)).reshape(-1, self.micro_batch)[self.rank :: self.ranks]
        mine = positions.ravel()
        rows = self.windows.rows(of_step[mine])
        partial_digest = sum(
            int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8, key=key.tobytes()).digest(), "little")
            for row, key in zip(rows, np.stack([mine, of_step[mine]], axis=1), strict=True)
        )
        windows = rows.reshape(*positions.shape, rows.shape[1])
        counted = self.windows.counted(of_step[mine])
        targets = targets_of(windows, None if counted is None else counted.reshape(*positions.shape, -1))
        numbers = np.arange(self.rank, len(of_step) // self.micro_batch, self.ranks)
        inputs = windows[:, :, :-1].astype(np.int64)
        return Batch(inputs, targets, numbers, of_step, partial_digest % 2**64, counted is not None)

    def set_micro_batch(self, micro_batch: int) -> None:
        """From now on split the same batches into micro-batches of `micro_batch` windows."""
        self.micro_batch, self.ahead = micro_batch, {}

    def close(self) -> None:
        self.reader.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
