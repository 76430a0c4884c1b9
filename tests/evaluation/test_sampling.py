"""Sampling draws from the distribution that its settings describe."""

import pytest
import torch

from regpt.data.tokenizer import END_OF_TEXT, VOCABULARY
from regpt.evaluation.sampling import continuations, first_document, generate
from regpt.generation.drawing import Sampling, choose
from regpt.model.gpt import GPT
from tests.model.test_gpt import CLASSIC, SMALL, model_of


def logits(rows: int, columns: int) -> torch.Tensor:
    """Return logits of tokens 7, 5, 3, 1 with probabilities 0.4, 0.3, 0.2, 0.1; other tokens have none."""
    row = torch.full((columns,), -1e9)
    row[[7, 5, 3, 1]] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    return row.repeat(rows, 1)


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
def test_draw_frequencies_equal_the_probabilities(
    settings: tuple[float, int, float], expected: dict[int, float]
) -> None:
    temperature, top_k, top_p = settings
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = choose(logits(600, 16), [sampling] * 600, [torch.Generator().manual_seed(1)] * 600)
    found = {int(token): float((drawn == token).float().mean()) for token in drawn.unique()}
    expected = expected or {7: 1.0}  # top_p 0 keeps the most likely token
    assert found.keys() == expected.keys()
    assert all(found[token] == pytest.approx(share, abs=0.07) for token, share in expected.items())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_of_the_vocabulary_is_never_drawn(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = logits(rows=40, columns=50_304)
    padded[:, VOCABULARY:] = 100.0  # more likely than all tokens
    monkeypatch.setattr(GPT, "next_logits", lambda self, unread, cache: padded)
    drawn = generate(model_of(SMALL), torch.zeros(40, 1, dtype=torch.int64), 1, Sampling(temperature=temperature))[:, 1]
    assert set(drawn.tolist()) == ({7} if temperature == 0 else {7, 5, 3, 1})


def test_seed_determines_the_text() -> None:
    model = model_of(SMALL)
    one, same, other = (continuations(model, "def f(", 2, 10, Sampling(seed=seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert all(text.startswith("def f(") for text in one)


def test_generation_continues_beyond_the_block() -> None:
    model = model_of(SMALL)
    tokens = generate(model, torch.tensor([[END_OF_TEXT]]), 60, Sampling(temperature=0))
    assert tokens.shape == (1, 61)
    long_prompt = torch.randint(0, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(generate(model, long_prompt, 3, Sampling(temperature=0))[:, :40], long_prompt)


def test_sampling_keeps_training_mode_and_random_state() -> None:
    model = model_of(SMALL).train()
    state = torch.get_rng_state()
    continuations(model, "x", 1, 3, Sampling())
    assert model.training and torch.equal(state, torch.get_rng_state())


def test_empty_prompt_starts_a_document_without_its_end_token() -> None:
    (text,) = continuations(model_of(SMALL), "", 1, 5, Sampling(seed=3))
    assert "<|endoftext|>" not in text


def ends_at_once(token: int) -> GPT:
    """Return a model whose most likely next token is always this one."""
    model = model_of(CLASSIC)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.final_norm.bias[0] = 1.0  # type: ignore[index, union-attr]
        model.token_embedding.weight[token, 0] = 1.0
    return model


def test_sample_ends_where_the_model_ends_its_document() -> None:
    greedy = Sampling(temperature=0)
    assert continuations(ends_at_once(END_OF_TEXT), "def f(", 2, 6, greedy) == ["def f("] * 2
    assert continuations(ends_at_once(END_OF_TEXT), "", 1, 6, greedy) == [""]
    assert continuations(ends_at_once(64), "def f(", 1, 3, greedy) == ["def f(aaa"]


@pytest.mark.parametrize(
    ("tokens", "begin", "kept"),
    [([9, 1, 2, 9, 3], 1, [9, 1, 2]), ([1, 2, 3], 1, [1, 2, 3]), ([9, 9], 1, [9]), ([8, 1, 8], 0, [])],
)
def test_first_document_is_cut_at_the_first_end_behind_the_prompt(
    tokens: list[int], begin: int, kept: list[int]
) -> None:
    assert first_document(tokens, begin, {8, 9}) == kept
