"""Requests that are odd but valid HTTP: methods, paths, content types, and a server without a model."""

from pathlib import Path
from typing import Any

import pytest

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
