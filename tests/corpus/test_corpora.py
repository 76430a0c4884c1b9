"""Every type of file gives its documents, in an order that depends on names and contents alone."""

import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from regpt.base.errors import DataError, UserError
from regpt.corpus.corpora import definitions, documents, open_corpus


def read(source: Path | str, column: str = "text") -> tuple[list[str], Counter[str]]:
    refused: Counter[str] = Counter()
    texts = []
    for part in open_corpus(str(source), column).parts:
        of_part: Counter[str] = Counter()
        found = list(documents(part, of_part))
        part.check_readable(len(found), of_part)
        texts += found
        refused += of_part
    return texts, refused


ROWS = [{"text": "one"}, {"text": "two\nlines"}, {"text": "  "}, {"text": None}, {"text": "drei – ß"}]


def test_json_lines_give_equal_documents_compressed_or_not(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS).encode() + b'\n\nnot json\n[1]\n{"text": 5}\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
    plain, packed, zst = (read(tmp_path / name) for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"))
    assert plain == packed == zst
    assert plain[0] == ["one", "two\nlines", "drei – ß"]
    assert plain[1] == {"empty": 1, "no text in the column": 3, "not JSON": 1}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_gives_the_requested_column(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([row["text"] for row in ROWS], kind)
    pq.write_table(
        pa.table({"id": list(range(5)), "body": column, "text": ["no"] * 5}), tmp_path / "a.parquet", row_group_size=2
    )
    assert read(tmp_path / "a.parquet", "body")[0] == ["one", "two\nlines", "drei – ß"]
    with pytest.raises(DataError, match="no column 'txt'; its columns are id, body, text"):
        read(tmp_path / "a.parquet", "txt")


def test_folder_is_read_by_name_without_other_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b/2.md", "a.py", "c.txt", "photo.png", ".hidden/x.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "latin.txt").write_bytes("müde".encode("latin-1"))
    texts, refused = read(tmp_path)
    assert texts == ["a.py", "b/2.md", "c.txt"]
    assert refused == {"not UTF-8": 1}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.parquet", b"<html>Not found</html>", "damaged or not a parquet file"),
        ("a.jsonl", b"<html>\n</html>\n", "none of its 2 lines is JSON with a field 'text'"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.zst", b"no zstandard", "cannot be read"),
        ("a.png", b"", "cannot read '.png' files"),
    ],
)
def test_file_that_contradicts_its_suffix_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


def test_zstandard_text_without_the_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "a"}'))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match="Zstandard") as caught:
        read(tmp_path / "a.jsonl.zst")
    assert "pip install zstandard" in str(caught.value)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_truncated_compressed_file_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    lines = "".join(json.dumps({"text": f"line {number} of many"}) + "\n" for number in range(5000)).encode()
    path = tmp_path / f"a.jsonl.{'gz' if pack is gzip.compress else 'zst'}"
    packed = pack(lines)
    path.write_bytes(packed + packed)  # two frames, as some tools write them
    assert len(read(path)[0]) == 10_000
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"a\.jsonl\..*cannot be read"):
        read(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt", "a.txt.gz"])
def test_git_lfs_pointer_is_not_taken_for_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(DataError) as caught:
            open_corpus(str(source), "text")
        assert name in caught.value.problem and "git lfs pull" in caught.value.fix


def test_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["word"] * 1000}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.parquet: damaged or not a parquet file"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("source", ["nowhere", "nowhere.txt"])
def test_missing_source_is_refused_with_a_remedy(source: str) -> None:
    with pytest.raises(DataError, match=source) as caught:
        open_corpus(source, "text")
    assert caught.value.fix


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files that regpt can read"):
        open_corpus(str(tmp_path), "text")


def test_embedded_corpus_is_python_in_a_fixed_order() -> None:
    once, again = read("stdlib")[0], read("stdlib")[0]
    assert once == again
    assert sum(map(len, once)) > 5_000_000
    assert any("class ArgumentParser" in text for text in once)
    assert len(set(once)) == len(once)


def test_definitions_joined_are_the_module() -> None:
    source = (
        '"""Doc."""\nimport os\n\n@a\n@b\ndef f():\n    def inner(): pass\n\nclass C:\n    x = 1\nasync def g(): pass\n'
    )
    pieces = list(definitions(source))
    assert "".join(pieces) == source
    assert [piece.split("\n")[0] for piece in pieces] == ['"""Doc."""', "@a", "class C:", "async def g(): pass"]
