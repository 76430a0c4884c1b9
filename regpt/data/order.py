"""The order of the training windows: a keyed permutation per epoch, a pure function of the position, in O(1) memory.

The permutation is the swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012, "An Enciphering Scheme Based on a
Card Shuffle"): in each round a number is paired with its mirror image about a secret point, and a secret bit of the
pair decides whether the two swap. It is a bijection for every count, needs no table, and computes each position by
itself. NumPy does not promise to keep its random streams, so the rounds use BLAKE2 and a fixed mixing function.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Mixed after 6 log2(count) rounds in the authors' analysis of one position; 90 is what the Ethereum consensus uses.
ROUNDS = 90
HIGHEST_BIT = np.uint64(1 << 63)


def shuffled_windows(positions: NDArray[np.integer], count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the windows at these positions of an epoch. All positions together give a permutation of range(count).

    Keyed with the pair (seed, epoch), not the sum: (seed 0, epoch 1) must differ from (seed 1, epoch 0).
    """
    x = np.asarray(positions, dtype=np.uint64)
    n = np.uint64(count)
    for point, key in round_keys(count, seed, epoch):
        mirrored = np.where(x <= point, point, point + n) - x
        x = np.where(secret_bit(np.maximum(x, mirrored) ^ key), mirrored, x)
    return x.astype(np.int64)


@lru_cache(maxsize=4)
def round_keys(count: int, seed: int, epoch: int) -> tuple[tuple[np.uint64, np.uint64], ...]:
    """Return for each round the mirror point, in range(count), and the key of the secret bits."""
    digests = (
        hashlib.blake2b(f"regpt order|{seed}|{epoch}|{number}".encode(), digest_size=24).digest()
        for number in range(ROUNDS)
    )
    return tuple(
        (np.uint64(int.from_bytes(digest[:16], "little") % count), np.uint64(int.from_bytes(digest[16:], "little")))
        for digest in digests
    )


def secret_bit(x: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return the highest bit of the finalizer of splitmix64 (Steele, Lea and Flood 2014); every input bit affects it.

    The last step of the finalizer does not change that bit and is left out.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x >= HIGHEST_BIT


def windows_of_step(step: int, batch_windows: int, count: int, seed: int, shuffled: bool) -> NDArray[np.int64]:
    """Return the windows of a step's global batch, for any ranks and micro-batch. It may cross into the next epoch."""
    return windows_at(range(step * batch_windows, (step + 1) * batch_windows), count, seed, shuffled)


def windows_at(positions: range, count: int, seed: int, shuffled: bool) -> NDArray[np.int64]:
    """Return the windows at these positions of the order, which runs through one epoch after another."""
    epochs, within = np.divmod(np.arange(positions.start, positions.stop, dtype=np.int64), count)
    if not shuffled:
        return within
    return np.concatenate(
        [shuffled_windows(within[epochs == epoch], count, seed, int(epoch)) for epoch in np.unique(epochs)]
    )
