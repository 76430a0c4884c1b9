"""A tiny model with random weights behind an endpoint, and clients of it."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regpt.data.tokenizer import GPT2_TOKENIZER
from regpt.interop.open_model import LoadedModel
from regpt.tokenization.chat_tokens import ChatTokenizer
from tests.conftest import tiny_recipe
from tests.model.test_gpt import SMALL, model_of

# Without the extra `serve` and the client, which `make` installs, there is nothing to test.
has_packages = all(map(importlib.util.find_spec, ("fastapi", "openai")))
collect_ignore_glob = [] if has_packages else ["test_*.py"]


@pytest.fixture(scope="package")
def loaded() -> LoadedModel:
    model = model_of(replace(SMALL, block_size=64), seed=3)
    for parameter in model.parameters():
        parameter.data *= 4  # so that greedy text does not repeat one token
    recipe = replace(tiny_recipe(Path("nowhere")), model=model.recipe)
    return LoadedModel("tiny", model, recipe, GPT2_TOKENIZER)


@pytest.fixture(scope="package")
def chatty(loaded: LoadedModel) -> LoadedModel:
    """Return the model with a chat template, as if it were trained on conversations."""
    return replace(loaded, name="chatty", tokenizer=ChatTokenizer(GPT2_TOKENIZER))


@pytest.fixture
def models(loaded: LoadedModel) -> Iterator[Any]:
    with models_of(loaded) as made:
        yield made


@pytest.fixture
def engine(models: Any) -> Any:
    return models.engines["tiny"]


@pytest.fixture
def http(models: Any, tmp_path: Path) -> Any:
    return client_of_models(models, tmp_path)


@pytest.fixture
def chat_models(chatty: LoadedModel) -> Iterator[Any]:
    with models_of(chatty) as made:
        yield made


@pytest.fixture
def chat_http(chat_models: Any, tmp_path: Path) -> Any:
    return client_of_models(chat_models, tmp_path)


@contextmanager
def models_of(loaded: LoadedModel) -> Iterator[Any]:
    """Yield a model with its engine, which ends afterwards."""
    from regpt.endpoint.served_models import ServedModels

    made = ServedModels([loaded])
    yield made
    made.close()


def client_of_models(models: Any, tmp_path: Path) -> Any:
    from starlette.testclient import TestClient

    from regpt.endpoint.routes import model_routes
    from regpt.serve.access import Access
    from regpt.serve.app import create_app

    app = create_app(tmp_path, Access(), (model_routes(models),))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def client(http: Any) -> Any:
    """Return OpenAI's client, which speaks with the endpoint."""
    import openai

    return openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=http, max_retries=0)
