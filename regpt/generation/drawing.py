"""Draw the next token of each row from its logits.

B rows, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_TEMPERATURE = 1e-6  # logits divided by less overflow


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0  # below LEAST_TEMPERATURE: greedy decoding
    top_k: int = 0  # draw from the k most likely tokens; 0: from all
    top_p: float = 1.0  # draw from the most likely tokens that together reach this probability; 1: from all
    seed: int = 42

    @property
    def rule(self) -> tuple[float, int, float]:
        """Everything but the seed: rows with equal rules are drawn together."""
        return self.temperature, self.top_k, self.top_p


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


def choose_rows(logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]) -> Tensor:
    """Draw the next token of each row, each by its own rule.  (B, V) -> (B)"""
    rules = dict.fromkeys(sampling.rule for sampling in samplings)
    if len(rules) == 1:
        return choose(logits, samplings[0], generators)
    chosen = torch.empty(len(logits), dtype=torch.int64)
    for rule in rules:
        rows = [row for row, sampling in enumerate(samplings) if sampling.rule == rule]
        chosen[rows] = choose(logits[rows], samplings[rows[0]], [generators[row] for row in rows])
    return chosen


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw the next token of each row by one rule.  (B, V) -> (B)"""
    logits = logits.float().cpu()
    if sampling.temperature < LEAST_TEMPERATURE:
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
