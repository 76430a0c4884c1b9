"""Requests that are odd but valid HTTP: methods, paths, content types, and a server without a model."""

from pathlib import Path
from typing import Any

import pytest

from regpt.endpoint import chat_request, completion_request, request_fields
from tests.serve.conftest import client_of

BODY = {"prompt": "a", "max_tokens": 1, "temperature": 0}


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/models/tiny"])
def test_head_is_answered_as_get_without_the_body(http: Any, path: str) -> None:
    head, whole = http.head(path), http.get(path)
    assert head.status_code == whole.status_code == 200 and head.content == b""
    assert head.headers["content-length"] == str(len(whole.content))


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("HEAD", "/v1/completions", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/models/tiny", "GET"),
        ("POST", "/v1/models", "GET"),
    ],
)
def test_wrong_method_names_the_right_one(http: Any, method: str, path: str, allowed: str) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/v1", "/v1/embeddings", "/v1/completions/x", "//v1/models"])
def test_unknown_path_is_named(http: Any, path: str) -> None:
    answer = http.post(f"http://127.0.0.1{path}", json=BODY)
    assert answer.status_code == 404 and answer.json()["error"]["message"].endswith(f"POST {path}")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data"])
def test_body_is_read_as_json_whatever_its_content_type(http: Any, kind: str) -> None:
    """curl's -d says that it sends a form."""
    answer = http.post("/v1/completions", content='{"prompt": "a", "max_tokens": 1}', headers={"content-type": kind})
    assert answer.status_code == 200


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-6])
def test_least_temperatures_are_greedy(http: Any, temperature: float) -> None:
    texts = {
        http.post("/v1/completions", json=BODY | {"temperature": one, "seed": 3}).json()["choices"][0]["text"]
        for one in (0, temperature)
    }
    assert len(texts) == 1


def test_server_without_a_model_says_how_to_serve_one(tmp_path: Path) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        answer = client_of(tmp_path).post(path, json=BODY)
        assert answer.status_code == 404 and "regpt serve MODEL" in answer.json()["error"]["message"]


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2}])
def test_answers_have_the_types_of_openai(http: Any, fields: dict[str, Any]) -> None:
    from openai.types import Completion, Model

    Model.model_validate(http.get("/v1/models").json()["data"][0], strict=True)
    Completion.model_validate_json(http.post("/v1/completions", json=BODY | fields).content, strict=True)
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    *parts, last = data_of(http.post("/v1/completions", json=BODY | fields | usage))
    assert last == "[DONE]" and len(parts) == 2
    for part in parts:
        Completion.model_validate_json(part, strict=True)


@pytest.mark.parametrize("fields", [{}, {"logprobs": True, "top_logprobs": 2}])
def test_answers_of_a_chat_have_the_types_of_openai(chat_http: Any, fields: dict[str, Any]) -> None:
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    asked = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "temperature": 0, **fields}
    ChatCompletion.model_validate_json(chat_http.post("/v1/chat/completions", json=asked).content, strict=True)
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    *parts, last = data_of(chat_http.post("/v1/chat/completions", json=asked | usage))
    assert last == "[DONE]" and len(parts) == 4
    for part in parts:
        ChatCompletionChunk.model_validate_json(part, strict=True)


def test_every_field_of_openai_is_known() -> None:
    """It is used, or has its default, or is refused; none is taken for a misspelt one."""
    from openai.types import completion_create_params as texts
    from openai.types.chat import completion_create_params as chats

    common = {*request_fields.COMMON_FIELDS, *request_fields.ACCOUNT_FIELDS, *request_fields.WITHOUT_EFFECT}
    for theirs, ours in ((texts, completion_request), (chats, chat_request)):
        fields = {*theirs.CompletionCreateParamsBase.__annotations__, "stream"}
        assert not fields - {*common, *ours.OWN_FIELDS, *ours.WITHOUT_EFFECT}


def data_of(answer: Any) -> list[str]:
    """Return the data of a stream of events."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
