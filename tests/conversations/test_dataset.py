"""Conversations become a dataset: packed rows, a mask for each shard, whole conversations held out, bad rows named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from regpt.base.errors import DataError, UserError
from regpt.conversations.messages import messages_of
from regpt.corpus.progress import NoPreparationProgress
from regpt.data.import_shards import verify
from regpt.data.loss_masks import mask_path
from regpt.data.shards import Manifest, TokenWindows, read_manifest
from regpt.inspection.dataset import describe
from regpt.preparation.dataset import open_or_prepare, prepare
from regpt.recipe.recipe import Recipe
from regpt.tokenization.chat_template import encode_conversation
from regpt.tokenization.chat_tokens import ChatTokenizer
from regpt.tokenization.opening import tokenizer_in
from tests.helpers.conversations import chat, chat_recipe, sums, write_lines


class Notes(NoPreparationProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = chat_recipe(tmp_path_factory.mktemp("chats"), data={"shard_tokens": 2_000})
    prepare(recipe)
    return recipe


def conversations_in(recipe: Recipe, split: str) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """Return the tokens and the marks of each conversation in the rows of a split, from the files."""
    directory = recipe.data.directory
    found = []
    for shard in read_manifest(directory).of_split(split):  # type: ignore[arg-type]
        tokens, mask = np.load(directory / shard.name), np.load(mask_path(directory / shard.name))
        starts = np.flatnonzero(tokens == 50_256)
        for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
            if stop - start > 1:  # not padding
                found.append((tuple(tokens[start:stop].tolist()), tuple(mask[start:stop].astype(bool).tolist())))
    return found


def test_both_splits_hold_every_conversation_once_with_its_mask(recipe: Recipe) -> None:
    tokenizer = tokenizer_in(recipe.data.directory, read_manifest(recipe.data.directory).tokenizer)
    assert isinstance(tokenizer, ChatTokenizer)
    encoded = [encode_conversation(messages_of(turns), tokenizer) for turns in sums(200)]
    expected = sorted((tuple(one.tokens.tolist()), tuple(one.counted.tolist())) for one in encoded)
    held_out, training = conversations_in(recipe, "val"), conversations_in(recipe, "train")
    assert sorted(held_out + training) == expected
    assert not set(held_out) & set(training)
    assert 400 <= sum(len(tokens) for tokens, _ in held_out) < 400 + 30


def test_windows_are_the_rows_and_count_what_the_masks_say(recipe: Recipe) -> None:
    manifest = read_manifest(recipe.data.directory)
    windows = TokenWindows(recipe.data.directory, manifest, "train", 64)
    assert len(windows) * 64 + len(manifest.of_split("train")) == manifest.tokens("train")
    numbers = np.arange(len(windows))
    tokens, counted = windows.rows(numbers), windows.counted(numbers)
    assert (tokens[:, 0] == 50_256).all() and counted is not None and counted.any(axis=1).all()
    assert not counted[:, -1].any()  # the first token of the next row is no target of this one
    answers = [token for one in conversations_in(recipe, "train") for token, counts in zip(*one, strict=True) if counts]
    assert sorted(tokens[:, 1:][counted].tolist()) == sorted(answers)
    statistics = manifest.statistics
    val = TokenWindows(recipe.data.directory, manifest, "val", 64)
    in_validation = val.counted(range(len(val)))
    assert in_validation is not None
    assert counted.sum() + in_validation.sum() == statistics["counted_tokens"] == 1_000
    assert statistics["tokens"] + statistics["padding_tokens"] == 64 * (len(windows) + len(val))


def test_equal_conversations_are_on_one_side(tmp_path: Path) -> None:
    rows = [{"messages": turns} for turns in sums(40) * 3]
    write_lines(tmp_path / "chats.jsonl", rows)
    recipe = chat_recipe(tmp_path)
    prepare(recipe)
    held_out, training = conversations_in(recipe, "val"), conversations_in(recipe, "train")
    assert len(held_out) + len(training) == 120 and not set(held_out) & set(training)


def test_sharegpt_and_parquet_give_the_same_dataset(recipe: Recipe, tmp_path: Path) -> None:
    names = {"user": "human", "assistant": "gpt"}
    sharegpt = [
        {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]}
        for turns in sums(200)
    ]
    lines = write_lines(tmp_path / "sharegpt.jsonl", sharegpt)
    parquet = tmp_path / "messages.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"messages": sums(200), "id": range(200)}), parquet)
    expected = read_manifest(recipe.data.directory).digest
    for source in (lines, parquet):
        other = replace(recipe.data, source=str(source), path=str(tmp_path / f"{source.stem}-data"))
        assert prepare(replace(recipe, data=other)).digest == expected


def test_digest_covers_the_masks_and_verification_reads_them(recipe: Recipe, tmp_path: Path) -> None:
    manifest = read_manifest(recipe.data.directory)
    shard = replace(manifest.shards[0], mask_sha256="0" * 64)
    assert replace(manifest, shards=(shard, *manifest.shards[1:])).digest != manifest.digest
    assert replace(manifest, row_tokens=32).digest != manifest.digest
    assert list(verify(recipe.data.directory)) == []
    path = mask_path(recipe.data.directory / manifest.shards[0].name)
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + b"\1")
        assert [path.name in fault for fault in verify(recipe.data.directory)] == [True]
        path.write_bytes(content[:-1])
        with pytest.raises(DataError, match=r"val_000000\.mask\.npy"):
            TokenWindows(recipe.data.directory, manifest, "val", 64)
    finally:
        path.write_bytes(content)


BAD_ROWS = [{"messages": chat("Hi", "Hello")}, {"text": "no chat"}, {"messages": chat("Hi")}, {"messages": "?"}]


def with_bad_rows(folder: Path, **data: object) -> Recipe:
    write_lines(folder / "chats.jsonl", [*({"messages": turns} for turns in sums(100)), *BAD_ROWS])
    return chat_recipe(folder, data=data)


def test_bad_row_is_refused_with_file_line_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"chats\.jsonl, line 102: no list of messages") as error:
        prepare(with_bad_rows(tmp_path))
    assert "data.bad_rows=skip" in error.value.fix
    assert not list(tmp_path.glob("*data*")) and not list(tmp_path.glob(".*preparing"))


def test_skipped_rows_are_named_and_counted(tmp_path: Path) -> None:
    notes = Notes()
    manifest = prepare(with_bad_rows(tmp_path, bad_rows="skip"), notes)
    assert manifest.statistics["documents"] == 101
    assert manifest.statistics["refused"] == {"no list of messages": 2, "no message of the assistant": 1}
    named = [note for note in notes.notes if "line" in note]
    assert [("line 102" in note, "line 103" in note, "line 104" in note) for note in named] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_broken_json_is_named_by_its_line(tmp_path: Path) -> None:
    recipe = chat_recipe(tmp_path)
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write('\n{"messages": [\n')
    with pytest.raises(DataError, match=r"line 202: not JSON"):
        prepare(recipe)


def test_long_conversation_is_cut_and_one_without_an_early_answer_refused(tmp_path: Path) -> None:
    rows = [*sums(100), chat("Hi", "word " * 100), chat("word " * 100, "Hi")]
    write_lines(tmp_path / "chats.jsonl", rows)
    notes = Notes()
    manifest = prepare(chat_recipe(tmp_path, data={"bad_rows": "skip"}), notes)
    assert manifest.statistics["cut"] == 1 and manifest.statistics["longest_document_tokens"] == 64
    assert list(manifest.statistics["refused"].values()) == [1]
    assert any("64" in note and "1 of 101" in note for note in notes.notes)


def test_text_is_refused_as_conversations_with_its_columns(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "id": [1]}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("Hello")
    recipe = chat_recipe(tmp_path)
    for name, words in (("a.parquet", "text, id"), ("a.txt", "no conversations")):
        with pytest.raises(DataError, match=words) as error:
            prepare(replace(recipe, data=replace(recipe.data, source=str(tmp_path / name))))
        assert name in error.value.problem and "data.format=text" in error.value.fix


def test_validation_that_takes_all_conversations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"200 different conversations") as error:
        prepare(chat_recipe(tmp_path, data={"validation_tokens": 10_000}))
    assert "data.validation_tokens=440" in error.value.fix


def test_dataset_is_opened_again_and_refused_for_other_rows_or_as_text(recipe: Recipe) -> None:
    assert prepare(recipe).digest == open_or_prepare(recipe).digest
    with pytest.raises(DataError, match=r"rows of 64 tokens; model\.block_size = 32") as error:
        prepare(replace(recipe, model=replace(recipe.model, block_size=32)))
    assert "model.block_size=64" in error.value.fix
    with pytest.raises(UserError, match=r"data\.format = 'conversations'"):
        open_or_prepare(replace(recipe, data=replace(recipe.data, format="text")))


def test_description_names_the_mask_and_the_rows(recipe: Recipe) -> None:
    lines = list(describe(recipe.data.directory, 1024, 200))
    assert any("1,000 tokens count; rows of 64" in line for line in lines)
    assert any("windows of 64" in line for line in lines)


def test_manifest_of_text_is_what_it_was(tmp_path: Path, tiny: Recipe) -> None:
    prepare(tiny)
    text = (tiny.data.directory / "manifest.json").read_text()
    assert "row_tokens" not in text and "mask_sha256" not in text
    assert isinstance(read_manifest(tiny.data.directory), Manifest)
