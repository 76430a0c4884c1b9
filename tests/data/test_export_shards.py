"""Datasets in the files of other programs, and back: the same tokens, the same digest."""

from pathlib import Path

import numpy as np
import pytest

from regpt.base.errors import DATA, DONE, DataError
from regpt.cli.main import main
from regpt.data.export_shards import export_shards
from regpt.data.formats import LLMC_MAGIC, LLMC_VERSION
from regpt.data.import_shards import find_shards, import_shards
from regpt.data.shards import Manifest, read_manifest
from regpt.tokenization.opening import open_tokenizer
from tests.helpers.token_datasets import dataset_of
from tests.helpers.tokenizers import WIDE, write_bytes_tokenizer

VALIDATION, TRAINING = [[5, 6, 7], [8, 9]], [[11, 12, 13, 14], [15], [16, 17, 18]]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    dataset_of(tmp_path / "data", VALIDATION, TRAINING)
    return tmp_path / "data"


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A dataset of tokens that need uint32."""
    end = write_bytes_tokenizer(tmp_path / "wide" / "tokenizer.json", WIDE)
    (tmp_path / "raw").mkdir()
    for name, documents in (("val", VALIDATION), ("train", TRAINING)):
        tokens = [token for one in documents for token in (end, *(WIDE + token for token in one))]
        np.save(tmp_path / "raw" / f"{name}.npy", np.array(tokens, dtype="<u4"))
    command = ["data", "import", str(tmp_path / "raw"), "--into", str(tmp_path / "data")]
    assert main([*command, "--tokenizer", str(tmp_path / "wide")]) == DONE
    return tmp_path / "data"


def imported(folder: Path, **form: bool) -> Manifest:
    return import_shards(folder, find_shards(folder, **form), None)


def test_llmc_shards_have_its_header_and_the_same_digest(dataset: Path, tmp_path: Path) -> None:
    assert main(["data", "export", str(dataset), "--form", "llm.c", "--into", str(tmp_path / "out")]) == DONE
    for name in ("val_000000", "train_000000"):
        tokens = np.load(dataset / f"{name}.npy")
        content = (tmp_path / "out" / f"{name}.bin").read_bytes()
        header = np.frombuffer(content[:1024], dtype="<i4")
        assert header[:3].tolist() == [LLMC_MAGIC, LLMC_VERSION, len(tokens)] == [20240520, 1, len(tokens)]
        assert header[3:].any() == np.False_
        assert np.frombuffer(content[1024:], dtype="<u2").tolist() == tokens.tolist()
    assert imported(tmp_path / "out").digest == read_manifest(dataset).digest


def test_nanogpt_files_are_bare_tokens_with_the_same_digest(dataset: Path, tmp_path: Path) -> None:
    assert main(["data", "export", str(dataset), "--form", "nanogpt", "--into", str(tmp_path / "out")]) == DONE
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.bin", "val.bin"]
    for name in ("val", "train"):
        mapped = np.memmap(tmp_path / "out" / f"{name}.bin", dtype=np.uint16, mode="r")  # as nanoGPT reads it
        assert mapped.tolist() == np.load(dataset / f"{name}_000000.npy").tolist()
    assert imported(tmp_path / "out", without_header=True).digest == read_manifest(dataset).digest


def test_nanogpt_files_hold_all_shards_of_a_split(tmp_path: Path) -> None:
    dataset_of(tmp_path / "data", VALIDATION, TRAINING, shard_tokens=4)
    export_shards(tmp_path / "data", tmp_path / "out", "nanogpt")
    shards = sorted((tmp_path / "data").glob("train_*.npy"))
    assert len(shards) == 3
    expected = np.concatenate([np.load(shard) for shard in shards]).tolist()
    assert np.fromfile(tmp_path / "out" / "train.bin", dtype="<u2").tolist() == expected


def test_uint32_tokens_go_to_llmc_and_back_with_their_tokenizer(wide: Path, tmp_path: Path) -> None:
    manifest = export_shards(wide, tmp_path / "out", "llm.c")
    content = (tmp_path / "out" / "train.bin").read_bytes()
    assert np.frombuffer(content[:12], dtype="<i4").tolist() == [20240801, 7, 11]  # llm.c's write_datafile, llama-3
    assert np.frombuffer(content[1024:], dtype="<u4").tolist() == np.load(wide / "train.npy").tolist()
    again = open_tokenizer(str(tmp_path / "out" / "tokenizer"))
    found = find_shards(tmp_path / "out", tokenizer=again)
    assert import_shards(tmp_path / "out", found, tmp_path / "data-2", tokenizer=again).digest == manifest.digest
    assert read_manifest(tmp_path / "data-2").vocabulary.size == WIDE + 257
    assert open_tokenizer(str(tmp_path / "data-2" / "tokenizer")).record == manifest.tokenizer
    with pytest.raises(DataError, match=r"version 7.*Llama") as caught:
        find_shards(tmp_path / "out")
    assert "--tokenizer" in caught.value.fix


def test_nanogpt_cannot_have_uint32_tokens(wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "export", str(wide), "--form", "nanogpt", "--into", str(tmp_path / "out")]) == DATA
    assert "uint32" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_changed_shard_and_existing_folder_are_refused(dataset: Path, tmp_path: Path) -> None:
    tokens = np.load(dataset / "train_000000.npy")
    tokens[1] += 1
    np.save(dataset / "train_000000.npy", tokens)
    with pytest.raises(DataError, match=r"train_000000\.npy: its tokens are not those of the manifest"):
        export_shards(dataset, tmp_path / "out", "llm.c")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        export_shards(dataset, tmp_path / "out", "nanogpt")
