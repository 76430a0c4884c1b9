"""Chunk sizes of the loss. Without torch, because `plan` estimates memory from them."""

from math import ceil

# Logits at a time. On a CPU 64 MiB. With gradients 128 MiB, and in bfloat16, where adding a chunk to the gradient of
# the weight includes a cast, 256 MiB: a step took 0.94 to 0.98 of the time with 64 (docs/log.md, 2026-11-27). On a GPU
# 512 MiB in float32, so that the gradient of the weight is read and written a few times per micro-batch, not a hundred.
# Compiled logits have two bytes each in bfloat16, so that twice as many fit: 4,096 rows of 50,304. On an H200 32,768
# positions took 16.3 ms with these, 17.5 ms with half and 16.0 ms with twice the rows.
CHUNK_LOGITS_ON_CPU = 1 << 24
GRADIENT_CHUNK_LOGITS_ON_CPU = 1 << 25
BFLOAT16_GRADIENT_CHUNK_LOGITS_ON_CPU = 1 << 27
CHUNK_LOGITS_ON_GPU = 1 << 27
COMPILED_CHUNK_LOGITS_ON_GPU = 1 << 28
TILE = 64  # rows of a tile of a matrix product
ELEMENTS_IN_CACHE = 1 << 21  # 8 MiB in float32; with a quarter or a half of it, the loss was slower


def rows_of_chunk(
    positions: int, vocab_size: int, on_cpu: bool, compiled: bool, bfloat16: bool, gradients: bool = True
) -> int:
    """Return how many of the positions are one chunk: whole tiles within the limit, in as few chunks as possible.

    The compiled kernel has one shape, so its chunks divide the positions evenly where that costs less than half of
    the chunk's size.
    """
    if on_cpu:
        with_gradients = BFLOAT16_GRADIENT_CHUNK_LOGITS_ON_CPU if bfloat16 else GRADIENT_CHUNK_LOGITS_ON_CPU
        limit = with_gradients if gradients else CHUNK_LOGITS_ON_CPU * (2 if bfloat16 else 1)
    else:
        limit = COMPILED_CHUNK_LOGITS_ON_GPU if compiled else CHUNK_LOGITS_ON_GPU
    most = max(1, limit // vocab_size)
    if most <= TILE:
        return min(most, positions)
    most -= most % TILE
    if positions <= most:
        return positions
    if compiled:
        even = (rows for rows in range(most, most // 2, -TILE) if positions % rows == 0)
        return next(even, most)
    chunks = ceil(positions / most)
    return ceil(positions / chunks / TILE) * TILE


def rows_in_cache(rows: int, width: int) -> int:
    """Return how many of the rows of a matrix the cache of a CPU holds, at least one."""
    return min(rows, max(1, ELEMENTS_IN_CACHE // width))
