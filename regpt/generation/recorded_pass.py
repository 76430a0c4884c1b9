"""A pass of one token for each row, captured as a CUDA graph and replayed.

Such a pass is a few hundred kernels, which take a GPU less time than Python needs to launch them (docs/log.md,
2026-11-27). A recording has fixed shapes and addresses, so it covers all rows and positions for which the cache has
room, filled or not. Where the cache grows, the pass is recorded again.

B rows of the cache, R rows for which it has room, S positions for which it has room, V padded vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from regpt.distributed.dtensor import is_sharded
from regpt.model.cache import KeyValueCache
from regpt.model.evaluation_mode import evaluation_mode
from regpt.model.gpt import GPT


class WholeCache(KeyValueCache):
    """The memory of a cache in a pass of one token for each row that it has room for.

    Rows that the cache does not have compute something at their first position, which nobody reads.
    """

    def __init__(self, cache: KeyValueCache, positions: Tensor) -> None:
        """`positions` are those of the new tokens.  (R, 1)"""
        self.block_size, self.buffer, self.documents = cache.block_size, cache.buffer, cache.documents
        self.lengths = [0] * len(positions)
        self.rows, self.positions = torch.arange(len(positions), device=positions.device)[:, None], positions
        self.make_views(common=None)

    def begin(self, tokens: int) -> Tensor:
        assert tokens == 1
        return self.positions

    @property
    def end(self) -> int:
        return self.documents.shape[1]

    def visible(self) -> Tensor:
        return torch.arange(self.end, device=self.buffer.device) <= self.positions[:, :, None]

    def advance(self) -> None:
        """Leave the counting to the cache whose memory this is."""


class RecordedPass:
    """The pass of a model over one new token of each row of a cache."""

    def __init__(self, model: GPT, cache: KeyValueCache) -> None:
        self.model, self.cache = model, cache
        self.buffer: Tensor | None = None  # of the cache when the pass was recorded
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None  # (R, V)

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the logits behind a new token of each row, until the next call.  -> (B, V)"""
        lengths = self.cache.lengths
        self.cache.make_room(len(lengths), max(lengths) + 1)
        is_new = self.cache.buffer is not self.buffer
        if is_new:
            self.allocate()
        # Before recording, which computes the pass once and stores its keys and values.
        self.inputs[:, : len(lengths)] = torch.tensor([tokens, lengths])
        self.inputs[:, len(lengths) :] = 0
        if is_new and self.inputs.is_cuda:
            self.record()
        self.buffer = self.cache.buffer  # after a recording that has succeeded
        if self.graph is not None:
            self.graph.replay()
        else:
            self.logits = self.compute()
        assert self.logits is not None
        self.cache.lengths = [length + 1 for length in lengths]
        return self.logits[: len(lengths)]

    def allocate(self) -> None:
        """Make inputs for all rows that the cache has room for: tokens and positions. Free an earlier recording."""
        self.buffer = self.graph = self.logits = None
        device = self.cache.buffer.device
        self.inputs = torch.zeros(2, len(self.cache.documents), dtype=torch.long, device=device)
        self.whole = WholeCache(self.cache, self.inputs[1, :, None])

    def compute(self) -> Tensor:
        """-> (R, V)"""
        with torch.no_grad(), evaluation_mode(self.model):
            return self.model.next_logits(self.inputs[0, :, None], self.whole)

    def record(self) -> None:
        """Record the pass, after a first one, in which libraries allocate what they need.

        Torch returns the memory that it keeps unused to the system then, so the next training step asks for it again.
        """
        with torch.cuda.device(self.inputs.device):
            stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.compute()
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads may use the GPU meanwhile: one of them writes a checkpoint.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.logits = self.compute()
        self.graph = graph


def can_record(model: GPT) -> bool:
    """Return whether passes of a model are recorded: on CUDA, if the model is whole and its shapes are fixed.

    The shapes of experts depend on where tokens are routed. Deterministic indexing waits for the GPU, which a recording
    cannot.
    """
    weight = model.head_weight
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    return weight.is_cuda and not (is_sharded(weight) or model.recipe.experts or is_deterministic)
