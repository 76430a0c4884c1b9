"""Chunk sizes of the loss. Without torch, because `plan` estimates memory from them."""

# Logits at a time. On the CPU 64 MiB in float32: with more rows products were faster but sums slower. On a GPU 512 MiB,
# so that the gradient of the weight is read and written a dozen times per micro-batch, not a hundred; estimated, not
# measured.
CHUNK_LOGITS_ON_CPU = 1 << 24
CHUNK_LOGITS_ON_GPU = 1 << 27
