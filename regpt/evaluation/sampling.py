"""Sample texts from a model: continuations of one prompt, shared among ranks, whole or as they are drawn."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regpt.data.tokenizer import GPT2_TOKENIZER, VOCABULARY, Tokenizer
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.sharding import gather_pieces, shares_of_rank
from regpt.evaluation.text_stream import TextStream
from regpt.generation.decoder import generate_tokens
from regpt.generation.drawing import Request, Sampling
from regpt.model.gpt import GPT


def generate(
    model: GPT,
    prompts: Tensor,
    new_tokens: int,
    sampling: Sampling,
    check_stop: Callable[[], None] = lambda: None,
    numbers: Sequence[int] | None = None,
    vocabulary: int = VOCABULARY,
) -> Tensor:
    """Continue prompts of one length, never ending early.  (B, P) -> (B, P + new_tokens)

    The generator of each row is seeded with the seed plus the row's number (`numbers`, by default 0, 1, …).
    `generate_tokens` describes the rest.
    """
    requests = make_requests(sampling, range(len(prompts)) if numbers is None else numbers, new_tokens)
    texts: list[list[int]] = [[] for _ in prompts]
    for drawn in generate_tokens(model, prompts, requests, vocabulary, check_stop):
        for text, one in zip(texts, drawn, strict=True):
            text += [] if one is None else [one.token]
    new = torch.tensor(texts, dtype=prompts.dtype, device=prompts.device).reshape(len(texts), -1)
    return torch.cat([prompts, new], dim=1)


def make_requests(
    sampling: Sampling, numbers: Sequence[int], new_tokens: int, ends: frozenset[int] = frozenset()
) -> list[Request]:
    """Return the requests of texts with these numbers, which are added to the seed."""
    return [
        Request(sampling=replace(sampling, seed=sampling.seed + number), new_tokens=new_tokens, ends=ends)
        for number in numbers
    ]


def stream_texts(
    model: GPT, prompt: str, count: int, new_tokens: int, sampling: Sampling, tokenizer: Tokenizer
) -> Iterator[tuple[int, str]]:
    """Yield the texts of `continuations` in pieces, as they are drawn: the number of a text, and its next piece.

    All texts are drawn at the same time. The pieces of one text are yielded as they come, those of later texts when it
    has ended.
    """
    ids = tokenizer.context(prompt)
    prompts = torch.from_numpy(ids).repeat(count, 1).to(model.head_weight.device)
    requests = make_requests(sampling, range(count), new_tokens, tokenizer.eos)
    streams = [TextStream(tokenizer.decode) for _ in range(count)]
    ready = [stream.add(*ids.tolist()) for stream in streams]
    left = [new_tokens] * count
    current = 0
    for drawn in generate_tokens(model, prompts, requests, tokenizer.vocabulary):
        for number, one in enumerate(drawn):
            if one is not None:
                is_end = one.token in tokenizer.eos
                left[number] = 0 if is_end else left[number] - 1
                ready[number] += "" if is_end else streams[number].add(one.token)
        while current < count:
            yield current, ready[current]
            ready[current] = ""
            if left[current]:
                break
            yield current, streams[current].finish()
            current += 1
    for number in range(current, count):
        yield number, ready[number] + streams[number].finish()


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
