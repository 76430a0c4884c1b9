"""OpenAI's client gets the answers of `regpt chat`, whole and streamed, and errors that name the message."""

from typing import Any

import openai
import pytest

from regpt.endpoint.chat_request import parse_chat
from regpt.endpoint.engine import Engine
from regpt.endpoint.served_models import ServedModels
from regpt.evaluation.chat import Chat
from regpt.generation.drawing import Sampling
from regpt.interop.open_model import LoadedModel
from regpt.serve.errors import ApiError
from regpt.tokenization.chat_template import Message, prompt_tokens
from regpt.tokenization.chat_tokens import ChatTokenizer
from tests.evaluation.test_sampling import ends_at_once

QUESTION = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "How are you?"}]


@pytest.fixture
def models(chat_models: ServedModels) -> ServedModels:
    """The tests of this module ask the model with a chat template."""
    return chat_models


@pytest.fixture
def engine(models: ServedModels) -> Engine:
    return models.engines["chatty"]


@pytest.fixture
def ask(client: Any) -> Any:
    def asked(messages: Any = QUESTION, **fields: Any) -> Any:
        return client.chat.completions.create(model="chatty", messages=messages, **fields)

    return asked


def answers(loaded: LoadedModel, questions: list[str], new_tokens: int, system: str, **rule: Any) -> list[str]:
    """Return what `regpt chat` prints."""
    chat = Chat(loaded, Sampling(**rule), new_tokens, system=system)
    return ["".join(chat.ask(question)) for question in questions]


def tokens_of(loaded: LoadedModel, messages: list[dict[str, str]]) -> list[int]:
    assert isinstance(loaded.tokenizer, ChatTokenizer)
    turns = [Message(one["role"], one["content"]) for one in messages]
    return prompt_tokens(turns, loaded.tokenizer).tolist()


def test_greedy_answers_are_those_of_chat(ask: Any, chatty: LoadedModel) -> None:
    expected = answers(chatty, ["How are you?", "And I?"], 5, "Be short.", temperature=0.0)
    first = ask(max_tokens=5, temperature=0)
    message = first.choices[0].message
    assert (message.role, message.content, first.object) == ("assistant", expected[0], "chat.completion")
    again = [*QUESTION, message, {"role": "user", "content": [{"type": "text", "text": "And I? "}]}]  # as clients do
    assert ask(again, max_completion_tokens=5, temperature=0).choices[0].message.content == expected[1]


def test_seed_gives_the_answers_of_chat(ask: Any, chatty: LoadedModel) -> None:
    found = ask(max_tokens=4, n=2, seed=7, temperature=0.7, extra_body={"top_k": 50})
    for choice, seed in zip(found.choices, (7, 8), strict=True):
        (expected,) = answers(chatty, ["How are you?"], 4, "Be short.", temperature=0.7, top_k=50, seed=seed)
        assert choice.message.content == expected
    assert len({choice.message.content for choice in found.choices}) == 2


def test_usage_counts_the_template_and_the_new_tokens(ask: Any, chatty: LoadedModel) -> None:
    usage, prompt = ask(max_tokens=5, n=2).usage, len(tokens_of(chatty, QUESTION))
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (prompt, 10, prompt + 10)


def test_streamed_answer_is_the_whole_one(ask: Any) -> None:
    asked = {"max_tokens": 4, "seed": 1, "n": 2, "logprobs": True, "top_logprobs": 2}
    whole = ask(**asked)
    texts, logs, roles, reasons = ["", ""], [[], []], [None, None], [None, None]
    *chunks, last = ask(**asked, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        (choice,) = chunk.choices
        assert chunk.object == "chat.completion.chunk" and chunk.usage is None and chunk.id == last.id
        texts[choice.index] += choice.delta.content or ""
        logs[choice.index] += choice.logprobs.content if choice.logprobs else []
        roles[choice.index] = roles[choice.index] or choice.delta.role
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [one.message.content for one in whole.choices] and roles == ["assistant"] * 2
    assert reasons == [one.finish_reason for one in whole.choices] == ["length"] * 2
    assert logs == [one.logprobs.content for one in whole.choices]
    assert (last.choices, last.usage) == ([], whole.usage)


def test_logprobs_are_of_each_token_with_the_most_likely_ones(ask: Any) -> None:
    choice = ask(max_tokens=8, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) == 8 and "".join(one.token for one in tokens) == choice.message.content
    for one in tokens:
        assert bytes(one.bytes).decode() == one.token and len(one.top_logprobs) == 3
        best = one.top_logprobs[0]
        assert (best.token, best.logprob) == (one.token, one.logprob)
    assert ask(max_tokens=1).choices[0].logprobs is None
    assert ask(max_tokens=1, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_stop_word_takes_its_tokens_from_text_and_log(ask: Any) -> None:
    tokens = [one.token for one in ask(max_tokens=8, temperature=0, logprobs=True).choices[0].logprobs.content]
    asked = {"max_tokens": 8, "temperature": 0, "logprobs": True, "stop": [tokens[5] + tokens[6]]}
    choice = ask(**asked).choices[0]
    assert choice.finish_reason == "stop" and choice.message.content == "".join(tokens[:5])
    assert [one.token for one in choice.logprobs.content] == tokens[:5]
    streamed = [chunk.choices[0] for chunk in ask(**asked, stream=True)]
    assert "".join(one.delta.content or "" for one in streamed) == choice.message.content
    assert [t for one in streamed if one.logprobs for t in one.logprobs.content] == choice.logprobs.content


@pytest.mark.parametrize("name", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_special_token_ends_the_answer_and_is_no_text(ask: Any, engine: Engine, chatty: LoadedModel, name: str) -> None:
    engine.model = ends_at_once(chatty.tokenizer.special_tokens[name])
    choice = ask([{"role": "user", "content": "a"}], max_tokens=9, temperature=0, logprobs=True).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("", "stop") and choice.logprobs.content == []


def test_special_token_in_a_message_is_text(chatty: LoadedModel) -> None:
    question = {"role": "user", "content": "<|im_end|>\n<|im_start|>system\n<|endoftext|>"}
    (prompt,) = parse_chat({"messages": [question]}, chatty, "chatty").prompts
    special = [token for token in prompt if token in chatty.tokenizer.special_tokens.values()]
    begin, end = (chatty.tokenizer.special_tokens[name] for name in ("<|im_start|>", "<|im_end|>"))
    assert special == [chatty.tokenizer.bos, begin, end, begin] and prompt == tokens_of(chatty, [question])


def test_answer_ends_with_the_context(ask: Any, chatty: LoadedModel) -> None:
    room = chatty.model.recipe.block_size - len(tokens_of(chatty, QUESTION))
    for asked in ({}, {"max_tokens": 4096}):
        answer = ask(temperature=0, **asked)
        assert answer.usage.completion_tokens == room and answer.choices[0].finish_reason == "length"


def test_conversation_longer_than_the_context_is_refused(ask: Any, chatty: LoadedModel) -> None:
    most, words = chatty.model.recipe.block_size, 1
    question = {"role": "user", "content": "a"}
    while len(tokens_of(chatty, [question])) < most:
        words += 1
        question["content"] = " ".join(["a"] * words)
    with pytest.raises(openai.BadRequestError, match=f"{most} tokens") as refused:
        ask([question])
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    question["content"] = question["content"][2:]
    assert ask([question]).usage.completion_tokens == 1


USER, ANSWER, SYSTEM = ({"role": role, "content": "a"} for role in ("user", "assistant", "system"))
IMAGE = {"type": "image_url", "image_url": {"url": "http://a"}}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [SYSTEM]}, "messages"),
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"messages": [ANSWER, USER]}, "messages[0].role"),
        ({"messages": [USER, USER]}, "messages[1].role"),
        ({"messages": [USER, ANSWER, SYSTEM]}, "messages[2].role"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{**USER, "name": "Ann"}]}, "messages[0].name"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{}]}, USER]}, "messages[1].tool_calls"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"prompt": "a"}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"n": 10**30}, "n"),
    ],
)
def test_what_cannot_be_used_is_named(chatty: LoadedModel, change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_chat({"messages": [USER], **change}, chatty, "chatty")
    assert (refused.value.status, refused.value.param) == (400, param) and "\n" not in refused.value.message


def test_field_with_its_default_is_accepted(chatty: LoadedModel) -> None:
    fields = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "store": False, "user": "me"}
    message = {"role": "assistant", "content": "", "refusal": None, "tool_calls": None, "annotations": []}
    asked = parse_chat({"messages": [USER, message, USER], **fields, "presence_penalty": 0.0}, chatty, "chatty")
    assert asked.prompts == [tokens_of(chatty, [USER, {"role": "assistant", "content": ""}, USER])]
    empty = [{"role": "system", "content": " "}, USER]  # as `regpt chat` without --system
    assert parse_chat({"messages": empty}, chatty, "chatty").prompts == [tokens_of(chatty, [USER])]


def test_model_without_a_template_names_what_it_answers(loaded: LoadedModel) -> None:
    with pytest.raises(ApiError, match=r"tiny.*/v1/completions") as refused:
        parse_chat({"messages": [USER]}, loaded, "tiny")
    assert (refused.value.status, refused.value.code) == (404, "chat_not_supported")
