"""Sampling draws what it is told to draw from."""

import pytest
import torch

from regpt.data.tokenizer import END_OF_TEXT, VOCABULARY
from regpt.evaluation.sampling import Sampling, choose, continuations, generate
from tests.model.test_gpt import SMALL, model_of


def scores(rows: int = 600) -> torch.Tensor:
    """Likelihoods 0.4, 0.3, 0.2, 0.1 of tokens 7, 5, 3, 1, and a padding row that is likeliest of all."""
    row = torch.full((50_304,), -1e9)
    row[[7, 5, 3, 1]] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    row[VOCABULARY] = 100.0
    return row.repeat(rows, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((1.0, 0, 1.0), {7: 0.4, 5: 0.3, 3: 0.2, 1: 0.1}),
        ((1.0, 2, 1.0), {7: 4 / 7, 5: 3 / 7}),
        ((1.0, 0, 0.69), {7: 4 / 7, 5: 3 / 7}),
        ((1.0, 0, 0.71), {7: 4 / 9, 5: 3 / 9, 3: 2 / 9}),
        ((0.5, 0, 1.0), {7: 16 / 30, 5: 9 / 30, 3: 4 / 30, 1: 1 / 30}),
        ((0.0, 0, 1.0), {7: 1.0}),
        ((1.0, 0, 0.0), {}),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(
    settings: tuple[float, int, float], expected: dict[int, float]
) -> None:
    temperature, top_k, top_p = settings
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = choose(scores(), sampling, [torch.Generator().manual_seed(1)] * 600)
    found = {int(token): float((drawn == token).float().mean()) for token in drawn.unique()}
    expected = expected or {7: 1.0}  # top_p 0 keeps the likeliest
    assert found.keys() == expected.keys()
    assert all(found[token] == pytest.approx(share, abs=0.07) for token, share in expected.items())


def test_a_seed_gives_the_same_text_and_another_seed_another() -> None:
    model = model_of(SMALL)
    one, same, other = (continuations(model, "def f(", 2, 10, Sampling(seed=seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert all(text.startswith("def f(") for text in one)


def test_generation_goes_on_beyond_the_block() -> None:
    model = model_of(SMALL)
    tokens = generate(model, torch.tensor([[END_OF_TEXT]]), 60, Sampling(temperature=0))
    assert tokens.shape == (1, 61)
    long_prompt = torch.randint(0, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(generate(model, long_prompt, 3, Sampling(temperature=0))[:, :40], long_prompt)


def test_sampling_leaves_the_training_mode_and_the_random_state_as_they_were() -> None:
    model = model_of(SMALL).train()
    state = torch.get_rng_state()
    continuations(model, "x", 1, 3, Sampling())
    assert model.training and torch.equal(state, torch.get_rng_state())


def test_an_empty_prompt_begins_a_document_and_does_not_show_its_end_token() -> None:
    (text,) = continuations(model_of(SMALL), "", 1, 5, Sampling(seed=3))
    assert "<|endoftext|>" not in text[:13]
