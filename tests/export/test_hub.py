"""A model is uploaded by the real client to a local server: one commit, private, with errors that say what to do."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regpt.base.errors import DATA, DONE, USAGE
from regpt.cli.main import main
from regpt.export import directory, hub
from regpt.export.directory import export
from regpt.interop.open_model import open_model
from tests.helpers.hub_server import HubServer, served
from tests.model.test_gpt import CLASSIC, model_of

# The client passes a file where its HTTP library now wants an iterator.
pytestmark = [pytest.mark.network_like, pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upload") / "model"
    export(model_of(replace(CLASSIC, qk_norm=True)), folder)
    return folder


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An account without models, and a client that is logged in there."""
    from huggingface_hub import constants

    with served("someone/tiny", {}, "models") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.chdir(tmp_path)
        yield server


def test_model_is_uploaded_privately_in_one_commit_and_opens_again(hub_server: HubServer, model: Path) -> None:
    assert main(["export", str(model), "--to", "hub:someone/tiny", "--license", "mit"]) == DONE
    assert hub_server.visibility == "private" and len(hub_server.commits) == 1
    assert hub_server.files.keys() == {path.name for path in model.iterdir()} | {"README.md"}
    card = hub_server.files["README.md"].decode()
    assert "name = 'someone/tiny'" in card and "license: mit" in card
    x = torch.arange(20)[None]
    opened = open_model("hub:someone/tiny", Path("runs"))
    assert torch.equal(opened(x), open_model(model, Path("runs"))(x))


def test_upload_to_an_existing_model_replaces_its_weights_and_code(hub_server: HubServer, model: Path) -> None:
    hub_server.exists = True
    hub_server.files |= {"model-00001-of-00002.safetensors": b"", "old.py": b"", "notes.txt": b"", "docs/a.py": b""}
    assert main(["export", str(model), "--to", "hub:someone/tiny", "--public"]) == DONE
    assert hub_server.visibility == ""
    assert not {"model-00001-of-00002.safetensors", "old.py"} & hub_server.files.keys()
    assert {"model.safetensors", "modeling_regpt.py", "notes.txt", "docs/a.py"} <= hub_server.files.keys()


def test_upload_is_public_only_if_asked(hub_server: HubServer, model: Path) -> None:
    assert main(["export", str(model), "--to", "hub:someone/tiny", "--public"]) == DONE
    assert hub_server.visibility == "public"


def without_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")


def with_expired_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")


def with_reading_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.refusal = (403, "You don't have the rights to create a model")


def without_network(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    server.server_close()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def with_failing_server(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.refusal = (500, "Internal error")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (without_token, ["someone/tiny", "hf auth login"]),
        (with_expired_token, ["someone/tiny", "hf auth login"]),
        (with_reading_token, ["someone/tiny", "rights to create", "hf auth login"]),
        (without_network, ["someone/tiny", "could not be reached", "hf upload"]),
        (with_failing_server, ["someone/tiny", "Internal error"]),
    ],
)
def test_failed_upload_says_why_in_one_line(
    hub_server: HubServer,
    model: Path,
    fault: Callable[..., None],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault(hub_server, monkeypatch)
    assert main(["export", str(model), "--to", "hub:someone/tiny"]) == DATA
    printed = capsys.readouterr()
    assert not [word for word in words if word not in printed.err]
    assert printed.err.count("\n") == 1 and "uploaded" not in printed.out
    assert not hub_server.commits


def test_unknown_licence_is_refused_before_any_file_is_sent(
    hub_server: HubServer, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(model), "--to", "hub:someone/tiny", "--license", "mine"]) == DATA
    assert "--license" in capsys.readouterr().err
    assert not hub_server.commits and not hub_server.objects


def test_refused_export_uploads_nothing(
    hub_server: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Path) -> torch.nn.Module:
        config = json.loads((folder / "config.json").read_text())
        config["regpt"]["qk_norm"] = False
        (folder / "config.json").write_text(json.dumps(config))
        return read_directory(folder)

    read_directory = directory.read_directory
    monkeypatch.setattr(directory, "read_directory", broken)
    assert main(["export", str(model), "--to", "hub:someone/tiny"]) == USAGE
    assert "logits" in capsys.readouterr().err and not hub_server.exists


@pytest.mark.parametrize("words", [["--to", "someone/tiny"], ["--to", "hub:tiny"], ["out", "--public"]])
def test_upload_options_of_another_form_are_refused(
    words: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(model), *words]) == USAGE
    assert "hub:OWNER/NAME" in capsys.readouterr().err


def test_upload_leaves_no_temporary_files(
    hub_server: HubServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(hub.tempfile, "tempdir", str(tmp_path / "tmp"))
    assert main(["export", str(model), "--to", "hub:someone/tiny"]) == DONE
    assert not list((tmp_path / "tmp").iterdir())
    shutil.rmtree(tmp_path / "tmp")
