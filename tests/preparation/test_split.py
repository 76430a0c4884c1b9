"""Validation by whole documents: a sample of the whole text, no document on both sides, the same bytes always."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from regpt.base.errors import DataError, UserError
from regpt.corpus import chunks
from regpt.corpus.progress import NoPreparationProgress
from regpt.data import tokenizer
from regpt.data.shards import Manifest, read_manifest
from regpt.data.validation_split import Fallback, SplitRule, SplitWarning, describe_warning
from regpt.preparation import split
from regpt.preparation.dataset import open_or_prepare, prepare
from regpt.recipe.recipe import Recipe
from tests.conftest import tiny_recipe


def text_of(number: int, words: int = 60) -> str:
    """Return a document that starts with its number, such as a chronicle does with the year."""
    choice = random.Random(number)
    return f"{number} " + " ".join(choice.choice(["one", "two", "three", "four", "five", "six"]) for _ in range(words))


def recipe_of(folder: Path, texts: list[str], **data: object) -> Recipe:
    (folder / "texts").mkdir(exist_ok=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts" / "a.jsonl").write_text(lines, encoding="utf-8")
    settings = {"validation": "auto", "validation_tokens": 400, "shard_tokens": 3_000, **data}
    return tiny_recipe(folder, data={"source": str(folder / "texts"), **settings})


def documents_of(folder: Path, name: str) -> list[list[int]]:
    """Return the documents of a split as lists of token ids, without the end token."""
    tokens = np.concatenate([np.load(path) for path in sorted(folder.glob(f"{name}_*.npy"))])
    assert tokens[0] == tokenizer.END_OF_TEXT
    starts = np.flatnonzero(tokens == tokenizer.END_OF_TEXT)
    return [piece[1:].tolist() for piece in np.split(tokens, starts[1:])]


def numbers(folder: Path, name: str) -> list[int]:
    return [int(tokenizer.decode(np.array(ids)).split()[0]) for ids in documents_of(folder, name) if len(ids) > 3]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "preparation.json"}


def assert_no_document_on_both_sides(folder: Path) -> None:
    training = [tuple(ids) for ids in documents_of(folder, "train")]
    for ids in documents_of(folder, "val"):
        assert not any(other[: len(ids)] == tuple(ids) for other in training if len(ids) > 3)


def test_validation_spans_a_chronological_text(tmp_path: Path) -> None:
    texts = [text_of(1700 + number) for number in range(300)]
    manifest = prepare(recipe_of(tmp_path, texts, validation_tokens=2_000))
    years = numbers(tmp_path / "data", "val")
    assert manifest.validation.rule is SplitRule.DOCUMENTS and manifest.tokens("val") == 2_000
    assert min(years) < 1730 and max(years) > 1970 and len(years) >= 30
    assert years != sorted(years)  # a part of the split is a sample too
    assert manifest.validation.documents == len(documents_of(tmp_path / "data", "val"))


def test_training_keeps_the_order_of_the_text(tmp_path: Path) -> None:
    texts = [text_of(1700 + number) for number in range(300)]
    manifest = prepare(recipe_of(tmp_path, texts))
    held_out = sorted({*range(1700, 2000)} - {*numbers(tmp_path / "data", "train")})
    assert numbers(tmp_path / "data", "train") == [year for year in range(1700, 2000) if year not in held_out]
    assert manifest.validation.held_out_documents == len(held_out)
    assert set(numbers(tmp_path / "data", "val")) <= set(held_out)
    assert manifest.tokens("train") + manifest.validation.held_out_tokens == manifest.statistics["tokens"]
    assert manifest.validation.text_tokens == manifest.statistics["tokens"]


def test_every_document_twice_is_on_one_side(tmp_path: Path) -> None:
    texts = [text_of(1000 + number) for number in range(100)]
    manifest = prepare(recipe_of(tmp_path, texts + texts[::-1]))
    assert_no_document_on_both_sides(tmp_path / "data")
    assert len(numbers(tmp_path / "data", "val")) == len(set(numbers(tmp_path / "data", "val")))
    assert manifest.validation.held_out_documents == 2 * manifest.validation.documents


def test_giant_document_is_not_held_out(tmp_path: Path) -> None:
    texts = [text_of(1000 + number) for number in range(200)]
    giants = ((number, text_of(number, words=4_000)) for number in range(5_000, 6_000))
    number, giant = next((n, text) for n, text in giants if hash_of(tokenizer.encode(text)) < 2**64 // 100)
    texts.insert(70, giant)  # its hash is low enough
    manifest = prepare(recipe_of(tmp_path, texts))
    assert number in numbers(tmp_path / "data", "train")
    assert manifest.validation.rule is SplitRule.DOCUMENTS and manifest.validation.largest_document <= 400 // 16


def test_long_documents_contribute_only_their_start(tmp_path: Path) -> None:
    texts = [text_of(1000 + number, words=500) for number in range(200)]
    manifest = prepare(recipe_of(tmp_path, texts))
    assert manifest.validation.documents >= 16 and manifest.validation.largest_document == 400 // 16
    assert manifest.validation.unused_tokens > 16 * 400
    assert_no_document_on_both_sides(tmp_path / "data")


def test_few_documents_give_a_warning(tmp_path: Path) -> None:
    split_of_30 = prepare(recipe_of(tmp_path, [text_of(1000 + number, words=300) for number in range(30)])).validation
    assert split_of_30.rule is SplitRule.DOCUMENTS and 3 <= split_of_30.documents < 16
    assert SplitWarning.FEW_DOCUMENTS in split_of_30.warnings()


@pytest.mark.parametrize("rule", ["documents", "first_tokens"])
@pytest.mark.parametrize(("share", "warns"), [(0.55, True), (0.15, False)])
def test_validation_of_a_large_part_of_the_text_gives_a_warning(
    tmp_path: Path, rule: str, share: float, warns: bool
) -> None:
    texts = [text_of(number) for number in range(100)]
    total = prepare(recipe_of(tmp_path, texts)).statistics["tokens"]
    wanted = round(share * total)
    found = prepare(recipe_of(tmp_path, texts, validation=rule, validation_tokens=wanted, path=str(tmp_path / "new")))
    assert (found.validation.validation_tokens, found.validation.text_tokens) == (wanted, total)
    assert (SplitWarning.LARGE_VALIDATION in found.validation.warnings()) is warns
    said = describe_warning(found.validation, SplitWarning.LARGE_VALIDATION)
    assert f"{wanted:,} of" in said and f"{total:,} tokens" in said and f"such as {total // 10}" in said


@pytest.mark.parametrize(
    ("texts", "fallback"),
    [
        ([text_of(1, words=3_000)], Fallback.FEW_DOCUMENTS),
        ([text_of(number, words=400) for number in range(9)], Fallback.FEW_DOCUMENTS),
        ([text_of(1, words=9_000), *(text_of(number, words=5) for number in range(20))], Fallback.LONG_DOCUMENTS),
    ],
    ids=["one", "nine", "one giant"],
)
def test_text_without_enough_documents_falls_back(tmp_path: Path, texts: list[str], fallback: Fallback) -> None:
    manifest = prepare(recipe_of(tmp_path, texts))
    assert (manifest.validation.rule, manifest.validation.fallback) == (SplitRule.FIRST_TOKENS, fallback)
    assert list(manifest.validation.warnings()) == [SplitWarning.FELL_BACK]
    prepare(recipe_of(tmp_path, texts, validation="first_tokens", path=str(tmp_path / "first")))
    written = contents(tmp_path / "first")
    assert {name: data for name, data in contents(tmp_path / "data").items() if name != "manifest.json"} == {
        name: data for name, data in written.items() if name != "manifest.json"
    }
    with pytest.raises(DataError, match=r"data\.validation = 'documents': impossible.*400"):
        prepare(recipe_of(tmp_path, texts, validation="documents", path=str(tmp_path / "other")))


def test_empty_documents_do_not_change_the_split(tmp_path: Path) -> None:
    texts = [text_of(1000 + number) for number in range(100)]
    without = prepare(recipe_of(tmp_path, texts))
    texts[50:50] = ["", "  ", ""]
    manifest = prepare(recipe_of(tmp_path, texts, path=str(tmp_path / "with")))
    assert manifest.statistics["refused"] == {"empty": 3} and manifest.validation == without.validation
    assert manifest.digest == without.digest


def test_another_document_moves_no_document_to_the_other_side(tmp_path: Path) -> None:
    """The hash of a document decides; only the threshold depends on the others."""
    texts = [text_of(1000 + number) for number in range(300)]
    prepare(recipe_of(tmp_path, texts))
    prepare(recipe_of(tmp_path, [text_of(7), *texts], path=str(tmp_path / "more")))
    one, other = (set(numbers(tmp_path / name, "val")) - {7} for name in ("data", "more"))
    assert len(one ^ other) <= 1


def test_documents_rule_gives_the_same_bytes_for_any_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text_of(1000 + number, words=20 + number) for number in range(300)]
    prepare(recipe_of(tmp_path, texts, workers=1))
    whole = contents(tmp_path / "data")
    for name, value in (("a", 7), ("b", 1_000)):
        monkeypatch.setattr(split, "TOKENS_PER_READ", value)
        prepare(recipe_of(tmp_path, texts, workers=1, path=str(tmp_path / name)))
        assert contents(tmp_path / name) == whole
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 9_000)
    prepare(recipe_of(tmp_path, texts, workers=2, path=str(tmp_path / "c")))
    assert contents(tmp_path / "c") == whole


def test_candidates_are_the_lowest_hashes_in_bounded_memory(tmp_path: Path) -> None:
    texts = [text_of(10_000 + number, words=2) for number in range(9_000)]
    manifest = prepare(recipe_of(tmp_path, texts, validation_tokens=1_000, validation="documents"))
    threshold = int(manifest.validation.threshold, 16)
    hashes = [hash_of(ids) for ids in documents_of(tmp_path / "data", "train")]
    assert all(number >= threshold for number in hashes)
    of_validation = [hash_of(ids) for ids in documents_of(tmp_path / "data", "val")[:-1]]
    assert of_validation == sorted(of_validation) and of_validation[-1] < threshold


def hash_of(ids: Sequence[int]) -> int:
    return int.from_bytes(blake2b(np.array(ids, dtype="<u2").tobytes(), digest_size=8).digest(), "big")


# Settings


@pytest.mark.parametrize(
    ("source", "setting", "rule"),
    [
        ("texts", "auto", "documents"),
        ("stdlib", "auto", "documents"),
        ("hub:a/b", "auto", "first_tokens"),
        ("hub:a/b", "documents", "documents"),
        ("texts", "first_tokens", "first_tokens"),
    ],
)
def test_auto_rule_follows_the_source(tmp_path: Path, source: str, setting: str, rule: str) -> None:
    assert tiny_recipe(tmp_path, data={"source": source, "validation": setting}).data.split_rule == rule


@pytest.mark.parametrize(("made", "asked"), [("documents", "first_tokens"), ("first_tokens", "documents")])
def test_dataset_of_another_rule_is_refused(tmp_path: Path, made: str, asked: str) -> None:
    texts = [text_of(1000 + number) for number in range(100)]
    recipe = recipe_of(tmp_path, texts, validation=made)
    manifest = prepare(recipe)
    with pytest.raises(UserError, match=f"data.validation = '{made}'.*data.validation = '{asked}'"):
        open_or_prepare(replace(recipe, data=replace(recipe.data, validation=asked)))  # type: ignore[arg-type]
    assert open_or_prepare(replace(recipe, data=replace(recipe.data, validation="auto"))) == manifest


def without_record(values: dict[str, object]) -> None:
    del values["validation"]


def of_an_import(values: dict[str, object]) -> None:
    del values["validation"]
    values["source"]["imported"] = True  # type: ignore[index]


@pytest.mark.parametrize(("edit", "rule"), [(without_record, SplitRule.FIRST_TOKENS), (of_an_import, SplitRule.FILES)])
def test_manifest_of_an_earlier_version_has_its_rule(
    tmp_path: Path, edit: Callable[[dict[str, object]], None], rule: SplitRule
) -> None:
    made: Manifest = prepare(recipe_of(tmp_path, [text_of(number) for number in range(100)], validation="first_tokens"))
    path = tmp_path / "data" / "manifest.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    assert read_manifest(tmp_path / "data").validation.rule is rule
    assert read_manifest(tmp_path / "data").digest == made.digest


@pytest.mark.parametrize("value", [3, {}, {"rule": "other", "fallback": None}, {"rule": "files", "fallback": "x"}])
def test_manifest_with_a_damaged_split_record_is_refused(tmp_path: Path, value: object) -> None:
    prepare(recipe_of(tmp_path, [text_of(number) for number in range(100)]))
    path = tmp_path / "data" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "validation": value}))
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path / "data")


class DivisionProgress(NoPreparationProgress):
    """Remembers what the division reports."""

    def __init__(self) -> None:
        self.reported: list[tuple[int, int]] = []

    def splitting(self, done: int, total: int) -> None:
        self.reported.append((done, total))


def test_division_reports_one_rising_share_of_both_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "TOKENS_PER_READ", 1_000)
    progress = DivisionProgress()
    manifest = prepare(recipe_of(tmp_path, [text_of(1000 + number) for number in range(300)]), progress)
    tokens, done = manifest.statistics["tokens"], [one for one, _ in progress.reported]
    assert {total for _, total in progress.reported} == {2 * tokens}
    assert done[0] == 0 and done == sorted(done)
    assert 0.4 * tokens < max(one for one in done if one < tokens) and 1.8 * tokens < done[-1] <= 2 * tokens
