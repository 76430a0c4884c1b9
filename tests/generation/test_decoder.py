"""Tokens are yielded as they are drawn, each row by its own rule, and text is held back until it is certain."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regpt.data.tokenizer import GPT2_TOKENIZER, VOCABULARY, decode, encode
from regpt.evaluation.sampling import continuations, generate, stream_texts
from regpt.evaluation.text_stream import TextStream
from regpt.generation.decoder import generate_tokens
from regpt.generation.drawing import Drawn, Request, Sampling
from regpt.model.gpt import GPT
from tests.evaluation.test_sampling import ends_at_once
from tests.model.test_gpt import SMALL, model_of

PROMPT = torch.tensor([[11, 22, 33]])
RULES = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.7, top_k=5, seed=3),
    Sampling(top_p=0.5, seed=4),
    Sampling(temperature=1.3, seed=5),
]


@pytest.fixture(scope="module")
def model() -> GPT:
    return model_of(SMALL)


def rows_of(model: GPT, requests: Sequence[Request]) -> list[list[Drawn]]:
    """Return the tokens of each row until its end."""
    rounds = list(generate_tokens(model, PROMPT.repeat(len(requests), 1), requests, VOCABULARY))
    return [[one for one in row if one is not None] for row in zip(*rounds, strict=True)]


def test_rows_of_a_batch_draw_the_tokens_that_they_draw_alone(model: GPT) -> None:
    requests = [Request(sampling=rule, new_tokens=6 + row) for row, rule in enumerate(RULES)]
    together = rows_of(model, requests)
    assert together == [rows_of(model, [request])[0] for request in requests]
    assert [len(row) for row in together] == [6, 7, 8, 9]
    assert len({tuple(row[:6]) for row in together}) == len(RULES)


def test_row_ends_behind_its_own_end_token(model: GPT) -> None:
    endless = Request(sampling=Sampling(temperature=1.3, seed=5), new_tokens=9)
    (plain,) = rows_of(model, [endless])
    ending = Request(sampling=endless.sampling, new_tokens=9, ends=frozenset([plain[4].token]))
    first, second = rows_of(model, [ending, endless])
    assert first == plain[:5] and second == plain


def test_generation_stops_computing_when_all_rows_have_ended() -> None:
    model, rounds = ends_at_once(64), []
    request = Request(sampling=Sampling(temperature=0.0), new_tokens=9, ends=frozenset([64]))
    found = list(generate_tokens(model, PROMPT, [request], VOCABULARY, lambda: rounds.append(None)))
    assert found == [[Drawn(64)]] and len(rounds) == 1


def test_reader_that_leaves_ends_the_generation(model: GPT) -> None:
    rounds: list[None] = []
    request = Request(sampling=Sampling(), new_tokens=1_000_000_000)
    tokens = generate_tokens(model, PROMPT, [request], VOCABULARY, lambda: rounds.append(None))
    next(tokens)
    next(tokens)
    tokens.close()
    assert len(rounds) == 2 and next(tokens, None) is None


def test_reader_keeps_its_gradients_and_the_model_its_mode_between_tokens() -> None:
    model = model_of(SMALL).train()
    tokens = generate_tokens(model, PROMPT, [Request(sampling=Sampling(), new_tokens=3)], VOCABULARY)
    next(tokens)
    assert torch.is_grad_enabled() and model.training


def test_dropout_is_off_while_tokens_are_drawn() -> None:
    model = model_of(replace(SMALL, dropout=0.5))
    request = Request(sampling=Sampling(temperature=1.3), new_tokens=4)
    assert rows_of(model.train(), [request]) == rows_of(model.eval(), [request])


def test_log_probabilities_are_those_of_the_model(model: GPT) -> None:
    asked = Request(sampling=RULES[1], new_tokens=2, alternatives=3)
    (row, plain) = rows_of(model, [asked, Request(sampling=RULES[1], new_tokens=2)])
    assert [one.token for one in row] == [one.token for one in plain]
    expected = model(PROMPT)[0, -1, :VOCABULARY].log_softmax(0).detach()
    assert row[0].log_probability == pytest.approx(float(expected[row[0].token]), abs=1e-5)
    best = expected.topk(3)
    assert [token for token, _ in row[0].alternatives] == best.indices.tolist()
    assert [value for _, value in row[0].alternatives] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert plain[0] == Drawn(row[0].token, log_probability=None, alternatives=())


def test_streamed_texts_equal_the_samples_of_a_run(model: GPT) -> None:
    sampling = Sampling(top_k=50, seed=7)
    pieces = list(stream_texts(model, "def f(", 3, 12, sampling, GPT2_TOKENIZER))
    texts = ["".join(piece for number, piece in pieces if number == text) for text in range(3)]
    assert texts == continuations(model, "def f(", 3, 12, sampling) and len(set(texts)) == 3
    assert [number for number, _ in pieces] == sorted(number for number, _ in pieces)
    assert len([piece for number, piece in pieces if number == 0 and piece]) > 6


def test_streamed_texts_end_where_the_model_ends_its_document() -> None:
    pieces = list(stream_texts(ends_at_once(50256), "def f(", 2, 6, Sampling(temperature=0), GPT2_TOKENIZER))
    assert "".join(piece for _, piece in pieces) == "def f(" * 2


def test_no_new_token_returns_the_prompt(model: GPT) -> None:
    assert torch.equal(generate(model, PROMPT, 0, Sampling()), PROMPT)
    assert [text for _, text in stream_texts(model, "def", 1, 0, Sampling(), GPT2_TOKENIZER)] == ["def"]


@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_streamed_pieces_are_the_text_before_the_first_stop_word(text: str, stop_words: list[str]) -> None:
    tokens = encode(text).tolist()
    stream = TextStream(decode, stop_words)
    pieces = [stream.add(token) for token in tokens] + [stream.finish()]
    text = decode(tokens)
    found = [at for word in stop_words if (at := text.find(word)) >= 0]
    assert "".join(pieces) == text[: min(found, default=len(text))]
    assert stream.ended == bool(found)


def test_half_characters_are_held_back() -> None:
    tokens = encode("a🙂b").tolist()
    assert len(tokens) > 3
    stream = TextStream(decode)
    pieces = [stream.add(token) for token in tokens]
    assert [piece for piece in pieces if piece] == ["a", "🙂", "b"]
    stream = TextStream(decode)
    assert stream.add(*tokens[:-2]) == "" and stream.finish() == "a\N{REPLACEMENT CHARACTER}"


def test_beginning_of_a_stop_word_is_held_back_until_it_is_decided() -> None:
    def spell(ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    stream = TextStream(spell, ["<end>"])
    assert [stream.add(*map(ord, piece)) for piece in ("ab<e", "n", "x<", "end", ">cd")] == ["ab", "", "<enx", "", ""]
    assert stream.ended and stream.finish() == "" and stream.add(ord("z")) == ""
