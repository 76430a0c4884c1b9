"""Sample text from a model, one token after another, with a cache of keys and values."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regpt.data.tokenizer import GPT2_TOKENIZER, VOCABULARY, Tokenizer
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.sharding import evaluation_mode, gather_pieces, shares_of_rank
from regpt.model.gpt import GPT, KeyValueCache


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0  # 0: greedy decoding
    top_k: int = 0  # draw from the k most likely tokens; 0: from all
    top_p: float = 1.0  # draw from the most likely tokens that together reach this probability; 1: from all
    seed: int = 42


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Tensor,
    new_tokens: int,
    sampling: Sampling,
    check_stop: Callable[[], None] = lambda: None,
    numbers: Sequence[int] | None = None,
    vocabulary: int = VOCABULARY,
) -> Tensor:
    """Continue prompts of one length.  (B, P) -> (B, P + new_tokens)

    Tokens are drawn on the CPU. Each row has its own generator, seeded with the seed plus the row's number (`numbers`,
    by default 0, 1, …): so a seed gives the same texts on every device that computes the same logits, and for any
    number of ranks. When the block is full, its second half is read again and generation continues. `check_stop` is
    called before each token; it may raise to stop. Tokens from `vocabulary` on are padding and never drawn.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    generators = [torch.Generator().manual_seed(sampling.seed + number) for number in numbers]
    block_size = model.recipe.block_size
    tokens, unread, cache = prompts, prompts[:, -block_size:], None
    with evaluation_mode(model):
        for _ in range(new_tokens):
            check_stop()
            if cache is not None and cache.length == block_size:
                unread, cache = tokens[:, -max(1, block_size // 2) :], None
            if cache is None:
                cache = KeyValueCache(model.recipe, len(tokens), model.head_weight.dtype, tokens.device)
            logits = model.next_logits(unread, cache)[:, :vocabulary]
            unread = choose(logits, sampling, generators)[:, None].to(tokens.device)
            tokens = torch.cat([tokens, unread], dim=1)
    return tokens


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw the next token of each row.  (B, V) -> (B)"""
    logits = logits.float().cpu()
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    ordered, tokens = (logits / sampling.temperature).sort(dim=1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=1)
    if sampling.top_k:
        probabilities[:, sampling.top_k :] = 0.0
    # Nucleus sampling (Holtzman et al. 2020): keep the most likely tokens, including the one that reaches top_p.
    before = probabilities.cumsum(dim=1) - probabilities
    probabilities[:, 1:][before[:, 1:] >= sampling.top_p * probabilities.sum(dim=1, keepdim=True)] = 0.0
    rows = zip(probabilities, generators, strict=True)
    drawn = torch.stack([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
    return tokens.gather(1, drawn).squeeze(1)


def continuations(
    model: GPT,
    prompt: str,
    count: int,
    new_tokens: int,
    sampling: Sampling,
    check_stop: Callable[[], None] = lambda: None,
    ranks: RankGroup | None = None,
    tokenizer: Tokenizer = GPT2_TOKENIZER,
) -> list[str]:
    """Sample `count` texts that begin with the prompt, dealt to the ranks in turn.

    An empty prompt starts a new document. A text ends where the model ends its document, or after `new_tokens`.
    """
    ranks = ranks or RankGroup()
    ids = torch.from_numpy(tokenizer.context(prompt))
    numbers = [share.piece for share in shares_of_rank(count, ranks)]
    prompts = ids.repeat(len(numbers), 1).to(model.head_weight.device)
    by_round = generate(model, prompts, new_tokens, sampling, check_stop, numbers, tokenizer.vocabulary).cpu().numpy()
    tokens = gather_pieces(by_round, count, ranks)
    return [tokenizer.decode(first_document(row, len(ids), tokenizer.eos)) for row in tokens.tolist()]


def first_document(tokens: list[int], begin: int, ends: Collection[int]) -> list[int]:
    """Return the tokens before the first one from `begin` on that ends a document."""
    last = next((at for at, token in enumerate(tokens) if at >= begin and token in ends), len(tokens))
    return tokens[:last]
