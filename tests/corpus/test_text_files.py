"""Files as strangers have them: every encoding and compression is read right, or refused by name."""

import bz2
import errno
import gzip
import json
import lzma
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from regpt.base.errors import DataError
from regpt.corpus import chunks, parquet, text_files
from regpt.corpus.corpora import documents, open_corpus
from regpt.corpus.encodings import undeclared_encoding
from regpt.corpus.notes import note_about_refused

TEXTS = ["header", "日本語のテキスト。ok", "naïve café, 日本", "😀 end"]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
UTF16_AND_32 = ("UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE")


def read(path: Path, separator: str = "", column: str = "text") -> tuple[list[str], Counter[str]]:
    refused: Counter[str] = Counter()
    texts = []
    for part in open_corpus(str(path), column, separator).parts:
        of_part: Counter[str] = Counter()
        found = list(documents(part, of_part))
        part.check_readable(len(found), of_part)
        texts += found
        refused += of_part
    return texts, refused


# Encodings


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_text_with_a_byte_order_mark_is_decoded(tmp_path: Path, encoding: str, suffix: str) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACKERS[suffix](LINES.encode(encoding)))
    (tmp_path / f"b.txt{suffix}").write_bytes(PACKERS[suffix](LINES.encode(encoding)))
    assert read(tmp_path / f"a.jsonl{suffix}") == (TEXTS, {})
    assert read(tmp_path / f"b.txt{suffix}") == ([LINES], {})


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("encoding", UTF16_AND_32)
def test_text_without_a_byte_order_mark_is_refused_by_name(tmp_path: Path, encoding: str, suffix: str) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACKERS[suffix](LINES.encode(encoding)))
    (tmp_path / f"b.txt{suffix}").write_bytes(PACKERS[suffix](LINES.encode(encoding)))
    with pytest.raises(DataError, match=rf"a\.jsonl.* is {encoding} without") as caught:
        read(tmp_path / f"a.jsonl{suffix}")
    assert f"iconv -f {encoding}" in caught.value.fix
    assert read(tmp_path / f"b.txt{suffix}") == ([], {f"{encoding} without a byte order mark": 1})


@pytest.mark.parametrize("encoding", UTF16_AND_32)
def test_encoding_is_recognized_without_ascii_letters(encoding: str) -> None:
    assert undeclared_encoding("一二三四五。\n六七八九十。\n".encode(encoding)) == encoding


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("naïve café".encode("cp1252"), "not UTF-8"),
        ("naïve café".encode("latin-1") * 100, "not UTF-8"),
        (b"one\0two three\n" * 5, "NUL bytes"),
        (bytes(1000), "NUL bytes"),
        (b"\xff\xfea", "invalid UTF-16-LE"),
        (b" \n\t\n", "empty"),
    ],
)
def test_file_that_is_no_text_is_left_out_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read(tmp_path / "a.txt") == ([], {reason: 1})


def test_lines_that_are_not_utf8_are_left_out_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES.encode() + '{"text": "naïve"}\n'.encode("latin-1"))
    assert read(tmp_path / "a.jsonl") == (TEXTS, {"not UTF-8": 1})
    (tmp_path / "b.jsonl").write_bytes('{"text": "naïve"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"b\.jsonl: none of its 1 lines"):
        read(tmp_path / "b.jsonl")


def test_line_ends_of_every_system_separate_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r\n{"text": "b\\r\\n"}\n\r\n{"text": "c"}')
    assert read(tmp_path / "a.jsonl") == (["a", "b\r\n", "c"], {})


# Compression


def test_zstandard_with_a_window_of_half_a_gigabyte_is_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=29)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # a stream of unknown size
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(LINES.encode()) + packer.flush())
    assert read(tmp_path / "a.jsonl.zst") == (TEXTS, {})


@pytest.mark.parametrize("suffix", [suffix for suffix in PACKERS if suffix])
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_bytes_behind_compressed_data_are_counted(tmp_path: Path, suffix: str, kind: str) -> None:
    path, content = tmp_path / f"a.{kind}{suffix}", PACKERS[suffix](LINES.encode())
    expected = TEXTS if kind == "jsonl" else [LINES]
    path.write_bytes(content + bytes(1000))  # padding, as tapes need it
    assert read(path) == (expected, {})
    path.write_bytes(content + b"junk")
    assert read(path) == (expected, {"bytes behind the end of the compressed data": 1})
    path.write_bytes(content + bytes(7) + PACKERS[suffix](LINES.encode()))
    assert read(path)[0] == (TEXTS * 2 if kind == "jsonl" else [LINES * 2])


@pytest.mark.parametrize("suffix", [suffix for suffix in PACKERS if suffix])
@pytest.mark.parametrize("damage", ["truncated", "changed", "plain"])
def test_damaged_compressed_file_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    packer = zstandard.ZstdCompressor(write_checksum=True).compress if suffix == ".zst" else PACKERS[suffix]
    content = bytearray(packer(os.urandom(5000).hex().encode()))
    if damage == "truncated":
        del content[-9:]
    elif damage == "changed":
        content[len(content) // 2] ^= 0xFF
    else:
        content = bytearray(LINES.encode())  # as a server sends it that unpacks
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt.*cannot be read"):
        read(path)


@pytest.mark.parametrize("name", ["a.ndjson", "a.json.gz", "a.ndjson.zst", "A.JSONL.GZ"])
def test_json_lines_are_known_by_every_common_name(tmp_path: Path, name: str) -> None:
    suffix = Path(name).suffix.lower()
    (tmp_path / name).write_bytes(PACKERS.get(suffix, bytes)(LINES.encode()))
    assert read(tmp_path / name) == (TEXTS, {})


# Fields and columns


def test_field_with_the_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "content": "words"}\n')
    with pytest.raises(DataError, match="field 'text'; text is in content") as caught:
        read(tmp_path / "a.jsonl")
    assert caught.value.fix == "set data.text_column=content"
    assert read(tmp_path / "a.jsonl", column="content")[0] == ["words"]


def test_columns_with_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "title": ["t"], "body": ["words"]}), path)
    with pytest.raises(DataError, match="no column 'text'; its columns are id, title, body; text is in title, body"):
        read(path)
    pq.write_table(pa.table({"id": [1], "body": ["words"]}), path)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.fix == "set data.text_column=body"


# Files that change or fail while they are read


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(LINES)
    (part,) = open_corpus(str(path), "text").parts
    assert list(documents(part, Counter()))
    with path.open("a") as file:
        file.write(LINES)
    with pytest.raises(DataError, match=rf"{name}: changed while it was read"):
        part.check_readable(1, Counter())


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_file_that_vanishes_before_it_is_read_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pq.write_table(pa.table({"text": TEXTS}), path) if name == "a.parquet" else path.write_text(LINES)
    (part,) = open_corpus(str(path), "text").parts
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(No such file") as caught:
        list(documents(part, Counter()))
    assert "put it back" in caught.value.fix


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_failing_disk_is_not_blamed_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class FailingFile(text_files.TextStream):
        def __init__(self, *arguments: Any) -> None:
            raise OSError(number, os.strerror(number))

    (tmp_path / "a.txt").write_text("words")
    monkeypatch.setattr(text_files, "TextStream", FailingFile)
    with pytest.raises(DataError, match=rf"a\.txt: cannot be read \({os.strerror(number)}\)") as caught:
        read(tmp_path / "a.txt")
    assert "remove" not in caught.value.fix and "run the same command again" in caught.value.fix


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", [b"new\nline.txt", b"\xff\xfe.txt", b"\x1b[31mred.txt"])
def test_file_with_an_unprintable_name_is_read_and_shown(tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_bytes(b"words")
    (part,) = open_corpus(str(tmp_path), "text").parts
    assert list(documents(part, Counter())) == ["words"]
    assert part.name.isprintable() and part.name.encode()


def test_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, changed_at: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    monkeypatch.setattr(parquet, "parquet_metadata", refuse)  # root may read everything
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read \(Permission denied\)") as caught:
        read(tmp_path / "a.parquet")
    assert "permissions" in caught.value.fix


# Long texts


def test_separator_cuts_text_lines_and_rows_alike(tmp_path: Path) -> None:
    text = "One day\n<|endoftext|>\nTom\r\n<|endoftext|>\r\n  \n<|endoftext|>Sue"
    (tmp_path / "a.txt").write_text(text, newline="")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    pq.write_table(pa.table({"text": [text]}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        assert read(tmp_path / name, "<|endoftext|>") == (["One day\n", "Tom\r\n", "Sue"], {})
        assert read(tmp_path / name) == ([text], {})


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_long_text_that_is_not_utf8_is_one_document_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a.txt{suffix}"
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 100)
    path.write_bytes(PACKERS[suffix](b"good words <s> " * 100 + b"caf\xe9"))
    assert read(path) == ([], {"not UTF-8": 1})
    texts, refused = read(path, "<s>")  # only the last document is not UTF-8
    assert len(texts) == 100 and refused == {"not UTF-8": 1}


def test_note_about_text_left_out_names_files_and_a_conversion() -> None:
    names = ["a.txt", "b.txt", "c.txt"]
    assert "(a.txt, b.txt, c.txt, …)" in note_about_refused("not UTF-8", 4, names)
    assert "(a.txt, b.txt, c.txt)" in note_about_refused("not UTF-8", 3, names)
    assert "iconv -f WINDOWS-1252" in note_about_refused("not UTF-8", 1, names[:1])
    assert "iconv -f UTF-16BE" in note_about_refused("UTF-16BE without a byte order mark", 1, names[:1])
    assert note_about_refused("empty", 1, []) == "1 left out: empty"
