"""Which files of a folder are read: as on the hub, and whatever is left out is counted and named."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

from regpt.base.errors import DataError
from regpt.corpus.corpora import Corpus, documents, open_corpus
from regpt.corpus.selection import select_files
from regpt.preparation import hub
from regpt.preparation.downloads import HubFile

links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")


def write(folder: Path, *names: str) -> None:
    """Write files that hold their own name: as a line of JSON where the name says so."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}) + "\n" if "json" in name else name)


def texts(corpus: Corpus) -> list[str]:
    return [text for part in corpus.parts for text in documents(part, Counter())]


def test_folder_is_read_as_the_hub_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["README.md", "data/train-1.jsonl", "data/train-0.jsonl", "notes.txt", "x.json", "load.py", "z.ndjson"]
    write(tmp_path, *names)
    local = open_corpus(str(tmp_path), "text")
    listed = [HubFile(name, 10, "", "") for name in names]
    monkeypatch.setattr(hub, "list_files", lambda *_: ("c" * 40, listed))
    remote = hub.open_hub("hub:a/b", "", "text", tmp_path / "raw", keep=False)
    assert [part.name for part in remote.parts] == ["data/train-0.jsonl", "data/train-1.jsonl", "z.ndjson"]
    assert texts(local) == [part.name for part in remote.parts]
    assert local.notes == remote.notes
    assert (
        local.origin["files_left_out"] == remote.origin["files_left_out"] == {".json": 1, ".md": 1, ".py": 1, ".txt": 1}
    )


def test_files_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", *(f"b{number}.csv" for number in range(5)), "c.json", "d.tar.gz", "e.png", "f.jpg", "g")
    corpus = open_corpus(str(tmp_path), "text")
    assert texts(corpus) == ["a.txt"]
    assert corpus.origin["files_left_out"] == {"": 1, ".csv": 5, ".jpg": 1, ".json": 1, ".png": 1, ".tar": 1}
    notes = "\n".join(corpus.notes)
    for words in (
        "5 .csv files (b0.csv, b1.csv, b2.csv, …)",
        "1 .json file (c.json)",
        "d.tar.gz",
        "2 other files",
        "(g)",
    ):
        assert words in notes
    assert "jq -c" in notes and "write_table" in notes and "unpack" in notes


def test_folder_without_readable_files_names_what_it_has(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "b.csv")
    with pytest.raises(DataError, match=r"no files that regpt can read.*2 \.csv files \(a\.csv, b\.csv\)"):
        open_corpus(str(tmp_path), "text")
    with pytest.raises(DataError, match=r"cannot read '\.csv' files") as caught:
        open_corpus(str(tmp_path / "a.csv"), "text")
    assert "write_table" in caught.value.fix


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        (["train.jsonl", "test.jsonl"], ["test.jsonl"]),
        (["data/train-0.jsonl", "data/validation-0.jsonl"], ["data/validation-0.jsonl"]),
        (["a.txt", "dev/b.txt"], ["dev/b.txt"]),
        (["test.jsonl", "val.jsonl"], []),  # nothing else: this is what was asked for
        (["contest.jsonl", "latest.jsonl", "a.jsonl"], []),
        (["a.py", "tests/test_a.py"], []),
    ],
)
def test_test_data_among_training_data_is_noted(tmp_path: Path, names: list[str], held_out: list[str]) -> None:
    selection = select_files([PurePosixPath(name) for name in names])
    assert [str(path) for path in selection.held_out] == held_out
    write(tmp_path, *names)
    notes = open_corpus(str(tmp_path), "text").notes
    assert [held_out[0] in note for note in notes] == [True] * bool(held_out)


@links
def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path, "source/2024/a.txt", "elsewhere/b.txt", "elsewhere/deep/c.txt")
    source = tmp_path / "source"
    (source / "aaa-latest").symlink_to(source / "2024")  # sorts before the folder it names
    (source / "loop").symlink_to(source)
    (source / "zzz").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(source / "2024")
    corpus = open_corpus(str(source), "text")
    assert texts(corpus) == ["source/2024/a.txt", "elsewhere/b.txt", "elsewhere/deep/c.txt"]
    assert any("aaa-latest" in note and "loop" in note for note in corpus.notes)
    shutil.rmtree(tmp_path / "elsewhere")


@links
@pytest.mark.parametrize("target", ["..", "../.."])
def test_link_to_a_folder_above_reads_nothing_twice(tmp_path: Path, target: str) -> None:
    write(tmp_path, "x/y/a.txt", "x/b.txt")
    (tmp_path / "x" / "y" / "up").symlink_to(target)
    found = texts(open_corpus(str(tmp_path / "x" / "y"), "text"))
    assert sorted(found) == ["x/b.txt", "x/y/a.txt"]


def test_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt", "closed/b.txt")
    scan = os.scandir

    def refusing(path: str) -> object:
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may read everything
    with pytest.raises(DataError, match=r"closed: cannot be listed \(Permission denied\)") as caught:
        open_corpus(str(tmp_path), "text")
    assert "permissions" in caught.value.fix


def test_names_that_a_disk_may_confuse_or_lack_get_a_number(tmp_path: Path) -> None:
    names = ["A/x.parquet", "a/x.parquet", "b/aux.jsonl.gz", "c/what?.txt", "auxiliary/con1.parquet"]
    files = [HubFile(name, 1, "", "") for name in names]
    paths = [download.path.relative_to(tmp_path).as_posix() for download in hub.local_paths(files, tmp_path)]
    numbered = ["file-000001.parquet", "file-000002.jsonl.gz", "file-000003.txt"]
    assert paths == ["A/x.parquet", *numbered, "auxiliary/con1.parquet"]
