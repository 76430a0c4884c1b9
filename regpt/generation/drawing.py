"""Draw the next token of each row from its logits.

B rows, V tokens of the vocabulary, M most likely tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_TEMPERATURE = 1e-6  # logits divided by less overflow
NUCLEUS = 512  # tokens that are sorted at first for top-p; all of them where these are not enough


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0  # below LEAST_TEMPERATURE: greedy decoding
    top_k: int = 0  # draw from the k most likely tokens; 0: from all
    top_p: float = 1.0  # draw from the most likely tokens that together reach this probability; 1: from all
    seed: int = 42

    @property
    def is_greedy(self) -> bool:
        return self.temperature < LEAST_TEMPERATURE

    @property
    def truncates(self) -> bool:
        """Whether unlikely tokens are never drawn."""
        return self.top_k > 0 or self.top_p < 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one row of a batch asks for."""

    sampling: Sampling
    new_tokens: int
    ends: frozenset[int] = frozenset()  # the row ends behind one of these tokens
    alternatives: int | None = None  # report logarithms of probabilities, of this many other tokens too; None: of none


class Drawn(NamedTuple):
    """A token that a row has drawn."""

    token: int
    # Natural logarithm of the model's probability, before temperature and truncation; None unless asked for.
    log_probability: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()  # the most likely tokens with the same, most likely first


def choose(logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]) -> Tensor:
    """Draw the next token of each row, by its own rule and generator.  (B, V) -> (B), on the CPU

    Random numbers are a CPU's, so that a seed means the same on every device. Whatever looks at the whole vocabulary
    runs on the device of the logits; the candidates of top-k and top-p are drawn from on the CPU.

    Each token gets a random number e from the exponential distribution, and the largest probability / e wins: the
    Gumbel-max trick. A row draws the same token alone and in a batch, although the sums of a forward pass differ there
    in the last digits: another token wins only where two of these quotients agree to about six digits. With a
    cumulative sum over 50,000 tokens, each of them would move a little and the drawn one with them.
    """
    logits = logits.float()
    chosen = torch.empty(len(logits), dtype=torch.int64)
    whole = [row for row, rule in enumerate(samplings) if not (rule.is_greedy or rule.truncates)]
    truncated = [row for row, rule in enumerate(samplings) if rule.truncates and not rule.is_greedy]
    greedy = [row for row, rule in enumerate(samplings) if rule.is_greedy]
    if greedy:
        chosen[greedy] = logits[greedy].argmax(dim=1).cpu()
    for rows in filter(None, (whole, truncated)):
        rules = [samplings[row] for row in rows]
        scaled = logits[rows] / column(rule.temperature for rule in rules).to(logits.device)
        uniform = uniform_numbers([generators[row] for row in rows], logits.shape[1])
        if rows is truncated:
            scaled, tokens = most_likely(scaled, rules)
            winners = (scaled - exponential_(uniform.gather(1, tokens)).log_()).argmax(dim=1, keepdim=True)
            chosen[rows] = tokens.gather(1, winners).squeeze(1)
        else:
            chosen[rows] = (scaled - exponential_(uniform).to(logits.device).log_()).argmax(dim=1).cpu()
    return chosen


def uniform_numbers(generators: Sequence[torch.Generator], count: int) -> Tensor:
    """Return numbers between 0 and 1, each row by its generator: one for each token, drawn or not.  -> (B, count)"""
    uniform = torch.empty(len(generators), count, dtype=torch.float64)
    for row, generator in zip(uniform, generators, strict=True):
        row.uniform_(generator=generator)
    return uniform


def exponential_(uniform: Tensor) -> Tensor:
    """Turn uniform numbers into numbers from the exponential distribution, in float32.  (...) -> (...)

    By the logarithm of 53 random bits: `Tensor.exponential_` takes three times as long on a CPU.
    """
    return uniform.log_().neg_().float()


def most_likely(logits: Tensor, rules: Sequence[Sampling], most: int = NUCLEUS) -> tuple[Tensor, Tensor]:
    """Return the tokens that top-k and top-p keep, with their logits, on the CPU; those of other tokens are -inf.

    `most` tokens are sorted where only top-p limits them, and all where these do not reach top-p.
    (B, V) -> (B, M), (B, M)
    """
    V = logits.shape[1]
    best, tokens = (few.cpu() for few in logits.topk(min(V, max(rule.top_k or most for rule in rules)), dim=1))
    M = best.shape[1]
    top_k = column(rule.top_k or V for rule in rules)
    top_p = column(rule.top_p if rule.top_p < 1 else torch.inf for rule in rules)  # a rounded sum may exceed 1
    best = best.masked_fill(torch.arange(M) >= top_k, -torch.inf)
    # Nucleus sampling (Holtzman et al. 2020): keep the most likely tokens, including the one that reaches top_p.
    total = best.logsumexp(1, keepdim=True)
    if (top_k >= V).any():
        total = torch.where(top_k < V, total, logits.logsumexp(1, keepdim=True).cpu())
    reached = (best - total).exp().cumsum(dim=1)
    if M < V and ((reached[:, -1:] < top_p) & (top_k > M)).any():
        return most_likely(logits, rules, V)
    best[:, 1:].masked_fill_(reached[:, :-1] >= top_p, -torch.inf)
    return best, tokens


def column(values: Iterable[float]) -> Tensor:
    """(B, 1)"""
    return torch.tensor(list(values))[:, None]


def describe_rows(logits: Tensor, chosen: Tensor, requests: Sequence[Request]) -> list[Drawn]:
    """Return the drawn tokens, with probabilities for the rows that ask for them.  (B, V), (B)"""
    return [
        Drawn(token) if request.alternatives is None else describe(row, token, request.alternatives)
        for row, token, request in zip(logits, chosen.tolist(), requests, strict=True)
    ]


def describe(logits: Tensor, token: int, alternatives: int) -> Drawn:
    """Return a token with its probability, and those of the most likely ones.  (V)"""
    log_probabilities = logits.log_softmax(dim=0)
    best = log_probabilities.topk(min(alternatives, len(logits)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Drawn(token, float(log_probabilities[token]), tuple(pairs))
