"""Measure the data loader: random windows of 1,024 tokens from 2 GB of shards.

    python -m benchmarks.loader [--batches N]

Reports tokens per second, memory, and the share of a training step. The step is that of the 124M recipe on a GPU with
250,000 tokens/s: 524,288 tokens in 2.1 s. Training reads on a separate thread; the share is the cost if it did not.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.history import Goal, Section, measure_of
from regpt.data.batches import BatchLoader, equal_batches
from regpt.data.import_shards import find_shards, import_shards
from regpt.data.shards import TokenWindows

SHARDS = 10
SHARD_TOKENS = 100_000_000
BLOCK_SIZE = 1024
BATCH_WINDOWS = 512
CARD_TOKENS_PER_SECOND = 250_000


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.splitlines()[0])
    options.add_argument("--batches", type=int, default=10_000, help="number of batches to read (default: 10,000)")
    report(options.parse_args().batches)


def report(batches: int = 10_000) -> Section:
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder))
        seconds, memory = measure(Path(folder), batches)
    rate = batches * BATCH_WINDOWS * BLOCK_SIZE / seconds
    share = CARD_TOKENS_PER_SECOND / rate
    quarter = len(memory) // 4
    text = (
        f"{SHARDS * SHARD_TOKENS * 2 / 1e9:.0f} GB of shards, shuffled windows of {BLOCK_SIZE:,}, batches of"
        f" {BATCH_WINDOWS} windows with their digests: **{rate / 1e6:,.1f} M tokens/s** on one thread, {share:.2%} of a"
        f" step on a GPU with {CARD_TOKENS_PER_SECOND:,} tokens/s (goal: under 1 %)\n\n"
        f"Resident memory over {batches:,} batches: {memory[quarter] / 1e6:,.1f} MB after a quarter of them,"
        f" {max(memory[quarter:]) / 1e6:,.1f} MB at most after that, {memory[-1] / 1e6:,.1f} MB at the end"
    )
    print(text, flush=True)
    figure = measure_of("loader: share of a step on a GPU", [share], Goal(0.01, at_most=True))
    return Section("The loader", text, (figure,))


def write_shards(folder: Path) -> None:
    random = np.random.default_rng(1)
    for number in range(SHARDS):
        name = "val" if number == 0 else "train"
        np.save(folder / f"{name}_{number:06d}.npy", random.integers(0, 50_257, SHARD_TOKENS, dtype=np.uint16))


def measure(folder: Path, batches: int) -> tuple[float, list[int]]:
    """Return (seconds, resident bytes after every 100 batches)."""
    manifest = import_shards(folder, find_shards(folder), None)
    windows = TokenWindows(folder, manifest, "train", BLOCK_SIZE)
    process = psutil.Process()
    memory = []
    with BatchLoader(
        windows, positions=equal_batches(BATCH_WINDOWS), micro_batch=32, seed=1337, shuffled=True
    ) as loader:
        loader.read(0)
        began_at = time.perf_counter()
        for step in range(batches):
            loader.read(step)
            if step % 100 == 99:
                memory.append(process.memory_info().rss)
        return time.perf_counter() - began_at, memory


if __name__ == "__main__":
    main()
