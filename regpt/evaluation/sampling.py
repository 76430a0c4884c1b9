"""From a prompt to text: one token after another, with a cache of keys and values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regpt.data import tokenizer
from regpt.distributed.ranks import RankGroup
from regpt.model.gpt import GPT, KeyValueCache


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0  # 0 takes the likeliest
    top_k: int = 0  # draw among so many of the likeliest; 0: all
    top_p: float = 1.0  # draw among the likeliest that together reach this share; 1: all
    seed: int = 42


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Tensor,
    new_tokens: int,
    sampling: Sampling,
    between: Callable[[], None] = lambda: None,
    numbers: Sequence[int] | None = None,
) -> Tensor:
    """Continue prompts of one length.  (B, P) -> (B, P + new_tokens)

    Tokens are drawn on the CPU, each row's from a generator of its own, seeded with the seed and the row's number: so a
    seed gives the same texts on every device that gives the same scores, and however they are shared out. When the
    block is full, its second half is read again and generation goes on. `between` is called before each token; it may
    raise to stop.
    """
    training = model.training
    model.eval()
    try:
        numbers = range(len(prompts)) if numbers is None else numbers
        generators = [torch.Generator().manual_seed(sampling.seed + number) for number in numbers]
        block_size = model.recipe.block_size
        tokens, unread, cache = prompts, prompts[:, -block_size:], None
        for _ in range(new_tokens):
            between()
            if cache is not None and cache.length == block_size:
                unread, cache = tokens[:, -max(1, block_size // 2) :], None
            if cache is None:
                cache = KeyValueCache(model.recipe, len(tokens), model.head_weight.dtype, tokens.device)
            scores = model.next_logits(unread, cache)
            unread = choose(scores, sampling, generators)[:, None].to(tokens.device)
            tokens = torch.cat([tokens, unread], dim=1)
    finally:
        model.train(training)
    return tokens


def choose(scores: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw a next token for each row of scores.  (B, V) -> (B)"""
    scores = scores[:, : tokenizer.VOCABULARY].float().cpu()  # rows that pad the vocabulary are no tokens
    if sampling.temperature == 0:
        return scores.argmax(dim=1)
    ordered, tokens = (scores / sampling.temperature).sort(dim=1, descending=True, stable=True)
    likelihoods = ordered.softmax(dim=1)
    if sampling.top_k:
        likelihoods[:, sampling.top_k :] = 0.0
    # nucleus: the likeliest tokens up to and including the one that reaches top_p
    before = likelihoods.cumsum(dim=1) - likelihoods
    likelihoods[:, 1:][before[:, 1:] >= sampling.top_p * likelihoods.sum(dim=1, keepdim=True)] = 0.0
    rows = zip(likelihoods, generators, strict=True)
    drawn = torch.stack([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
    return tokens.gather(1, drawn).squeeze(1)


def continuations(
    model: GPT,
    prompt: str,
    count: int,
    new_tokens: int,
    sampling: Sampling,
    between: Callable[[], None] = lambda: None,
    ranks: RankGroup | None = None,
) -> list[str]:
    """`count` texts that begin with the prompt, dealt to the ranks in turn. An empty prompt begins a new document."""
    ranks = ranks or RankGroup()
    ids = torch.tensor(tokenizer.encode(prompt).astype("int64") if prompt else [tokenizer.END_OF_TEXT])
    each = -(-count // ranks.size)
    # where none is left, the last one again: a sharded model gathers its weights from everybody
    numbers = [min(ranks.rank + turn * ranks.size, count - 1) for turn in range(each)]
    prompts = ids.repeat(each, 1).to(model.head_weight.device)
    mine = generate(model, prompts, new_tokens, sampling, between, numbers).cpu().numpy()
    tokens = ranks.all_gather(mine).swapaxes(0, 1).reshape(-1, mine.shape[1])[:count]
    return [tokenizer.decode(row[0 if prompt else 1 :]) for row in np.asarray(tokens).tolist()]
