"""Tokens are drawn from what the rule keeps, and a difference in the last digits of the logits does not change them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regpt.generation.drawing import Sampling, choose, most_likely

V = 700  # more than are sorted at first for top-p


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + number) for number in range(count)]


def kept_by_sorting(logits: torch.Tensor, rule: Sampling) -> set[int]:
    """Return the tokens that a rule keeps, as in Holtzman et al. 2020, by sorting the vocabulary."""
    probabilities, tokens = logits.double().softmax(0).sort(descending=True, stable=True)
    probabilities = probabilities[: rule.top_k or V] / probabilities[: rule.top_k or V].sum()
    before = probabilities.cumsum(0) - probabilities
    count = max(1, int((before < rule.top_p).sum()))
    return set(tokens[:count].tolist())


rules = st.builds(
    Sampling, top_k=st.sampled_from([0, 1, 7, 699, 700, 5000]), top_p=st.sampled_from([0.0, 0.3, 0.97, 1.0])
)


@settings(max_examples=20)
@given(st.lists(rules, min_size=1, max_size=4), st.floats(0.1, 4), st.integers(0, 1000))
def test_kept_tokens_are_those_of_sorting_the_vocabulary(found: list[Sampling], spread: float, seed: int) -> None:
    """Also where the 512 most likely tokens do not reach top-p."""
    logits = spread * torch.randn(len(found), V, generator=torch.Generator().manual_seed(seed))
    values, tokens = most_likely(logits, found)
    for row, rule in enumerate(found):
        kept = set(tokens[row, values[row] > -torch.inf].tolist())
        assert len(kept ^ kept_by_sorting(logits[row], rule)) <= (rule.top_p not in (0.0, 1.0))  # its sum is rounded


def test_last_digits_of_the_logits_do_not_change_the_token() -> None:
    """In a flat distribution over a large vocabulary, where each step of a cumulative sum is smaller than its error."""
    logits = 0.5 * torch.randn(20, 50_257, generator=torch.Generator().manual_seed(1))
    moved = logits * (1 + 1e-6 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)))
    first, second = (choose(one, [Sampling()] * 20, generators(20)) for one in (logits, moved))
    assert torch.equal(first, second)


def test_rows_of_a_batch_with_other_rules_draw_what_each_draws_alone() -> None:
    found = [
        Sampling(temperature=0.0),
        Sampling(top_k=3),
        Sampling(),
        Sampling(top_p=0.5, temperature=0.7),
        Sampling(top_k=9),
    ]
    logits = torch.randn(5, V, generator=torch.Generator().manual_seed(3))
    together = choose(logits, found, generators(5))
    for row, rule in enumerate(found):
        assert choose(logits[row : row + 1], [rule], generators(1, row)) == together[row : row + 1]
