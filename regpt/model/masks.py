"""Which earlier tokens attention may see: those of a shared prefix, or those of the same document.

B sequences, T positions of queries, S positions of keys, H heads of queries, K heads of keys and values, D width of a
head.

A document begins with <|endoftext|>, or what ends a text in another vocabulary. The prediction of that token belongs to
the document before. A document's number at a position is how many of these tokens the position can see, so that it is
right in plain rows, behind a shared prefix and with a cache.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.machine.attention import has_grouped_kernel
from regpt.machine.cpu_attention import causal_attention, is_faster

NO_TOKEN = -1  # the end of a text where a tokenizer has no such token


class SharedPrefix(NamedTuple):
    """Layout of rows that pack several continuations after one shared prefix.

    A segment attends to the prefix and to itself, so that a context is computed once for all its continuations.
    """

    positions: Tensor  # (B, T), position of each token in its own sequence: prefix and segment
    segments: Tensor  # (B, T), 0 in the prefix, then 1, 2 …; -1 in padding

    def visible(self) -> Tensor:
        """Return whether a query (second to last) may see a key (last).  (B, T, T)"""
        same = self.segments[:, :, None] == self.segments[:, None, :]
        in_prefix = self.segments[:, None, :] == 0
        return causal(self.segments.shape[1], self.segments.device) & (same | in_prefix)


def causal(T: int, device: torch.device) -> Tensor:
    """Return whether a query may see a key that is not later.  (T, T)"""
    return torch.ones(T, T, dtype=torch.bool, device=device).tril()


def document_numbers(tokens: Tensor, visible: Tensor | None, end_of_text: int) -> Tensor:
    """Return the number of each position's document. `visible` is None where all earlier tokens are visible.

    (B, T), (B, T, T) -> (B, T)
    """
    begins = tokens == end_of_text
    return begins.cumsum(dim=1) if visible is None else (visible & begins[:, None, :]).sum(dim=2)


def same_document(queries: Tensor, keys: Tensor, visible: Tensor | None = None) -> Tensor:
    """Return whether a query may see a key, from the numbers of their documents. The last key is the last query's.

    (B, T), (B, S) -> (B, T, S)
    """
    T, S = queries.shape[1], keys.shape[1]
    if visible is None:
        visible = torch.ones(T, S, dtype=torch.bool, device=queries.device).tril(S - T)
    return visible & (queries[:, :, None] == keys[:, None, :])


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask as numbers that are added to attention scores. Made once, not in each layer.

    (B, T, S) -> (B, 1, T, S)
    """
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill_(~visible, float("-inf"))[:, None]


def document_blocks(documents: Tensor) -> Any:
    """Return the documents' mask for FlexAttention, which skips blocks of pairs that no query sees.  (B, T)

    arXiv 2412.05496. Compiled on CUDA only.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    B, T = documents.shape

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (documents[b, q] == documents[b, k])

    return create_block_mask(sees, B, None, T, T, device=str(documents.device))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, dropout: float) -> Tensor:
    """Attention under a mask of `additive` or `document_blocks`, causal without one.

    T queries attend to T keys, or with a filled cache one query to all keys before it. Each head of keys and values
    serves H / K consecutive heads of queries (Ainslie et al. 2023, arXiv 2305.13245).
    (B, H, T, D), two (B, K, T, D) -> (B, H, T, D)
    """
    if mask is None and not dropout and is_faster(q, k):
        return causal_attention(q, k, v)
    grouped = q.shape[1] != k.shape[1]
    if mask is None or isinstance(mask, Tensor):
        if grouped and not has_grouped_kernel(q, mask):
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
            grouped = False
        is_causal = mask is None and q.shape[2] > 1
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, enable_gqa=grouped
        )
    from torch.nn.attention.flex_attention import flex_attention

    mixed: Tensor = flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)
    return mixed
