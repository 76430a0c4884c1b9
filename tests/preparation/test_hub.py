"""Text from the hub, by the real client from a local server: downloaded once, complete or not at all, verified."""

import errno
import io
import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regpt.base.errors import DataError
from regpt.corpus.progress import NoPreparationProgress
from regpt.data.shards import read_manifest
from regpt.preparation import downloads, hub
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import to_toml
from tests.conftest import tiny_recipe, wait_until
from tests.helpers import hub_server
from tests.helpers.hub_server import COMMIT, HubServer, served

pytestmark = pytest.mark.network_like

FOLDER = "sample/10BT"
PATHS = [f"{FOLDER}/{number:03d}_00000.parquet" for number in range(3)]


def parquet_file(texts: list[str]) -> bytes:
    """A file with the columns of FineWeb-Edu's."""
    count = len(texts)
    table = pa.table(
        {
            "text": pa.array(texts, pa.large_string()),
            "id": [f"<urn:uuid:{number}>" for number in range(count)],
            "dump": ["CC-MAIN-2024-10"] * count,
            "url": ["https://example.org/"] * count,
            "date": ["2024-02-20T00:00:00Z"] * count,
            "file_path": ["s3://commoncrawl/…"] * count,
            "language": ["en"] * count,
            "language_score": [0.9] * count,
            "token_count": list(range(count)),
            "score": [3.1] * count,
            "int_score": [3] * count,
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=20)
    return out.getvalue()


@pytest.fixture
def files(real_text: str) -> dict[str, bytes]:
    pieces = [real_text[first : first + 500] for first in range(0, len(real_text), 500)]
    third = len(pieces) // 3 + 1
    of_path = {path: pieces[number * third : (number + 1) * third] for number, path in enumerate(PATHS)}
    # listed out of order, and with a file that is not part of the text
    return {"README.md": b"# About", **{path: parquet_file(texts) for path, texts in reversed(of_path.items())}}


@pytest.fixture
def server(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    from huggingface_hub import constants

    with served("someone/edu", files) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)  # what HF_ENDPOINT sets when the client is imported
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(downloads, "FIRST_WAIT_SECONDS", 0.001)
        yield server


def partial_path(path: Path) -> Path:
    return downloads.Download(downloads.HubFile("", 0, "", ""), path).partial_path


def recipe_for(folder: Path, **changes: object) -> Recipe:
    return tiny_recipe(folder, data={"source": f"hub:someone/edu/{FOLDER}", **changes})


def digest_from_disk(folder: Path, files: dict[str, bytes]) -> str:
    """Return the digest of the same files in a local folder."""
    (folder / "local").mkdir()
    for path in PATHS:
        (folder / "local" / Path(path).name).write_bytes(files[path])
    local = {"source": str(folder / "local"), "path": str(folder / "local-data")}
    return prepare(tiny_recipe(folder, data=local)).digest


def test_hub_dataset_equals_dataset_of_its_files(server: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    manifest = prepare(recipe_for(tmp_path))
    assert manifest.digest == digest_from_disk(tmp_path, files)
    assert manifest.source["revision"] == COMMIT
    assert [file["name"] for file in manifest.source["files"]] == PATHS
    assert [path for path, _ in server.requests] == PATHS
    assert list((tmp_path / "data").rglob("*parquet*")) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "local", "local-data"]


def test_downloads_kept_with_keep_raw_are_reused(server: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    prepare(recipe_for(tmp_path, keep_raw=True, revision=COMMIT))
    for path in PATHS:
        assert (tmp_path / "data-raw" / path).read_bytes() == files[path]
    prepare(recipe_for(tmp_path, keep_raw=True, path=str(tmp_path / "other"), revision=COMMIT))
    assert len(server.requests) == 6  # another dataset has another folder
    (tmp_path / "data").rename(tmp_path / "moved")
    prepare(recipe_for(tmp_path, keep_raw=True, revision=COMMIT))
    assert len(server.requests) == 6
    assert read_manifest(tmp_path / "data").digest == read_manifest(tmp_path / "moved").digest


@pytest.mark.parametrize(
    "misbehaviours",
    [
        [hub_server.error_500] * 3,
        [hub_server.wrong_bytes],
        [hub_server.html_page],
        [hub_server.short_body],
        [hub_server.endless_body],
        [hub_server.short_body, hub_server.error_500, hub_server.wrong_bytes],
    ],
    ids=lambda faults: "-".join(fault.__name__ for fault in faults),
)
def test_server_faults_that_end_change_no_byte(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, misbehaviours: list[hub_server.Misbehaviour]
) -> None:
    server.misbehaviours[PATHS[1]] = list(misbehaviours)
    assert prepare(recipe_for(tmp_path)).digest == digest_from_disk(tmp_path, files)


@pytest.mark.parametrize("fault", [hub_server.error_500, hub_server.wrong_bytes, hub_server.html_page])
def test_server_faults_that_persist_end_after_all_attempts(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, fault: hub_server.Misbehaviour
) -> None:
    server.misbehaviours[PATHS[1]] = [fault] * 100
    with pytest.raises(DataError, match=rf"{PATHS[1]}: download failed {downloads.ATTEMPTS} times") as caught:
        prepare(recipe_for(tmp_path))
    assert "run the same command again" in caught.value.fix
    assert len([path for path, _ in server.requests if path == PATHS[1]]) == downloads.ATTEMPTS
    assert not (tmp_path / "data").exists()
    server.misbehaviours.clear()  # another day
    asked_before = len(server.requests)
    assert prepare(recipe_for(tmp_path)).digest == digest_from_disk(tmp_path, files)
    assert PATHS[0] not in [path for path, _ in server.requests[asked_before:]]  # it was done already


def test_download_continues_a_partial_file(server: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    raw = tmp_path / "data-raw" / PATHS[0]
    raw.parent.mkdir(parents=True)
    partial_path(raw).write_bytes(files[PATHS[0]][:1000])
    prepare(recipe_for(tmp_path, keep_raw=True))
    assert raw.read_bytes() == files[PATHS[0]]
    assert (PATHS[0], "bytes=1000-") in server.requests


def test_download_renamed_while_its_size_is_read_is_not_an_error(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in CI: the partial file existed when it was looked up, and was renamed before its size was read."""
    (part,) = hub.open_hub("hub:someone/edu/sample/10BT", "", "text", tmp_path, keep=True).parts[:1]
    fetched: Future[None] = Future()
    sizes: list[int] = []

    class Reports(NoPreparationProgress):
        def fetching(self, name: str, done: int, size: int) -> None:
            sizes.append(done)
            fetched.set_result(None)

    monkeypatch.setattr(Path, "exists", lambda path: True)
    hub.HubCorpus.wait_for(fetched, part, Reports())
    assert sizes == [0]


def test_partial_file_with_wrong_bytes_is_discarded(server: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    raw = tmp_path / "data-raw" / PATHS[0]
    raw.parent.mkdir(parents=True)
    partial_path(raw).write_bytes(b"x" * 1000)
    prepare(recipe_for(tmp_path, keep_raw=True))
    assert raw.read_bytes() == files[PATHS[0]]


@pytest.mark.parametrize(
    "name", ["../evil.parquet", f"{FOLDER}/../../evil.parquet", "/evil.parquet", "a\\..\\evil.jsonl"]
)
def test_hub_path_outside_the_folder_is_refused(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    server.files = {**files, name: files[PATHS[0]]}
    with pytest.raises(DataError, match="a path outside the download folder"):
        prepare(tiny_recipe(tmp_path, data={"source": "hub:someone/edu"}))
    assert list(tmp_path.rglob("*evil*")) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": "hub:someone/other"}, "no such dataset"),
        ({"revision": "f" * 40}, "no such revision"),
        ({"revision": "v9"}, "no such revision"),
        ({"source": "hub:someone/edu/sample/9BT"}, "no such file or folder"),
        ({"source": "hub:edu"}, "not a dataset on the hub"),
        ({"source": "hub:someone/edu/../.."}, "not a dataset on the hub"),
    ],
)
def test_missing_hub_source_is_refused_with_a_remedy(
    server: HubServer, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        prepare(recipe_for(tmp_path, **changes))
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_text_files_next_to_tables_are_ignored(server: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    server.files = {**files, "load.py": b"print()", "README.md": b"# About"}
    manifest = prepare(tiny_recipe(tmp_path, data={"source": "hub:someone/edu"}))
    assert [file["name"] for file in manifest.source["files"]] == PATHS


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "file", "path": "a.parquet", "oid": "x"},
        {"type": "file", "path": "a.parquet", "oid": "x", "size": None},
        {"type": "file", "path": "a.parquet", "oid": "x", "size": "12"},
        {"type": "file", "path": "a.parquet", "oid": "x", "size": 1, "lfs": {}},
        {"type": "file", "path": 7, "oid": "x", "size": 1},
        {"type": "file", "oid": "x", "size": 1},
        "a.parquet",
    ],
    ids=str,
)
def test_invalid_hub_listing_is_refused(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: object
) -> None:
    monkeypatch.setattr(hub_server.Handler, "entry", lambda self, path: entry)
    with pytest.raises(DataError, match="list of files"):
        prepare(recipe_for(tmp_path))


def test_downloads_hold_two_files_at_a_time(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {f"many/{number:02d}.parquet": files[PATHS[number % 3]] for number in range(12)}
    most = 0
    fetch = downloads.Downloads.fetch

    def counted(self: downloads.Downloads, download: downloads.Download) -> None:
        nonlocal most
        fetch(self, download)
        most = max(most, len(list(download.path.parent.iterdir())))

    monkeypatch.setattr(downloads.Downloads, "fetch", counted)
    manifest = prepare(tiny_recipe(tmp_path, data={"source": "hub:someone/edu/many"}))
    assert manifest.source["parts"] == 12 and most == 2


@pytest.mark.parametrize(
    ("number", "names_free_bytes"), [(errno.ENOSPC, True), (errno.EDQUOT, False)], ids=["disk", "quota"]
)
def test_full_disk_or_quota_is_not_retried_as_a_network_error(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, names_free_bytes: bool
) -> None:
    attempts = []

    def no_space(*unused: object, **settings: object) -> None:
        attempts.append(1)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", no_space)
    with pytest.raises(DataError) as caught:
        prepare(recipe_for(tmp_path))
    assert os.strerror(number) in caught.value.problem and "another data.path" in caught.value.fix
    assert ("bytes are free" in caught.value.problem) == names_free_bytes
    assert ("quota" in caught.value.fix) != names_free_bytes
    assert len(attempts) == 1


@pytest.mark.parametrize(
    ("status", "message", "problem", "fix"),
    [
        (401, "Invalid credentials in Authorization header", "the hub refuses your token", "unset HF_TOKEN"),
        (403, "Forbidden: needs the role 'read'", "access is denied", "use a token that may read it"),
    ],
)
def test_refusal_is_named_and_not_taken_for_the_network(
    server: HubServer, tmp_path: Path, status: int, message: str, problem: str, fix: str
) -> None:
    server.refusal = (status, message)
    with pytest.raises(DataError, match=problem) as caught:
        prepare(recipe_for(tmp_path))
    assert fix in caught.value.fix
    assert status == 401 or "403" in caught.value.problem  # the client's own words


@pytest.mark.parametrize(
    ("variables", "problem", "fix"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "socksio", "pip install socksio"),
        ({"HTTPS_PROXY": "ftp://127.0.0.1:9"}, "ftp://127.0.0.1:9", "proxies"),
        ({"HTTPS_PROXY": "http://[::"}, "could not be reached", "proxies"),
        ({"HF_TOKEN": "hf_é"}, "HF_TOKEN", "correct it"),
    ],
    ids=["socks", "unknown-proxy", "broken-proxy", "token"],
)
def test_environment_that_stops_the_hub_client_gives_one_line(
    server: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    problem: str,
    fix: str,
) -> None:
    from huggingface_hub.utils import close_session

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "socksio", None)  # not installed
    close_session()
    try:
        with pytest.raises(DataError) as caught:
            prepare(recipe_for(tmp_path))
    finally:
        close_session()
    assert problem in caught.value.problem and fix in caught.value.fix


def test_hub_variable_that_stops_the_import_gives_one_line() -> None:
    code = "from regpt.tasks.catalog import TASKS; from regpt.tasks.items import from_hub; from_hub(TASKS['hellaswag'])"
    environment = {**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "soon", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1].startswith("regpt.base.errors.DataError: ")
    assert "'soon'" in ended.stderr.splitlines()[-1] and "HF_" in ended.stderr.splitlines()[-1]


def test_unreachable_hub_is_reported(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's, between its attempts
    with pytest.raises(DataError, match="the hub could not be reached"):
        prepare(recipe_for(tmp_path, revision=COMMIT))


def test_small_file_stored_by_git_is_verified(server: HubServer, tmp_path: Path, real_text: str) -> None:
    server.files = {"texts/a.txt": real_text.encode()}
    server.misbehaviours["texts/a.txt"] = [hub_server.wrong_bytes]
    manifest = prepare(tiny_recipe(tmp_path, data={"source": "hub:someone/edu/texts"}))
    assert manifest.statistics["text_bytes"] == len(real_text.encode())
    assert np.load(tmp_path / "data" / "val_000000.npy").dtype == np.uint16


# By the command


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.network_like
def test_prepare_command_resumes_a_download_after_a_kill(server: HubServer, tmp_path: Path) -> None:
    table = pq.read_table(io.BytesIO(server.files[PATHS[0]]))
    random = np.random.default_rng(1)
    noise = [random.bytes(22_000_000 // len(table)) for _ in range(len(table))]  # in a column that is not read
    content = io.BytesIO()
    pq.write_table(table.append_column("noise", pa.array(noise)), content, row_group_size=20)
    server.files[PATHS[0]] = content.getvalue()  # larger than what the client reads at a time
    assert len(server.files[PATHS[0]]) > 21_000_000
    server.misbehaviours[PATHS[0]] = [hub_server.half_and_then_silence]
    (tmp_path / "tiny.toml").write_text(to_toml(recipe_for(tmp_path)))
    command = [sys.executable, "-m", "regpt", "prepare", str(tmp_path / "tiny.toml")]
    environment = {**os.environ, "HF_ENDPOINT": server.address}
    partial = partial_path(tmp_path / ".data.preparing" / "raw" / PATHS[0])
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: partial.exists() and partial.stat().st_size > 0)
        process.kill()
    fetched = partial.stat().st_size
    process_again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert server.requests[:2] == [(PATHS[0], ""), (PATHS[0], f"bytes={fetched}-")]
    assert read_manifest(tmp_path / "data").digest in process_again.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tiny.toml"]
