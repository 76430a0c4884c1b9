"""The list of validation documents: their numbers, tokens and shares, from any format, in bounded memory."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from regpt.base.errors import DATA
from regpt.cli.main import main
from regpt.data import tokenizer
from regpt.data.formats import DTYPE
from regpt.data.shards import read_manifest
from regpt.inspection import documents
from regpt.inspection.documents import BEGINNING, documents_of, pieces_of, validation_documents
from regpt.preparation.dataset import prepare
from tests.conftest import tiny_recipe
from tests.helpers.token_datasets import E, dataset_of

ROW = re.compile(r"^ +([\d,]+(?: more)?) +([\d,]+) +([\d.]+) %  (.*)$", re.MULTILINE)
TRAINING = [[*range(100, 140)]] * 9


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["data", "show", *words]) == 0
    return capsys.readouterr().out


def random_documents(seed: int, number: int, longest: int = 120) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 5_000, rng.integers(1, longest)).tolist() for _ in range(number)]


@pytest.mark.parametrize("form", ["npy", "llm.c", "nanogpt"])
@pytest.mark.parametrize("size", [3, 64, 10_000])
def test_documents_are_those_written_in_any_format_and_reading_size(tmp_path: Path, form: str, size: int) -> None:
    written = random_documents(1, 20)
    manifest = dataset_of(tmp_path, written, TRAINING, form, shard_tokens=10**9 if form == "nanogpt" else 100)
    found = list(documents_of(pieces_of(tmp_path, manifest, "val", size)))
    assert [one.tokens for one in found] == [len(ids) for ids in written]
    assert [one.number for one in found] == list(range(1, 21))
    assert [one.beginning.tolist() for one in found] == [ids[:BEGINNING] for ids in written]
    stream = np.concatenate(list(pieces_of(tmp_path, manifest, "val")))
    assert [stream[one.start : one.start + one.tokens].tolist() for one in found] == written


def test_empty_documents_are_not_listed() -> None:
    pieces = iter([np.array(ids, dtype=DTYPE) for ids in ([E, E, 1, 2], [E], [E, E, 3], [4, E])])
    assert [(one.number, one.start, one.tokens) for one in documents_of(pieces)] == [(1, 2, 2), (2, 7, 2)]


def test_giant_document_keeps_only_its_beginning(tmp_path: Path) -> None:
    manifest = dataset_of(tmp_path, [[5], [7] * 200_000], TRAINING)
    giant = list(validation_documents(tmp_path, manifest))[1]
    assert giant.tokens == 200_000 and giant.beginning.nbytes == BEGINNING * DTYPE.itemsize
    assert giant.beginning.base is None  # no view that keeps a piece in memory


def test_show_names_the_ten_largest_and_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = [[1_100 + number] * number for number in range(1, 15)]
    dataset_of(tmp_path, written, TRAINING)
    rows = ROW.findall(shown(capsys, str(tmp_path), "--block-size", "8"))
    assert [(row[0], row[1]) for row in rows] == [*((str(n), str(n)) for n in range(14, 4, -1)), ("4 more", "10")]
    assert float(rows[0][2]) == pytest.approx(100 * 14 / (105 + 14), abs=0.05)
    assert rows[0][3].rstrip("…") == (tokenizer.decode([1_114]) * 14).strip()[:43].rstrip()


def test_show_lists_all_documents_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = random_documents(2, 40)
    dataset_of(tmp_path, written, TRAINING)
    rows = ROW.findall(shown(capsys, str(tmp_path), "--documents"))
    assert [int(row[1]) for row in rows] == [len(ids) for ids in written]


@pytest.mark.parametrize("words", [[], ["--documents"]])
def test_lines_fit_into_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    texts = ["\u6f22\u5b57 " * 40, "a\tb\n\n\x1b[31mc " * 30, "\u202eword " * 30, "\U0001f642" * 60] * 30
    (tmp_path / "texts").mkdir()
    lines = (json.dumps({"text": f"{number} {text}"}) for number, text in enumerate(texts))
    (tmp_path / "texts" / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepare(tiny_recipe(tmp_path, data={"validation": "documents", "validation_tokens": 2_000}))
    printed = shown(capsys, str(tmp_path / "data"), *words)
    lines_without_paths = [line for line in printed.splitlines() if str(tmp_path) not in line]
    assert max(map(cell_len, lines_without_paths)) <= 80
    assert not re.search("[\x1b\t\u202e\ufffd]", printed)
    assert len(ROW.findall(printed)) >= 11


def test_first_tokens_split_lists_its_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    lines = [json.dumps({"text": f"Chapter {number}. " + "word " * 90}) for number in range(60)]
    (tmp_path / "texts" / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepare(tiny_recipe(tmp_path, data={"validation_tokens": 500}))
    rows = ROW.findall(shown(capsys, str(tmp_path / "data"), "--documents"))
    assert [row[3].split(".")[0] for row in rows] == [f"Chapter {number}" for number in range(len(rows))]
    assert sum(int(row[1]) for row in rows) == 500 - len(rows)  # the end tokens are not counted


def test_show_lists_token_ids_without_a_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_of(tmp_path, [[11, 22, 33]], TRAINING)

    def missing() -> None:
        raise tokenizer.no_vocabulary(OSError())

    monkeypatch.setattr(tokenizer, "encoding", missing)
    assert ROW.findall(shown(capsys, str(tmp_path), "--documents")) == [("1", "3", "75", "tokens 11 22 33")]


def test_shortened_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset_of(tmp_path, random_documents(3, 9), TRAINING)
    path = tmp_path / "val_000000.npy"
    path.write_bytes(path.read_bytes()[:-2])
    assert main(["data", "show", str(tmp_path), "--documents"]) == DATA
    assert str(path) in capsys.readouterr().err


def test_shard_shortened_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = dataset_of(tmp_path, random_documents(3, 9), TRAINING)
    monkeypatch.setattr(documents, "check_shard", lambda path, shard, dtype: path.stat().st_size - 40)
    with pytest.raises(documents.DataError, match="val_000000"):
        list(validation_documents(tmp_path, manifest))
    assert read_manifest(tmp_path) == manifest
