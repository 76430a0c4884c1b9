"""A dataset holds every document once, in order, split as the recipe says, and is complete or absent."""

import errno
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from regpt.base import files
from regpt.base.errors import DataError, UserError
from regpt.corpus.corpora import documents, open_corpus
from regpt.corpus.progress import NoPreparationProgress
from regpt.data import shard_writer, tokenizer
from regpt.data.shards import TokenWindows, read_manifest
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe
from tests.conftest import tiny_recipe
from tests.helpers import strange_disks


def tokens_on_disk(folder: Path, split: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(folder.glob(f"{split}_*.npy"))])


def test_shards_hold_each_document_once_after_an_end_token(tiny: Recipe, tmp_path: Path) -> None:
    manifest = prepare(tiny)
    texts = [text for part in open_corpus(tiny.data.source, "text").parts for text in documents(part, Counter())]
    expected = np.concatenate([[tokenizer.END_OF_TEXT, *tokenizer.encode(text)] for text in texts])
    found = np.concatenate([tokens_on_disk(tmp_path / "data", split) for split in ("val", "train")])
    assert np.array_equal(found, expected)
    assert manifest.statistics["documents"] == len(texts) == sum(shard.documents for shard in manifest.shards)
    assert manifest.statistics["text_bytes"] == sum(len(text.encode()) for text in texts)


def test_shards_are_full_except_the_last_of_a_split(tiny: Recipe) -> None:
    shards = prepare(tiny).shards
    assert [shard.tokens for shard in shards if shard.split == "val"] == [4_000]
    train = [shard.tokens for shard in shards if shard.split == "train"]
    assert len(train) > 3 and set(train[:-1]) == {5_000} and 0 < train[-1] <= 5_000


def test_dataset_of_the_same_text_has_the_same_bytes(tiny: Recipe, tmp_path: Path) -> None:
    once = prepare(tiny)
    again = prepare(tiny_recipe(tmp_path, data={"path": str(tmp_path / "again")}))
    assert once.digest == again.digest
    for shard in once.shards:
        assert (tmp_path / "data" / shard.name).read_bytes() == (tmp_path / "again" / shard.name).read_bytes()


def test_dataset_digest_changes_with_one_character(tiny: Recipe, tmp_path: Path) -> None:
    digest = prepare(tiny).digest
    path = tmp_path / "texts" / "a.jsonl"
    row = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({"text": "#" + row["text"]}), encoding="utf-8")
    assert prepare(tiny_recipe(tmp_path, data={"path": str(tmp_path / "again")})).digest != digest


def test_documents_that_cannot_be_encoded_are_counted(tiny: Recipe, tmp_path: Path) -> None:
    lines = [" " * 1_000_000 + "x", "", "\ud800 surrogate", "<|endoftext|>"]
    (tmp_path / "texts" / "hostile.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    manifest = prepare(tiny)
    assert manifest.statistics["refused"] == {"empty": 1, "tiktoken cannot encode it": 1}
    ends = sum(
        int((tokens_on_disk(tmp_path / "data", split) == tokenizer.END_OF_TEXT).sum()) for split in ("val", "train")
    )
    assert ends == manifest.statistics["documents"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"validation_tokens": 1_000_000}, "the training split has 0 of"),
        ({"validation_tokens": 20}, "the validation split has 20 of"),
        ({"total_batch_tokens": 2_097_152}, "a batch takes 65,536"),
    ],
)
def test_text_too_short_for_the_recipe_leaves_no_files(
    tmp_path: Path, texts: Path, changes: dict[str, object], says: str
) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=says) as caught:
        prepare(tiny_recipe(tmp_path, data=changes))
    assert "set data." in caught.value.fix
    if caught.value.fix.startswith("set data.validation_tokens="):  # the remedy works unchanged
        works = int(caught.value.fix.split("=")[1])
        prepare(tiny_recipe(tmp_path, data={**changes, "validation_tokens": works, "path": str(tmp_path / "fixed")}))
        shutil.rmtree(tmp_path / "fixed")
    assert sorted(tmp_path.iterdir()) == before


def test_prepare_refuses_folder_of_empty_files(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    with pytest.raises(DataError, match=r"has no text \(1 empty\)"):
        prepare(tiny_recipe(tmp_path))


def test_prepare_never_overwrites_a_dataset(tiny: Recipe, tmp_path: Path) -> None:
    manifest = prepare(tiny)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    with pytest.raises(UserError, match=r"data\.shard_tokens = 5000.*data\.shard_tokens = 4000"):
        prepare(tiny_recipe(tmp_path, data={"shard_tokens": 4_000}))
    assert prepare(tiny) == manifest
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == before


def test_prepare_leaves_a_folder_of_other_files_alone(tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").touch()
    with pytest.raises(DataError, match="exists already"):
        prepare(tiny)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]


def test_windows_overlap_by_one_token(tiny: Recipe, tmp_path: Path) -> None:
    manifest = prepare(tiny)
    windows = TokenWindows(tmp_path / "data", manifest, "train", 32)
    assert len(windows) == sum((shard.tokens - 1) // 32 for shard in manifest.shards if shard.split == "train")
    rows = windows.rows(range(len(windows)))
    per_shard = (5_000 - 1) // 32
    for shard in (0, 1):
        tokens = np.load(tmp_path / "data" / f"train_{shard:06d}.npy")
        mine = rows[shard * per_shard : (shard + 1) * per_shard]
        assert np.array_equal(mine[:, :-1].ravel(), tokens[: per_shard * 32])
        assert np.array_equal(mine[:, -1], tokens[32 : per_shard * 32 + 1 : 32])


def damage_shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_type(path: Path) -> None:
    np.save(path, np.load(path).astype(np.uint32))


def damage_count(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


@pytest.mark.parametrize("damage", [damage_shorter, damage_empty, damage_type, damage_count, Path.unlink])
def test_windows_refuse_a_damaged_shard_at_the_start(tiny: Recipe, tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    manifest = prepare(tiny)
    damage(tmp_path / "data" / "train_000001.npy")
    with pytest.raises(DataError, match=r"train_000001\.npy"):
        TokenWindows(tmp_path / "data", manifest, "train", 32)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": "other", "version": 1, "digest": ""}'])
def test_manifest_of_another_program_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"statistics": {}},
        {"source": None},
        {"shards": [{"name": 7}]},
        {"shards": "x"},
        {"made_with": 3},
    ],
    ids=str,
)
def test_manifest_with_wrong_types_is_refused(tiny: Recipe, tmp_path: Path, change: dict[str, object]) -> None:
    prepare(tiny)
    path = tmp_path / "data" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path / "data")


@pytest.mark.parametrize(("key", "value"), [("name", "../elsewhere.npy"), ("form", "xyz"), ("split", "test")])
def test_manifest_names_only_shards_in_its_folder(tiny: Recipe, tmp_path: Path, key: str, value: str) -> None:
    prepare(tiny)
    path = tmp_path / "data" / "manifest.json"
    values = json.loads(path.read_text())
    values["shards"][0][key] = value
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path / "data")


def test_manifest_changed_after_writing_is_refused(tiny: Recipe, tmp_path: Path) -> None:
    prepare(tiny)
    path = tmp_path / "data" / "manifest.json"
    path.write_text(path.read_text().replace('"tokens": 5000', '"tokens": 4999', 1))
    with pytest.raises(DataError, match="changed after it was written"):
        read_manifest(tmp_path / "data")


# Disks


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("full", ["val_000000.npy", "train_000001.npy"])
def test_full_disk_names_the_shard_and_the_same_command_continues(tiny: Recipe, tmp_path: Path, full: str) -> None:
    expected = prepare(tiny_recipe(tmp_path, data={"path": str(tmp_path / "whole")})).digest
    partial = tmp_path / ".data.preparing"
    partial.mkdir()
    (partial / full).symlink_to("/dev/full")
    with pytest.raises(DataError, match=rf"{full}: cannot be written \(No space left on device\)") as caught:
        prepare(tiny)
    assert "free some space" in caught.value.fix and "continues" in caught.value.fix
    (partial / full).unlink(missing_ok=True)
    assert prepare(tiny).digest == expected


@pytest.mark.parametrize("place", ["files", "shard_writer"])
def test_quota_is_named(monkeypatch: pytest.MonkeyPatch, tiny: Recipe, place: str) -> None:
    def flush(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr({"files": files, "shard_writer": shard_writer}[place], "flush_descriptor", flush)
    with pytest.raises(UserError, match=r"cannot be written \(Disk quota exceeded\)") as caught:
        prepare(tiny)
    assert "quota" in caught.value.fix and "data.path" in caught.value.fix


def test_preparation_continues_on_a_share_without_locks_and_folder_flush(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare(tiny_recipe(tmp_path, data={"path": str(tmp_path / "whole")})).digest
    strange_disks.without_locks(monkeypatch, errno.ENOLCK)
    strange_disks.without_folder_flush(monkeypatch)
    notes: list[str] = []
    progress = NoPreparationProgress()
    monkeypatch.setattr(progress, "note", notes.append)
    assert prepare(tiny, progress).digest == expected
    assert [".data.lock.marker" in note for note in notes] == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "texts", "whole"]


def test_preparation_is_refused_at_once_on_a_bucket_without_folder_renames(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange_disks.without_folder_rename(monkeypatch)
    with pytest.raises(UserError, match="cannot rename a folder") as caught:
        prepare(tiny)
    assert "data.path" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_link_that_leads_nowhere_is_named_with_its_target(tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(tmp_path / "scratch" / "mine")
    with pytest.raises(DataError, match=r"is a link to .*mine, which does not exist") as caught:
        prepare(tiny)
    assert f"data.path={tmp_path / 'scratch' / 'mine'}" in caught.value.fix


def test_empty_folder_at_the_data_path_is_named(tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="exists already and is empty"):
        prepare(tiny)


def test_dataset_below_a_linked_folder_is_prepared(tiny: Recipe, tmp_path: Path) -> None:
    expected = prepare(tiny).digest
    (tmp_path / "scratch").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "scratch")
    assert prepare(tiny_recipe(tmp_path, data={"path": str(tmp_path / "linked" / "mine")})).digest == expected
    assert (tmp_path / "scratch" / "mine" / "manifest.json").exists()
