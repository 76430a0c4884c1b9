"""Several models behind one endpoint: each has a name of its own, and requests reach the one that they name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regpt.base.errors import USAGE, UserError
from regpt.cli.main import main
from regpt.interop.open_model import LoadedModel


def test_two_checkpoints_of_a_run_are_answered_by_their_names(loaded: LoadedModel, tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from regpt.endpoint.routes import model_routes
    from regpt.endpoint.served_models import ServedModels
    from regpt.serve.access import Access
    from regpt.serve.app import create_app
    from tests.model.test_gpt import model_of

    other = model_of(loaded.model.recipe, seed=4)
    run = replace(loaded, run=tmp_path / "a", step=20, exact_name="first")
    models = ServedModels([run, replace(run, model=other, step=40, exact_name="second")])
    http = TestClient(create_app(tmp_path, Access(), (model_routes(models),)), base_url="http://127.0.0.1")
    try:
        cards = http.get("/v1/models").json()["data"]
        assert [(one["id"], one["run"], one["step"]) for one in cards] == [
            ("a-step-20", "a", 20),
            ("a-step-40", "a", 40),
        ]
        assert {one["max_model_len"] for one in cards} == {64}
        ask = {"prompt": "Once upon", "max_tokens": 4, "temperature": 0}
        answers = [
            http.post("/v1/completions", json=ask | name).json()
            for name in ({}, *({"model": one["id"]} for one in cards))
        ]
        assert [one["model"] for one in answers] == ["a-step-20", "a-step-20", "a-step-40"]
        texts = [one["choices"][0]["text"] for one in answers]
        assert texts[0] == texts[1] != texts[2]
        error = http.post("/v1/completions", json={"model": "a"}).json()["error"]
        assert (
            error["code"] == "model_not_found" and "a-step-20" in error["message"] and "a-step-40" in error["message"]
        )
    finally:
        models.close()


def test_names_of_models_are_the_shortest_that_differ(loaded: LoadedModel) -> None:
    from regpt.endpoint.served_models import names_of

    def model(name: str, exact_name: str, **values: Any) -> LoadedModel:
        return replace(loaded, name=name, exact_name=exact_name, **values)

    run = model("a at step 9", "runs/a/9", run=Path("runs/a"), step=9)
    assert names_of([run, model("gpt2", "hub:x/gpt2@1")]) == ["a", "gpt2"]
    assert names_of([run], with_steps=True) == ["a-step-9"]
    assert names_of([run, replace(run, averaged=True)]) == ["a-step-9", "a-step-9-averaged"]
    hub = ["hub:x/gpt2@1", "hub:y/gpt2@1"]
    assert names_of([model("gpt2", name) for name in hub]) == hub
    with pytest.raises(UserError, match="runs/a/9"):
        names_of([run, run])


def test_too_many_models_are_refused_before_one_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *"abcdefghi"]) == USAGE
    printed = capsys.readouterr().err
    assert "9 models" in printed and "at most 8" in printed and printed.count("\n") == 1


def test_server_without_a_model_lists_none(tmp_path: Path) -> None:
    from tests.serve.conftest import client_of

    answer = client_of(tmp_path).get("/v1/models")
    assert answer.status_code == 200 and answer.json() == {"object": "list", "data": []}
