"""Generate tokens one after another, with a cache of keys and values: the iterator under samples, chat and servers.

B rows, P tokens of a prompt, V padded vocabulary.
"""

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from regpt.generation.drawing import Drawn, Request, choose_rows, describe_rows
from regpt.model.cache import KeyValueCache
from regpt.model.evaluation_mode import evaluation_mode
from regpt.model.gpt import GPT


@torch.no_grad()
def generate_tokens(
    model: GPT,
    prompts: Tensor,
    requests: Sequence[Request],
    vocabulary: int,
    check_stop: Callable[[], None] = lambda: None,
) -> Generator[list[Drawn | None], None, None]:
    """Yield the next token of each row, round after round, as soon as they are drawn; None for rows that have ended.

    Args:
        model: the model; it keeps its mode
        prompts: prompts of one length  (B, P)
        requests: what each row asks for
        vocabulary: tokens from this one on are padding and never drawn
        check_stop: called before each round; may raise to stop

    Ends when all rows have ended; a reader may leave earlier. Each row has its own random generator, and tokens are
    drawn on the CPU, so a seed gives the same tokens alone, in a batch, on every device that computes the same logits,
    and for any number of ranks. When the block is full, its second half is read again and generation continues.
    """
    generators = [torch.Generator().manual_seed(request.sampling.seed) for request in requests]
    block_size = model.recipe.block_size
    tokens, unread = prompts[:, -block_size:], prompts[:, -block_size:]
    cache: KeyValueCache | None = None
    left = [request.new_tokens for request in requests]
    while any(left):
        check_stop()
        if cache is not None and cache.length == block_size:
            tokens = unread = tokens[:, -max(1, block_size // 2) :]
            cache = None
        with evaluation_mode(model):
            if cache is None:
                cache = KeyValueCache(model.recipe, len(tokens), model.head_weight.dtype, tokens.device)
            logits = model.next_logits(unread, cache)[:, :vocabulary].float().cpu()
        chosen = choose_rows(logits, [request.sampling for request in requests], generators)
        drawn = describe_rows(logits, chosen, requests)
        unread = chosen[:, None].to(tokens.device)
        tokens = torch.cat([tokens, unread], dim=1)
        yield [one if count else None for one, count in zip(drawn, left, strict=True)]
        left = [
            0 if one.token in request.ends else max(0, count - 1)
            for one, request, count in zip(drawn, requests, left, strict=True)
        ]
