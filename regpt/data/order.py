"""Which window comes when: a keyed permutation of all windows, anew each epoch, a pure function in O(1) memory.

The permutation is the swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012, "An Enciphering Scheme Based on a
Card Shuffle"): in each round a number is paired with its mirror image about a secret point, and a secret bit of the
pair says whether the two change places. It is a bijection for every count, needs no table, and finds each position by
itself. NumPy promises no random stream for ever, so the rounds are keyed with BLAKE2 and a fixed mixing function.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

# Mixed after 6 log2(count) rounds in the authors' analysis of one position; 90 is what the Ethereum consensus uses.
ROUNDS = 90


def shuffled_windows(positions: NDArray[np.integer], count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The windows that stand at these positions of an epoch. For all positions together: a permutation of range(count).

    Keyed with the pair (seed, epoch), not the sum: (seed 0, epoch 1) must differ from (seed 1, epoch 0).
    """
    x = np.asarray(positions, dtype=np.uint64)
    n = np.uint64(count)
    for number in range(ROUNDS):
        point, key = round_keys(count, seed, epoch, number)
        mirrored = (point + n - x) % n
        of_pair = np.maximum(x, mirrored)
        x = np.where(mix(of_pair ^ key) >> np.uint64(63) == 1, mirrored, x)
    return x.astype(np.int64)


def round_keys(count: int, seed: int, epoch: int, number: int) -> tuple[np.uint64, np.uint64]:
    """The mirror point, in range(count), and the key of the secret bits of one round."""
    digest = hashlib.blake2b(f"regpt order|{seed}|{epoch}|{number}".encode(), digest_size=24).digest()
    return np.uint64(int.from_bytes(digest[:16], "little") % count), np.uint64(int.from_bytes(digest[16:], "little"))


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def windows_of_step(step: int, batch_windows: int, count: int, seed: int, shuffled: bool) -> NDArray[np.int64]:
    """The windows of a step's global batch, whatever ranks and micro-batch. A step may cross into the next epoch."""
    positions = np.arange(step * batch_windows, (step + 1) * batch_windows, dtype=np.int64)
    epochs, within = np.divmod(positions, count)
    if not shuffled:
        return within
    return np.concatenate(
        [shuffled_windows(within[epochs == epoch], count, seed, int(epoch)) for epoch in np.unique(epochs)]
    )
