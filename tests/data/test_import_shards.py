"""Shards of other programs are used unchanged, after checking their headers and reading all their tokens."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from regpt.base.errors import DataError
from regpt.base.progress import NoProgress
from regpt.cli.main import main
from regpt.data import tokenizer
from regpt.data.formats import LLMC_HEADER_BYTES, npy_header_bytes, read_header
from regpt.data.import_shards import find_shards, import_shards, verify
from regpt.data.shards import Manifest, TokenWindows, read_manifest
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe
from tests.conftest import TINY


def llmc_file(
    path: Path, tokens: np.ndarray, magic: int = 20240520, version: int = 1, count: int | None = None
) -> None:
    """A shard as llm.c and modded-nanogpt write it: 256 int32 of header, then the tokens."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


@pytest.fixture
def tokens(real_text: str) -> np.ndarray:
    documents = [real_text[first : first + 3_000] for first in range(0, len(real_text), 3_000)]
    return np.concatenate([[tokenizer.END_OF_TEXT, *tokenizer.encode(text)] for text in documents]).astype(np.uint16)


@pytest.fixture
def npy(tmp_path: Path, tokens: np.ndarray) -> Path:
    folder = tmp_path / "npy"
    folder.mkdir()
    for name, some in (
        ("val_000000", tokens[:5_000]),
        ("train_000001", tokens[5_000:12_000]),
        ("train_000002", tokens[12_000:]),
    ):
        np.save(folder / f"edufineweb_{name}.npy", some)
    return folder


@pytest.fixture
def llmc(tmp_path: Path, tokens: np.ndarray) -> Path:
    folder = tmp_path / "llmc"
    folder.mkdir()
    for name, some in (
        ("val_000000", tokens[:5_000]),
        ("train_000001", tokens[5_000:12_000]),
        ("train_000002", tokens[12_000:]),
    ):
        llmc_file(folder / f"fineweb_{name}.bin", some)
    return folder


def take_over(folder: Path, into: Path | None = None) -> Manifest:
    return import_shards(folder, find_shards(folder), into)


def test_import_of_npy_and_llmc_gives_equal_windows_and_digest(npy: Path, llmc: Path) -> None:
    before = {path.name: path.read_bytes() for folder in (npy, llmc) for path in folder.iterdir()}
    one, other = take_over(npy), take_over(llmc)
    assert one.digest == other.digest == read_manifest(llmc).digest
    assert one.statistics == other.statistics
    for split in ("train", "val"):
        ours, theirs = TokenWindows(npy, one, split, 64), TokenWindows(llmc, other, split, 64)
        assert np.array_equal(ours.rows(range(len(ours))), theirs.rows(range(len(theirs))))
    assert (
        before.items() <= {path.name: path.read_bytes() for folder in (npy, llmc) for path in folder.iterdir()}.items()
    )


def test_import_of_own_shards_restores_their_digest(tiny: Recipe) -> None:
    digest = prepare(tiny).digest
    (tiny.data.directory / "manifest.json").unlink()
    assert take_over(tiny.data.directory).digest == digest


def test_import_counts_tokens_and_documents(npy: Path, tokens: np.ndarray) -> None:
    manifest = take_over(npy)
    assert manifest.tokens("val") == 5_000 and manifest.tokens("train") == len(tokens) - 5_000
    assert manifest.statistics["documents"] == np.count_nonzero(tokens == tokenizer.END_OF_TEXT)


def test_import_into_links_leaves_the_shards_folder_alone(llmc: Path, tmp_path: Path) -> None:
    manifest = take_over(llmc, tmp_path / "links")
    assert not (llmc / "manifest.json").exists()
    assert read_manifest(tmp_path / "links") == manifest
    assert list(verify(tmp_path / "links")) == []


class BytesRead(NoProgress):
    """Remembers the progress that it was given."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, int]] = []

    def update(self, done: int, total: int) -> None:
        self.updates.append((done, total))


def test_import_and_verify_report_bytes_up_to_the_total(npy: Path, tokens: np.ndarray) -> None:
    importing, verifying = BytesRead(), BytesRead()
    import_shards(npy, find_shards(npy), None, importing)
    assert list(verify(npy, verifying)) == []
    assert importing.updates == verifying.updates
    assert importing.updates[-1] == (tokens.nbytes, tokens.nbytes)
    assert len(importing.updates) == 3


def test_verify_counts_a_damaged_shard_as_done(npy: Path, tokens: np.ndarray) -> None:
    take_over(npy)
    cut(npy / "edufineweb_train_000001.npy")
    verifying = BytesRead()
    assert len(list(verify(npy, verifying))) == 1
    assert verifying.updates[-1] == (tokens.nbytes, tokens.nbytes)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def odd(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(100))


@pytest.mark.parametrize("form", ["npy", "llmc"])
@pytest.mark.parametrize("damage", [cut, odd, empty, longer])
def test_import_refuses_header_that_contradicts_size(
    form: str,
    damage,
    request: pytest.FixtureRequest,  # type: ignore[no-untyped-def]
) -> None:
    folder: Path = request.getfixturevalue(form)
    path = sorted(folder.iterdir())[0]
    damage(path)
    with pytest.raises(DataError, match=path.name):
        take_over(folder)
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"magic": 20240521}, "magic 20240521"),
        ({"version": 7}, r"version 7.*Llama's tokens"),
        ({"count": 10_000}, "10,000 tokens"),
        ({"count": -1}, "-1 tokens"),
    ],
)
def test_import_refuses_foreign_llmc_header(llmc: Path, content: dict[str, int], says: str) -> None:
    llmc_file(llmc / "fineweb_train_000003.bin", np.arange(1_000), **content)
    with pytest.raises(DataError, match=says):
        take_over(llmc)


@pytest.mark.parametrize("array", [np.arange(500, dtype=np.int32), np.zeros((2, 300), np.uint16), np.float32(1.0)])
def test_import_refuses_arrays_of_other_type_or_shape(npy: Path, array: np.ndarray) -> None:
    np.save(npy / "edufineweb_train_000003.npy", array)
    with pytest.raises(DataError, match="a shard is one-dimensional, uint16"):
        take_over(npy)


def test_import_refuses_pickled_array_without_running_it(npy: Path) -> None:
    np.save(npy / "edufineweb_train_000003.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"edufineweb_train_000003\.npy"):
        take_over(npy)


def test_import_names_the_token_outside_the_vocabulary(llmc: Path, tokens: np.ndarray) -> None:
    tokens = tokens[5_000:12_000].copy()
    tokens[1_234] = 50_257
    llmc_file(llmc / "fineweb_train_000001.bin", tokens)
    with pytest.raises(DataError, match=r"fineweb_train_000001\.bin: token 1,234 is 50257"):
        take_over(llmc)


@pytest.mark.parametrize("name", ["shard_000001.npy", "train_and_val.npy", "retrieval_000001.npy", "medieval.npy"])
def test_import_refuses_names_without_a_clear_split(npy: Path, name: str) -> None:
    shutil.copy(npy / "edufineweb_val_000000.npy", npy / name)
    with pytest.raises(DataError, match=f"{name}: the name does not tell the split"):
        take_over(npy)


def test_shards_are_sorted_by_number_and_unique(npy: Path) -> None:
    for number in (2, 10):
        shutil.copy(npy / "edufineweb_train_000001.npy", npy / f"train_{number}.npy")
    assert [one.path.name for one in find_shards(npy)][-2:] == ["train_2.npy", "train_10.npy"]
    shutil.copy(npy / "train_2.npy", npy / "train_2.bin")
    with pytest.raises(DataError, match="has train_2 in two formats"):
        find_shards(npy)


def test_import_refuses_existing_target_before_reading(npy: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    reading = BytesRead()
    with pytest.raises(DataError, match="there: exists already"):
        import_shards(npy, find_shards(npy), tmp_path / "there", reading)
    assert reading.updates == []


def test_import_leaves_unfinished_preparation_alone(npy: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / ".links.preparing" / "progress.json"
    unfinished.parent.mkdir()
    unfinished.touch()
    take_over(npy, tmp_path / "links")
    assert unfinished.exists()


@pytest.mark.parametrize("place", range(0, 120, 7))
def test_import_names_file_with_any_damaged_header(npy: Path, place: int) -> None:
    path = npy / "edufineweb_train_000001.npy"
    content = bytearray(path.read_bytes())
    content[place] = ord("(")
    path.write_bytes(bytes(content))
    try:
        take_over(npy)
    except DataError as error:
        assert path.name in error.problem


def test_import_refuses_folder_without_shards_or_with_manifest(tmp_path: Path, npy: Path) -> None:
    with pytest.raises(DataError, match="no token shards"):
        take_over(tmp_path)
    take_over(npy)
    with pytest.raises(DataError, match="already a dataset of regpt"):
        take_over(npy)


# By the command


def test_import_verify_show_and_train(
    llmc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tokens: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(llmc.iterdir())
    assert main(["data", "import", str(llmc)]) == 0
    assert f"{len(tokens) - 5_000:,} training and 5,000 validation tokens in 3 shards" in capsys.readouterr().out
    assert sorted(llmc.iterdir()) == before  # the folder of the shards is not changed
    assert main(["data", "verify", "data/llmc"]) == 0
    assert f"{Path('data', 'llmc')}: all 3 shards" in capsys.readouterr().out
    assert main(["data", "show", "data/llmc", "--block-size", "32"]) == 0
    shown = capsys.readouterr().out
    assert "shards of llmc" in shown and "val: 5,000 tokens in 1 shards, 156 windows of 32" in shown
    assert main(["data", "show", "data/llmc", "--window", "1", "--block-size", "32", "--split", "val"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == " ".join(map(str, tokens[32:65]))
    assert main(["data", "show", "data/llmc", "--window", "1", "--block-size", "32", "--split", "val", "--text"]) == 0
    assert tokenizer.decode(tokens[32:65]) in capsys.readouterr().out
    fixed = ("validation", "validation_tokens", "shard_tokens")  # by the shards
    settings = [
        f"{section}.{key}={json.dumps(value)}"
        for section, table in TINY.items()
        for key, value in table.items()
        if section != "data" or key not in fixed
    ]
    train = ["train", "demo-modern", "--runs", str(tmp_path), "--name", "run", "data.path=data/llmc", *settings]
    assert main(train) == 0


def test_import_in_place_writes_the_manifest_next_to_the_shards(
    llmc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "import", str(llmc), "--in-place"]) == 0
    assert read_manifest(llmc).tokens("val") == 5_000
    assert not (tmp_path / "data").exists()


def test_import_of_a_folder_in_data_gets_another_name(
    llmc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    llmc.rename(tmp_path / "data" / "mine")
    assert main(["data", "import", "data/mine"]) == 0
    assert not (tmp_path / "data" / "mine" / "manifest.json").exists()
    assert list(verify(tmp_path / "data" / "mine-imported")) == []


def test_import_uses_hard_links_where_symbolic_ones_fail(
    llmc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    take_over(llmc, tmp_path / "links")
    assert list(verify(tmp_path / "links")) == [] and (tmp_path / "links" / "manifest.json").stat().st_nlink == 1
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(DataError, match="no links") as caught:
        take_over(llmc, tmp_path / "other")
    assert "--in-place" in caught.value.fix and not (tmp_path / "other").exists()


def test_data_path_of_foreign_shards_names_the_import(llmc: Path) -> None:
    with pytest.raises(DataError, match="no manifest") as caught:
        read_manifest(llmc)
    assert f"regpt data import {llmc}" in caught.value.fix


# Without a header


@pytest.fixture
def headerless(tmp_path: Path, tokens: np.ndarray) -> Path:
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    tokens[:5_000].astype("<u2").tofile(folder / "val.bin")
    tokens[5_000:].astype("<u2").tofile(folder / "train.bin")
    return folder


def test_nanogpt_files_are_imported_on_request(
    headerless: Path, npy: Path, tmp_path: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "import", str(headerless), "--form", "nanogpt", "--into", "made"]) == 0
    made = read_manifest(tmp_path / "made")
    assert made.tokens("val") == 5_000 and made.tokens("train") == len(tokens) - 5_000
    windows = TokenWindows(tmp_path / "made", made, "train", 64)
    assert windows.rows([3])[0].tolist() == tokens[5_000 + 192 : 5_000 + 257].tolist()
    assert list(verify(tmp_path / "made")) == []
    (headerless / "train.bin").write_bytes((headerless / "train.bin").read_bytes()[:-2])
    assert len(list(verify(tmp_path / "made"))) == 1


@pytest.mark.parametrize("suffix", [".bin", ".npy"])
def test_files_without_a_header_name_their_remedy(headerless: Path, suffix: str) -> None:
    for path in list(headerless.iterdir()):
        path.rename(path.with_suffix(suffix))
    with pytest.raises(DataError, match=rf"(val|train)\{suffix}: does not start") as caught:
        find_shards(headerless)
    assert "--form nanogpt" in caught.value.fix
    assert len(find_shards(headerless, without_header=True)) == 2


@pytest.mark.parametrize("size", [0, 10, 500])
def test_damaged_shard_is_not_taken_for_a_file_without_header(npy: Path, size: int) -> None:
    path = npy / "edufineweb_train_000001.npy"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=path.name) as caught:
        find_shards(npy)
    assert "--form" not in caught.value.fix


@pytest.mark.parametrize("kind", [np.uint32, np.int64])
def test_wider_tokens_without_a_header_are_refused(headerless: Path, tokens: np.ndarray, kind: type) -> None:
    tokens.astype(kind).tofile(headerless / "train.bin")
    with pytest.raises(DataError, match=r"train\.bin: holds tokens of four or more bytes"):
        find_shards(headerless, without_header=True)


def test_tokens_of_characters_are_refused(headerless: Path) -> None:
    (headerless / "meta.pkl").write_bytes(b"not opened")
    with pytest.raises(DataError, match=r"meta\.pkl: .*single characters"):
        find_shards(headerless, without_header=True)


def test_data_show_refuses_window_out_of_range(npy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    take_over(npy)
    assert main(["data", "show", str(npy), "--window", "99999"]) == 3
    assert "no window 99,999" in capsys.readouterr().err


# Verified


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def test_verify_finds_one_flipped_bit_anywhere(tiny: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = prepare(tiny)
    folder = tiny.data.directory
    header = len(npy_header_bytes(0))
    for shard in manifest.shards[:3]:
        path = folder / shard.name
        for place in (0, header - 10, header, header + shard.tokens, path.stat().st_size - 1):
            flip(path, place)
            assert main(["data", "verify", str(folder)]) == 3
            err = capsys.readouterr().err
            assert shard.name in err and f"1 of {len(manifest.shards)} shards" in err
            flip(path, place)
    assert main(["data", "verify", str(folder)]) == 0


def test_verify_finds_swapped_missing_and_foreign_shards(tiny: Recipe) -> None:
    prepare(tiny)
    folder = tiny.data.directory
    one, other, third, fourth = (folder / f"train_{number:06d}.npy" for number in range(4))
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)
    third.unlink()
    np.save(fourth, np.zeros(5_000, dtype=np.uint16))  # of the same size
    problems = list(verify(folder))
    assert [path.name in problem for path, problem in zip((one, other, third, fourth), problems, strict=True)] == [
        True
    ] * 4


def test_windows_name_a_shard_damaged_while_in_use(tiny: Recipe) -> None:
    manifest = prepare(tiny)
    windows = TokenWindows(tiny.data.directory, manifest, "train", 32)
    windows.rows([0])
    path = tiny.data.directory / "train_000001.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:5_000])
    last = 2 * ((5_000 - 1) // 32) - 1
    with pytest.raises(DataError, match=r"train_000001\.npy: truncated while in use"):
        windows.rows([0, last])
    path.write_bytes(whole[:-2_000] + b"\xff" * 2_000)
    with pytest.raises(DataError, match=r"train_000001\.npy: token 65535 is outside GPT-2's 50,257"):
        windows.rows([0, last])
    path.write_bytes(whole)
    assert len(windows.rows([0, last])) == 2
    assert LLMC_HEADER_BYTES == 1024


@pytest.mark.parametrize("name", ["train_000000.npy", "train_000000.bin"])
def test_git_lfs_pointer_is_not_taken_for_a_shard(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(DataError) as caught:
        read_header(tmp_path / name, "npy" if name.endswith("npy") else "llm.c")
    assert name in caught.value.problem and "git lfs pull" in caught.value.fix
