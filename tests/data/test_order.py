"""The order is a permutation for every count, keyed by seed and epoch, and the same for ever."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regpt.data.order import shuffled_windows, windows_of_step


def whole_epoch(count: int, seed: int = 1337, epoch: int = 0) -> np.ndarray:
    return shuffled_windows(np.arange(count), count, seed, epoch)


def test_every_window_comes_once_in_an_epoch_for_every_count() -> None:
    for count in [*range(1, 200), *range(200, 5001, 61), 4096, 5000]:
        assert np.array_equal(np.sort(whole_epoch(count)), np.arange(count)), count


@given(count=st.integers(1, 2**40), seed=st.integers(0), epoch=st.integers(0, 10**6), data=st.data())
def test_windows_of_any_count_stay_in_range_and_apart(count: int, seed: int, epoch: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=30, unique=True))
    windows = shuffled_windows(np.array(positions), count, seed, epoch)
    assert len(set(windows.tolist())) == len(positions)
    assert windows.min() >= 0 and windows.max() < count


def test_the_first_windows_are_pinned_for_ever() -> None:
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


def test_a_position_is_found_by_itself() -> None:
    order = whole_epoch(1000)
    for position in (0, 1, 500, 999):
        assert shuffled_windows(np.array([position]), 1000, 1337, 0)[0] == order[position]


def test_seed_and_epoch_are_a_pair_and_not_a_sum() -> None:
    orders = [whole_epoch(1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(one == other) < 0.02


def test_positions_and_windows_are_unrelated() -> None:
    """Mean of the products of ranks, and of neighbours' distances, over epochs; a shifted or reversed order fails."""
    count = 2000
    middle, spread = (count - 1) / 2, np.sqrt((count**2 - 1) / 12)
    for order in (whole_epoch(count, epoch=epoch) for epoch in range(20)):
        correlation = np.mean((np.arange(count) - middle) * (order - middle)) / spread**2
        assert abs(correlation) < 5 / np.sqrt(count)
        assert abs(np.mean(np.abs(np.diff(order))) - count / 3) < count * 0.03


@pytest.mark.parametrize("count", [3, 4, 5])
def test_small_orders_come_equally_often(count: int) -> None:
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(3000):
        order = tuple(whole_epoch(count, epoch=epoch).tolist())
        seen[order] = seen.get(order, 0) + 1
    orders = int(np.prod(range(1, count + 1)))
    expected = 3000 / orders
    chi_squared = sum((n - expected) ** 2 / expected for n in seen.values()) + (orders - len(seen)) * expected
    assert chi_squared < orders - 1 + 5 * np.sqrt(2 * (orders - 1))


def test_steps_together_are_the_epochs_one_after_another() -> None:
    count, batch = 10, 4  # the third step crosses into the second epoch
    steps = np.concatenate([windows_of_step(step, batch, count, 7, shuffled=True) for step in range(5)])
    assert np.array_equal(steps, np.concatenate([whole_epoch(count, 7, 0), whole_epoch(count, 7, 1)]))


def test_a_sequential_order_starts_again_at_each_epoch() -> None:
    assert windows_of_step(2, 4, 10, 7, shuffled=False).tolist() == [8, 9, 0, 1]


def test_a_batch_may_be_larger_than_an_epoch() -> None:
    windows = windows_of_step(0, 7, 3, 7, shuffled=True)
    assert sorted(windows[:3]) == sorted(windows[3:6]) == [0, 1, 2]
