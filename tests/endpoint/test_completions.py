"""OpenAI's client gets the texts that `regpt sample` draws, whole and streamed, and errors that name the field."""

import threading
from dataclasses import replace
from typing import Any

import openai
import pytest
import torch

from regpt.data.tokenizer import END_OF_TEXT, decode, encode
from regpt.endpoint.engine import Engine
from regpt.evaluation.sampling import continuations
from regpt.generation.drawing import Sampling
from regpt.interop.open_model import LoadedModel
from tests.evaluation.test_sampling import ends_at_once

PROMPT = "Once upon a time"


def sampled(loaded: LoadedModel, count: int, new_tokens: int, **rule: Any) -> list[str]:
    """Return what `regpt sample` prints, without the prompt."""
    texts = continuations(loaded.model, PROMPT, count, new_tokens, Sampling(**rule))
    return [text.removeprefix(PROMPT) for text in texts]


def test_models_lists_the_model(client: Any) -> None:
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.models.retrieve("gpt-4")


def test_greedy_text_is_that_of_sample(client: Any, loaded: LoadedModel) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, temperature=0)
    assert [one.text for one in answer.choices] == sampled(loaded, 1, 20, temperature=0.0)
    assert answer.choices[0].finish_reason == "length" and answer.object == "text_completion"
    tokens = len(encode(PROMPT))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        tokens,
        20,
        tokens + 20,
    )


def test_seed_gives_the_texts_of_sample_alone_and_in_a_batch(client: Any, loaded: LoadedModel) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0.8, "extra_body": {"top_k": 50}}
    answer = client.completions.create(**asked, seed=7, n=3)
    expected = sampled(loaded, 3, 12, temperature=0.8, top_k=50, seed=7)
    assert [one.text for one in answer.choices] == expected and len(set(expected)) == 3
    assert [one.index for one in answer.choices] == [0, 1, 2]
    assert client.completions.create(**asked, seed=9).choices[0].text == expected[2]


def test_streamed_text_is_that_of_the_whole_answer(client: Any) -> None:
    asked = {"model": "tiny", "prompt": [PROMPT, "And"], "max_tokens": 5, "seed": 1, "n": 2}
    whole = client.completions.create(**asked)
    texts, reasons, usage = [""] * 4, [None] * 4, None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [one.text for one in whole.choices]
    assert reasons == [one.finish_reason for one in whole.choices] and usage == whole.usage


def test_text_ends_before_a_stop_word(client: Any) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "temperature": 0}
    text = client.completions.create(**asked).choices[0].text
    word = text[9:14]
    for stop in (word, ["zzzz", word]):
        choice = client.completions.create(**asked, stop=stop, logprobs=0).choices[0]
        assert choice.text == text[: text.index(word)] and choice.finish_reason == "stop"
        assert max(choice.logprobs.text_offset) < len(choice.text)


def test_stop_word_in_the_prompt_does_not_end_the_text(client: Any) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5, "temperature": 0}
    text = client.completions.create(**asked).choices[0].text
    assert client.completions.create(**asked, stop="upon").choices[0].text == text
    assert client.completions.create(**asked, stop="upon", echo=True).choices[0].text == PROMPT + text


def test_end_of_a_document_ends_the_text(http: Any, engine: Engine) -> None:
    engine.model = ends_at_once(END_OF_TEXT)
    answer = http.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 9, "temperature": 0}).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop") and answer["usage"]["completion_tokens"] == 1


def test_prompt_of_token_ids_is_taken_as_it_is(client: Any) -> None:
    ids = encode(PROMPT).tolist()
    asked = {"model": "tiny", "max_tokens": 8, "temperature": 0}
    text = client.completions.create(**asked, prompt=PROMPT).choices[0].text
    assert client.completions.create(**asked, prompt=ids).choices[0].text == text
    several = client.completions.create(**asked, prompt=[ids, ids[:2]])
    assert several.choices[0].text == text and several.usage.prompt_tokens == len(ids) + 2


def test_echo_with_logprobs_scores_the_prompt(client: Any, loaded: LoadedModel) -> None:
    """As lm-eval's `local-completions` asks for likelihoods."""
    ids = encode(PROMPT).tolist()
    answer = client.completions.create(model="tiny", prompt=[ids], max_tokens=1, temperature=0, logprobs=1, echo=True)
    found = answer.choices[0].logprobs
    logits = loaded.model(torch.tensor([ids]))[0, :, :50_257].detach().log_softmax(dim=1)
    expected = [float(logits[place, token]) for place, token in enumerate(ids[1:])]
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    assert found.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-5)
    best = [float(row.max()) for row in logits[:-1]]
    assert [max(one.values()) for one in found.top_logprobs[1 : len(ids)]] == pytest.approx(best, abs=1e-5)
    assert "".join(found.tokens[: len(ids)]) == PROMPT and len(found.tokens) == len(ids) + 1
    assert answer.choices[0].text.startswith(PROMPT)
    only = client.completions.create(model="tiny", prompt=[ids], max_tokens=0, logprobs=1, echo=True).choices[0]
    assert only.text == PROMPT and len(only.logprobs.tokens) == len(ids)


def test_token_that_ends_the_text_is_the_last_of_the_log(http: Any, engine: Engine, loaded: LoadedModel) -> None:
    """lm-eval leaves out the last token, so a continuation would otherwise lose one of its own."""
    engine.model = ends_at_once(END_OF_TEXT)
    engine.loaded = replace(loaded, model=engine.model)  # which scores the prompt, and so draws the first token
    ids = encode(PROMPT).tolist()
    request = {"prompt": [ids], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    choice = http.post("/v1/completions", json=request).json()["choices"][0]
    assert choice["text"] == PROMPT and choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"][len(ids) :] == ["<|endoftext|>"]
    assert choice["logprobs"]["text_offset"] == [0, 4, 9, 11, 16]


@pytest.mark.slow
def test_lm_eval_reads_likelihoods_from_the_answer(http: Any, loaded: LoadedModel) -> None:
    """The request is that of its model `local-completions`, and its own function reads the answer."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    begin = encode(PROMPT).tolist()
    logits = loaded.model(torch.tensor([begin]))[0, -1, :50_257].detach().log_softmax(dim=0)
    greedy, other = int(logits.argmax()), int(logits.argmin())
    request = {"model": "tiny", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    prompts = [[*begin, greedy], [*begin, other]]
    answer = http.post("/v1/completions", json={**request, "prompt": prompts}).json()
    first, second = LocalCompletionsAPI.parse_logprobs(answer, tokens=prompts, ctxlens=[len(begin)] * 2)
    assert first == (pytest.approx(float(logits[greedy]), abs=1e-5), True)
    assert second == (pytest.approx(float(logits[other]), abs=1e-5), False)


def test_logprobs_name_the_drawn_token_and_the_most_likely_ones(client: Any) -> None:
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3, temperature=0, logprobs=2).choices[0]
    assert len(found.logprobs.tokens) == 3
    for token, value, top in zip(
        found.logprobs.tokens, found.logprobs.token_logprobs, found.logprobs.top_logprobs, strict=True
    ):
        assert len(top) == 2 and top[token] == value == max(top.values())


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"seed": 1 << 63}, "seed"),
        ({"prompt": [10**400]}, "prompt"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"prompt": ["a"] * 33, "n": 2}, "n"),
        ({"logprobs": 6}, "logprobs"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [50_257]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1] * 65}, "prompt"),
        ({"stream": 1}, "stream"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"seed": 1.5}, "seed"),
        ({"temprature": 0}, "temprature"),
        ({"messages": []}, "messages"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream_options": {"include": True}, "stream": True}, "stream_options.include"),
        ({"stream_options": True, "stream": True}, "stream_options"),
    ],
)
def test_field_that_cannot_be_used_is_named(http: Any, change: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1, **change})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"nonsense", b"\xff\xfe", b"[" * 100_000, b'{"temperature": NaN}', b'{"a": "\x80"}']
)
def test_nonsense_is_refused(http: Any, body: bytes) -> None:
    answer = http.post("/v1/completions", content=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "body"


def test_request_of_ten_megabytes_is_refused(http: Any) -> None:
    answer = http.post("/v1/completions", json={"prompt": "x" * 10_000_000})
    assert answer.status_code == 413


def test_unknown_model_and_chat_are_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.NotFoundError, match="/v1/completions"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])


def test_many_clients_get_the_texts_that_each_gets_alone(http: Any) -> None:
    def ask(seed: int) -> str:
        answer = http.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 6, "seed": seed})
        return str(answer.json()["choices"][0]["text"])

    alone = [ask(seed) for seed in range(4)]
    together: dict[int, str] = {}
    threads = [threading.Thread(target=lambda seed=seed: together.update({seed: ask(seed)})) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in range(4)] == alone and len(set(alone)) == 4


def test_token_that_is_part_of_a_character_has_a_name_of_its_own(client: Any) -> None:
    ids = encode("🙂").tolist()
    assert len(ids) > 1 and not any(decode([token]).isalnum() for token in ids)
    answer = client.completions.create(model="tiny", prompt=ids, max_tokens=0, echo=True, logprobs=0)
    assert answer.choices[0].logprobs.tokens == [f"token:{token}" for token in ids]
