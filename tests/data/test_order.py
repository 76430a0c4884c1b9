"""The order is a permutation for every count, keyed by seed and epoch, well mixed, and never changes."""

import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regpt.data import order
from regpt.data.order import shuffled_windows, windows_of_step


def whole_epoch(count: int, seed: int = 1337, epoch: int = 0) -> np.ndarray:
    return shuffled_windows(np.arange(count), count, seed, epoch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "counts",
    [range(1, 300), range(300, 5001, 97), pytest.param(range(1, 5001), marks=[pytest.mark.slow, pytest.mark.nightly])],
    ids=["small", "sample", "all"],
)
def test_order_visits_every_window_once_for_every_count(counts: range) -> None:
    for count in counts:
        seen = np.zeros(count, dtype=bool)
        seen[whole_epoch(count)] = True
        assert seen.all(), count


@given(count=st.integers(1, 2**40), seed=st.integers(0), epoch=st.integers(0, 10**6), data=st.data())
def test_order_is_distinct_and_in_range_for_any_count(count: int, seed: int, epoch: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=30, unique=True))
    windows = shuffled_windows(np.array(positions), count, seed, epoch)
    assert len(set(windows.tolist())) == len(positions)
    assert windows.min() >= 0 and windows.max() < count


def test_order_of_recorded_runs_never_changes() -> None:
    """Changing these numbers changes the data order of every recorded run."""
    assert shuffled_windows(np.arange(6), 9_771_000, 1337, 0).tolist() == [
        8989861,
        2431240,
        4509893,
        6393150,
        5875789,
        8139314,
    ]
    assert shuffled_windows(np.arange(3), 9_771_000, 1337, 1).tolist() == [4487936, 7025422, 2038653]
    assert shuffled_windows(np.array([2**40 - 1]), 2**40, 1337, 0).tolist() == [1037148221400]


def test_order_of_one_position_needs_no_others() -> None:
    windows = whole_epoch(1000)
    for position in (0, 1, 500, 999):
        assert shuffled_windows(np.array([position]), 1000, 1337, 0)[0] == windows[position]


def test_order_depends_on_seed_and_epoch_as_a_pair() -> None:
    orders = [whole_epoch(1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(one == other) < 0.02


# Statistics of a good order. Each is the deviation from chance over all epochs, in standard deviations.

COUNT, EPOCHS, LIMIT = 4096, 20, 5.0
SMALL_EPOCHS = 1500  # 12 or more for each order of up to five windows
Order = Callable[[int], np.ndarray]  # epoch -> the windows of all positions


def chi_squared(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the deviation of counts from the expected ones, in standard deviations of chi squared."""
    freedom = found.size - 1
    return float((np.sum((found - expected) ** 2 / expected) - freedom) / np.sqrt(2 * freedom))


def position_against_window(orders: list[np.ndarray]) -> float:
    """Every sixteenth of the epoch holds as much of every sixteenth of the windows."""
    cells = np.zeros((16, 16))
    for windows in orders:
        np.add.at(cells, (np.arange(COUNT) * 16 // COUNT, windows * 16 // COUNT), 1)
    return chi_squared(cells.ravel(), np.full(256, COUNT * len(orders) / 256))


def gaps_of_neighbours(orders: list[np.ndarray]) -> float:
    """From one position to the next, the windows jump as two picked at random do: rather a little than far."""
    gaps = np.concatenate([np.abs(np.diff(windows)) for windows in orders])
    distances = np.arange(1, COUNT)
    law = 2 * (COUNT - distances) / (COUNT * (COUNT - 1))
    found = np.bincount(gaps * 32 // COUNT, minlength=32)
    expected = np.bincount(distances * 32 // COUNT, weights=law, minlength=32) * len(gaps)
    return chi_squared(found, expected)


def neighbours_that_stay_neighbours(orders: list[np.ndarray]) -> float:
    """Windows that lie side by side in the files seldom follow each other: twice an epoch, by chance."""
    found = sum(int(np.sum(np.abs(np.diff(windows)) == 1)) for windows in orders)
    expected = 2.0 * len(orders)
    return (found - expected) / np.sqrt(expected)


def next_epoch_against_this(orders: list[np.ndarray]) -> float:
    """Where a window stands in an epoch says nothing about where it stands in the next."""
    cells = np.zeros((16, 16))
    for windows, following in pairwise(orders):
        places, later = np.argsort(windows), np.argsort(following)
        np.add.at(cells, (places * 16 // COUNT, later * 16 // COUNT), 1)
    return chi_squared(cells.ravel(), np.full(256, COUNT * (len(orders) - 1) / 256))


FIGURES = [
    position_against_window,
    gaps_of_neighbours,
    neighbours_that_stay_neighbours,
    next_epoch_against_this,
]


def figures_of(one: Order) -> dict[str, float]:
    orders = [one(epoch) for epoch in range(EPOCHS)]
    return {figure.__name__: figure(orders) for figure in FIGURES}


def test_order_is_random_by_every_statistic() -> None:
    figures = figures_of(lambda epoch: whole_epoch(COUNT, epoch=epoch))
    assert max(map(abs, figures.values())) < LIMIT, figures


def too_few_rounds(epoch: int) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "ROUNDS", 8)
        order.round_keys.cache_clear()
        windows = whole_epoch(COUNT, epoch=epoch)
        order.round_keys.cache_clear()
        return windows


def shuffled_within_shards(epoch: int) -> np.ndarray:
    random = np.random.default_rng(epoch)
    return np.concatenate([random.permutation(256) + first for first in range(0, COUNT, 256)])


def whole_shards_shuffled(epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(COUNT // 256).repeat(256) * 256 + np.tile(
        np.arange(256), COUNT // 256
    )


BAD: dict[str, Order] = {
    "in file order": lambda epoch: np.arange(COUNT),
    "backwards": lambda epoch: np.arange(COUNT)[::-1],
    "begun elsewhere": lambda epoch: np.roll(np.arange(COUNT), 1000 * epoch),
    "multiplied": lambda epoch: (np.arange(COUNT) * 1_517 + 77 * epoch) % COUNT,
    "shuffled within shards": shuffled_within_shards,
    "whole shards shuffled": whole_shards_shuffled,
    "shuffled once for all epochs": lambda epoch: whole_epoch(COUNT, epoch=0),
    "too few rounds": too_few_rounds,
}


@pytest.mark.parametrize("name", BAD)
def test_statistics_detect_a_bad_order(name: str) -> None:
    assert np.array_equal(np.sort(BAD[name](1)), np.arange(COUNT))  # it is an order
    assert max(map(abs, figures_of(BAD[name]).values())) > LIMIT


def test_order_spreads_every_shard_over_the_epoch() -> None:
    """FineWeb-Edu's 99 shards: each tenth of the epoch trains on all of them alike, and so does a single step."""
    shards, in_a_shard, batch = 99, 97_656, 512
    steps = shards * in_a_shard // batch
    found = np.zeros((10, shards))
    for tenth in range(10):
        for step in range(tenth * steps // 10, (tenth + 1) * steps // 10, 100):
            windows = windows_of_step(step, batch, shards * in_a_shard, 1337, shuffled=True)
            of_shard = np.bincount(windows // in_a_shard, minlength=shards)
            assert np.count_nonzero(of_shard) > 90  # 98.5 are expected
            found[tenth] += of_shard
    assert abs(chi_squared(found.ravel(), np.full(found.size, found.sum() / found.size))) < LIMIT
    in_order = windows_of_step(5_000, batch, shards * in_a_shard, 1337, shuffled=False)
    assert len(np.unique(in_order // in_a_shard)) == 1  # as a recipe without shuffling has it


def test_order_memory_does_not_grow_with_the_dataset() -> None:
    peaks = []
    for count in (10_000, 2**40):
        tracemalloc.start()
        windows_of_step(count // 512 - 1, 512, count, 1337, shuffled=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 100_000 and abs(peaks[0] - peaks[1]) < 10_000


@pytest.mark.parametrize("count", [3, 4, 5])
def test_small_orders_are_equally_frequent(count: int) -> None:
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(SMALL_EPOCHS):
        windows = tuple(whole_epoch(count, epoch=epoch).tolist())
        seen[windows] = seen.get(windows, 0) + 1
    orders = int(np.prod(range(1, count + 1)))
    expected = SMALL_EPOCHS / orders
    found = np.array([*seen.values(), *[0] * (orders - len(seen))])
    assert chi_squared(found, np.full(orders, expected)) < LIMIT


def test_steps_together_are_whole_epochs() -> None:
    count, batch = 10, 4  # the third step crosses into the second epoch
    steps = np.concatenate([windows_of_step(step, batch, count, 7, shuffled=True) for step in range(5)])
    assert np.array_equal(steps, np.concatenate([whole_epoch(count, 7, 0), whole_epoch(count, 7, 1)]))


def test_sequential_order_restarts_each_epoch() -> None:
    assert windows_of_step(2, 4, 10, 7, shuffled=False).tolist() == [8, 9, 0, 1]


def test_batch_may_be_larger_than_an_epoch() -> None:
    windows = windows_of_step(0, 7, 3, 7, shuffled=True)
    assert sorted(windows[:3]) == sorted(windows[3:6]) == [0, 1, 2]
