"""A batch depends on its step alone: read in any order, on any number of ranks, in any micro-batch."""

import errno
import io
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from regpt.base.errors import DataError
from regpt.data.batches import BatchLoader, combine_digests, equal_batches
from regpt.data.order import windows_of_step
from regpt.data.shards import TokenWindows
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe


@pytest.fixture
def windows(tiny: Recipe) -> TokenWindows:
    return TokenWindows(Path(tiny.data.path), prepare(tiny), "train", 32)


def batches(windows: TokenWindows, **changes: int) -> BatchLoader:
    return BatchLoader(
        windows, **{"positions": equal_batches(8), "micro_batch": 2, "seed": 1, "shuffled": True, **changes}
    )  # type: ignore[arg-type]


def test_batch_targets_are_inputs_one_token_later(windows: TokenWindows) -> None:
    with batches(windows) as reader:
        batch = reader.at(0)
    assert batch.inputs.shape == batch.targets.shape == (4, 2, 32)
    assert np.array_equal(batch.inputs[:, :, 1:], batch.targets[:, :, :-1])
    rows = windows.rows(windows_of_step(0, 8, len(windows), 1, shuffled=True))
    assert np.array_equal(batch.inputs.reshape(8, 32), rows[:, :-1])


def test_batches_are_equal_in_any_reading_order(windows: TokenWindows) -> None:
    with batches(windows) as forward, batches(windows) as backward:
        in_order = {step: forward.at(step).digest for step in range(6)}
        in_reverse = {step: backward.at(step).digest for step in reversed(range(6))}
    assert in_order == in_reverse
    assert len(set(in_order.values())) == 6


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_global_batch_is_equal_for_any_number_of_ranks(windows: TokenWindows, ranks: int, micro_batch: int) -> None:
    with batches(windows) as reader:
        alone = reader.at(3)
    in_order = alone.inputs.reshape(-1, micro_batch, 32)
    digests = []
    for rank in range(ranks):
        with batches(windows, rank=rank, ranks=ranks, micro_batch=micro_batch) as reader:
            share = reader.at(3)
        assert np.array_equal(share.inputs, in_order[share.numbers])
        assert share.numbers.tolist() == list(range(rank, 8 // micro_batch, ranks))
        digests.append(share.partial_digest)
    assert combine_digests(digests) == alone.digest


def test_batch_digest_depends_on_tokens_windows_and_order(windows: TokenWindows, tmp_path: Path) -> None:
    with batches(windows) as reader:
        digests = {reader.read(step).digest for step in range(4)}
        rows = windows.rows
        of_step = reader.read(0).windows
        changes = {
            "one token": lambda wanted: np.where(np.arange(33) == 5, 7, rows(wanted)).astype(np.uint16),
            "two rows in each other's places": lambda wanted: rows(wanted)[[1, 0, *range(2, len(wanted))]],
        }
        for change in changes.values():
            windows.rows = change  # type: ignore[method-assign,assignment]
            digests.add(reader.read(0).digest)
        windows.rows = rows  # type: ignore[method-assign]
        assert np.array_equal(reader.read(0).windows, of_step) and reader.read(0).digest in digests
    assert len(digests) == 6


class FailingFile(io.FileIO):
    """A shard's file whose next reads fail, as with a stale handle or a bad sector."""

    failures: ClassVar[list[int]] = []

    def readinto(self, buffer: Any, /) -> int:
        if self.failures:
            number = self.failures.pop()
            raise OSError(number, os.strerror(number))
        return super().readinto(buffer)


def test_stale_handle_is_opened_again(windows: TokenWindows, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = windows.rows(range(6))
    windows.close()
    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: FailingFile(path))
    monkeypatch.setattr(FailingFile, "failures", [errno.ESTALE])
    assert np.array_equal(windows.rows(range(6)), expected)
    assert FailingFile.failures == []


def test_disk_that_fails_to_read_names_the_shard(windows: TokenWindows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: FailingFile(path))
    monkeypatch.setattr(FailingFile, "failures", [errno.EIO] * 2)
    with pytest.raises(DataError, match=r"train_000000\.npy: cannot be read \(Input/output error\)") as caught:
        windows.rows([0])
    assert "check it" in caught.value.fix
