"""The baseline of benchmarks.prepare: a pool of processes that encodes one document at a time.

    python -m benchmarks.plain_pool OUT PROCESSES SHARD_TOKENS FILE.parquet …

It does what public scripts do: each document goes to a worker and returns as an array, which the main process copies
into the current shard. The shards have the same tokens as regpt's, but are not hashed, and the work cannot be resumed.
"""

import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from regpt.data import tokenizer

ENCODING = tokenizer.encoding()


def encode(text: str) -> NDArray[np.uint16]:
    ids = np.array([tokenizer.END_OF_TEXT, *ENCODING.encode_ordinary(text)])
    assert (ids >= 0).all() and (ids < 2**16).all()
    return ids.astype(np.uint16)


def texts(paths: list[str]) -> Iterator[str]:
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(1000, columns=["text"]):
            yield from batch.column(0).to_pylist()


def main(out: Path, processes: int, shard_tokens: int, paths: list[str]) -> None:
    out.mkdir(parents=True)
    shard = np.empty(shard_tokens, dtype=np.uint16)
    filled = number = 0
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for ids in pool.imap(encode, texts(paths), chunksize=16):
            if filled + len(ids) >= shard_tokens:
                room = shard_tokens - filled
                shard[filled:] = ids[:room]
                np.save(out / f"shard_{number:06d}.npy", shard)
                number, ids, filled = number + 1, ids[room:], 0
            shard[filled : filled + len(ids)] = ids
            filled += len(ids)
    np.save(out / f"shard_{number:06d}.npy", shard[:filled])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
