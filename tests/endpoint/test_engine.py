"""Requests share passes: each gets what it gets alone, and none is harmed by one that leaves or fails."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from regpt.data.tokenizer import Gpt2Tokenizer
from regpt.endpoint.engine import Engine, Job, JobEnded, PromptScored, TokenDrawn
from regpt.endpoint.routes import JobStream
from regpt.generation import decoder
from regpt.generation.decoder import generate_tokens
from regpt.generation.drawing import Request, Sampling
from regpt.interop.open_model import LoadedModel
from regpt.serve.errors import ApiError
from tests.conftest import wait_until
from tests.model.test_gpt import model_of

ENDLESS = 10**6
COUNTS = [4, 36, 3, 5]
VOCABULARY = 500
BROKEN = 13  # a token that the model of these tests cannot read
RULES = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.7, top_k=5, seed=3),
    Sampling(top_p=0.5, seed=4),
    Sampling(temperature=1.3, seed=5),
]


class FewTokens(Gpt2Tokenizer):
    """GPT-2's first tokens, so that drawing takes little time."""

    vocabulary = VOCABULARY


@pytest.fixture(scope="module")
def fragile(loaded: LoadedModel) -> LoadedModel:
    """Return a model that fails at one token."""
    model = model_of(replace(loaded.model.recipe, vocab_size=512), seed=3)
    for parameter in model.parameters():
        parameter.data *= 4  # so that greedy text does not repeat one token

    def fail(module: Any, inputs: tuple[torch.Tensor]) -> None:
        if (inputs[0] == BROKEN).any():
            raise ZeroDivisionError

    model.token_embedding.register_forward_pre_hook(fail)
    return replace(loaded, model=model, tokenizer=FewTokens())


@pytest.fixture
def engine(fragile: LoadedModel) -> Iterator[Engine]:
    made = Engine(fragile, most_waiting=2, most_rows=4)
    yield made
    made.close()


class Client:
    """A request and what it receives."""

    def __init__(self, engine: Engine, new_tokens: int, *prompts: tuple[int, ...], **changes: Any) -> None:
        self.events: list[Any] = []
        fields = {"n": 1, "sampling": Sampling(seed=1), "alternatives": None, "scores_prompts": False}
        fields |= {"emit": self.events.append, **changes}
        self.job = Job(prompts=prompts or ((11, 22),), new_tokens=new_tokens, **fields)
        engine.submit(self.job)

    def tokens(self, row: int = 0) -> list[int]:
        return [event.drawn.token for event in self.events if isinstance(event, TokenDrawn) and event.row == row]

    def end(self) -> JobEnded:
        """Wait for the end."""
        wait_until(lambda: bool(self.events) and isinstance(self.events[-1], JobEnded))
        ended: JobEnded = self.events[-1]
        return ended


def alone(loaded: LoadedModel, prompt: tuple[int, ...], sampling: Sampling, new_tokens: int) -> list[int]:
    """Return the tokens that a row draws with no other one."""
    request = Request(sampling=sampling, new_tokens=new_tokens)
    rounds = generate_tokens(loaded.model, torch.tensor([prompt]), [request], VOCABULARY)
    return [one.token for (one,) in rounds if one is not None]


def test_requests_that_join_and_leave_draw_the_tokens_that_each_draws_alone(
    engine: Engine, fragile: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of several parts, texts beyond the block, all rules, more rows than have room."""
    monkeypatch.setattr(decoder, "PART", 4)
    prompts = [(11, 22), tuple(range(20, 50)), (7,), tuple(range(60, 70))]
    endless = Client(engine, ENDLESS)
    wait_until(lambda: len(endless.events) > 2)
    clients = []
    for rule, prompt, count in zip(RULES, prompts, COUNTS, strict=True):
        wait_until(lambda: len(engine.waiting) < 2)
        clients.append(Client(engine, count, prompt, n=2, sampling=rule))
    for client in clients:
        assert client.end() == JobEnded()
    endless.job.left.set()
    assert len(endless.tokens()) > 20
    for client, rule, prompt, count in zip(clients, RULES, prompts, COUNTS, strict=True):
        for row in range(2):
            expected = alone(fragile, prompt, replace(rule, seed=rule.seed + row), count)
            assert client.tokens(row) == expected and len(expected) == count


def test_texts_of_a_request_are_numbered_prompt_by_prompt(engine: Engine, fragile: LoadedModel) -> None:
    client = Client(engine, 2, (11, 22), (7,), n=5)
    assert client.end() == JobEnded()
    expected = [alone(fragile, prompt, Sampling(seed=1 + n), 2) for prompt in ((11, 22), (7,)) for n in range(5)]
    assert [client.tokens(row) for row in range(10)] == expected


def test_long_prompt_does_not_stop_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "PART", 1)
    first = Client(engine, ENDLESS)
    wait_until(lambda: len(first.events) > 2)
    before = len(first.events)
    order: list[str] = []
    for name, prompt in (("long", tuple(range(20, 60))), ("short", (7, 8))):
        Client(engine, 1, prompt, emit=lambda event, name=name: order.append(name))
    wait_until(lambda: len(order) == 4)
    first.job.left.set()
    assert order == ["short"] * 2 + ["long"] * 2
    assert len(first.events) - before > 30


def test_full_queue_refuses_until_a_waiting_client_leaves(fragile: LoadedModel) -> None:
    engine = Engine(fragile, most_waiting=2, most_rows=1)
    try:
        endless = Client(engine, ENDLESS)
        wait_until(lambda: bool(endless.events))  # it is being served, and waits no more
        others = [Client(engine, 1)]
        wait_until(lambda: not engine.waiting)  # it is the next one
        others += [Client(engine, 1), Client(engine, 1)]
        with pytest.raises(ApiError, match="2 requests") as refused:
            Client(engine, 1)
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert refused.value.retry_seconds == 5
        others[1].job.left.set()
        others.append(Client(engine, 1))
        endless.job.left.set()
        assert others[3].end() == JobEnded() and not others[1].events
    finally:
        engine.close()


def test_client_that_leaves_makes_room(engine: Engine) -> None:
    endless = Client(engine, ENDLESS, n=4)
    wait_until(lambda: len(endless.events) > 2)
    waiting = Client(engine, 4)
    endless.job.left.set()
    assert waiting.end() == JobEnded() and len(waiting.tokens()) == 4
    assert endless.events[-1] == JobEnded()


def test_row_that_needs_no_more_tokens_makes_room(engine: Engine) -> None:
    first = Client(engine, ENDLESS, n=4)
    wait_until(lambda: len(first.events) > 8)
    waiting = Client(engine, 4)
    first.job.ended_rows.add(2)
    assert waiting.end() == JobEnded()
    first.job.ended_rows.update(range(4))
    assert first.end() == JobEnded()


def test_request_that_fails_harms_no_other(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    first = Client(engine, 30)
    wait_until(lambda: len(first.events) > 2)
    broken = Client(engine, 5, (BROKEN,), n=2)
    assert broken.end() == JobEnded(failed=True) and not broken.tokens()
    assert first.end() == JobEnded() and len(first.tokens()) == 30
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_failure_of_a_shared_pass_ends_those_that_share_it_alone(
    engine: Engine, fragile: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = Sampling(temperature=0.0)
    first = Client(engine, ENDLESS, sampling=greedy)
    wait_until(lambda: len(first.events) > 2)
    with torch.no_grad():
        head = fragile.model.head_weight
        kept = head[BROKEN].clone()
        head[BROKEN] = 100 * head.abs().max() * torch.sign(head[first.tokens()[-1]])
    ended = first.end()
    with torch.no_grad():
        head[BROKEN] = kept
    assert ended == JobEnded(failed=True) and "ZeroDivisionError" in capsys.readouterr().err
    assert Client(engine, 4).end() == JobEnded()


def test_prompt_is_scored_in_parts_as_in_one_pass(
    engine: Engine, fragile: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "PART", 4)
    ids = tuple(range(20, 31))
    for new_tokens in (0, 2):
        client = Client(engine, new_tokens, ids, n=2, alternatives=3, scores_prompts=True)
        assert client.end() == JobEnded()
        (scored,) = [event for event in client.events if isinstance(event, PromptScored)]
        logits = fragile.model(torch.tensor([ids]))[0, :, :VOCABULARY].detach().log_softmax(dim=1)
        expected = [float(logits[place, token]) for place, token in enumerate(ids[1:])]
        assert [one.token for one in scored.tokens] == list(ids) and scored.tokens[0].log_probability is None
        assert [one.log_probability for one in scored.tokens[1:]] == pytest.approx(expected, abs=1e-5)
        best = logits[:-1].topk(3).indices.tolist()
        assert [[token for token, _ in one.alternatives] for one in scored.tokens[1:]] == best
        assert len(client.tokens(0)) == len(client.tokens(1)) == new_tokens


def test_engine_that_is_idle_holds_no_cache_and_closes(fragile: LoadedModel) -> None:
    engine = Engine(fragile)
    endless = Client(engine, ENDLESS)
    wait_until(lambda: len(endless.events) > 2)
    engine.close()
    assert endless.end() == JobEnded() and not engine.thread.is_alive()


def test_client_that_leaves_before_its_stream_begins_frees_the_engine() -> None:
    job = Job([[11, 22]], 1, ENDLESS, Sampling(), None, False, lambda event: None)

    async def parts() -> AsyncIterator[bytes]:
        yield b"never read"

    async def leave() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(60)

    asyncio.run(JobStream(job, parts())({"type": "http", "asgi": {"spec_version": "2.3"}}, leave, send))
    assert job.left.is_set()
