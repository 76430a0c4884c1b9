"""Datasets of other tokenizers than GPT-2's: their shards, their split, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regpt.base.errors import DONE, DataError, RecipeError, UserError
from regpt.cli.main import main
from regpt.corpus import chunks
from regpt.corpus.long_texts import within_document
from regpt.data.import_shards import verify
from regpt.data.shards import Manifest, TokenWindows, read_manifest
from regpt.data.token_statistics import statistics_of
from regpt.preparation.cluster import piece_identity
from regpt.preparation.dataset import open_or_prepare, open_source, prepare
from regpt.preparation.existing import with_fixed_settings
from regpt.recipe.recipe import Recipe
from regpt.tokenization.opening import open_tokenizer, tokenizer_in
from tests.conftest import tiny_recipe
from tests.helpers.tokenizers import WIDE, write_bytes_tokenizer
from tests.preparation.test_job import StopAfter

pytest.importorskip("tokenizers")

RecipeOf = Callable[..., Recipe]


@pytest.fixture
def recipe_of(tmp_path: Path, real_text: str) -> RecipeOf:
    """Return a function that makes the tiny recipe with 80 documents, for a tokenizer and with other settings."""
    (tmp_path / "texts").mkdir()
    write_bytes_tokenizer(tmp_path / "bytes" / "tokenizer.json")
    write_bytes_tokenizer(tmp_path / "wide" / "tokenizer.json", WIDE)
    for number in range(80):
        (tmp_path / "texts" / f"{number:02}.txt").write_text(real_text[900 * number : 900 * (number + 1)])

    def make(choice: str, path: str = "data", **data: Any) -> Recipe:
        asked = choice if choice in ("gpt2", "cl100k") else str(tmp_path / choice)
        tables = {
            "path": str(tmp_path / path),
            "tokenizer": asked,
            "validation_tokens": 2_000,
            "validation": "documents",
            **data,
        }
        return tiny_recipe(tmp_path, data=tables, model={"vocab_size": 0})

    return make


def tokens_of(folder: Path, manifest: Manifest) -> list[int]:
    return np.concatenate([np.load(folder / shard.name) for shard in manifest.shards]).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("choice", "first", "dtype"), [("bytes", 0, "uint16"), ("wide", WIDE, "uint32")])
def test_dataset_holds_the_ids_of_its_tokenizer(
    recipe_of: RecipeOf, tmp_path: Path, capsys: pytest.CaptureFixture[str], choice: str, first: int, dtype: str
) -> None:
    recipe = recipe_of(choice, validation="first_tokens")
    manifest, folder = prepare(recipe), tmp_path / "data"
    texts = [path.read_bytes() for path in sorted((tmp_path / "texts").iterdir())]
    assert tokens_of(folder, manifest) == [id for text in texts for id in (first + 256, *(first + b for b in text))]
    assert {np.load(folder / shard.name).dtype.name for shard in manifest.shards} == {dtype}
    assert manifest.tokenizer == open_tokenizer(str(tmp_path / choice)).record == read_manifest(folder).tokenizer
    assert manifest.made_with["tokenizer_backend"] == "tokenizers"
    assert sum(shard.documents for shard in manifest.shards) == manifest.statistics["documents"] == 80
    assert tokenizer_in(folder, manifest.tokenizer).decode(tokens_of(folder, manifest)[:6]) == texts[0][:5].decode()
    windows = TokenWindows(folder, manifest, "train", 32)
    assert windows.rows([1])[0].tolist() == np.load(folder / "train_000000.npy")[32:65].tolist()
    statistics = statistics_of(folder, manifest)
    assert statistics and 0.99 < statistics.train.bytes_per_token < 1 and statistics.train.median_document == 901
    assert list(verify(folder)) == []
    assert main(["data", "show", str(folder), "--window", "0", "--split", "val", "--text", "--block-size", "9"]) == DONE
    assert f"<|endoftext|>{texts[0][:9].decode()}" in capsys.readouterr().out
    assert main(["data", "show", str(folder)]) == DONE
    assert f"{first + 257:,} tokens, {dtype}" in capsys.readouterr().out


def test_token_beyond_the_vocabulary_is_refused_by_name(recipe_of: RecipeOf, tmp_path: Path) -> None:
    manifest, folder = prepare(recipe_of("wide")), tmp_path / "data"
    shard = np.load(folder / "train_000000.npy")
    shard[5] = WIDE + 257
    np.save(folder / "train_000000.npy", shard)
    with pytest.raises(DataError, match=r"train_000000\.npy: token 70257 is outside tokenizer.json's 70,257"):
        TokenWindows(folder, manifest, "train", 32).rows([0])
    np.save(folder / "train_000000.npy", shard.astype(np.uint16))
    with pytest.raises(DataError, match=r"train_000000\.npy: holds uint16 .* uint32"):
        TokenWindows(folder, manifest, "train", 32)


def held_out_texts(folder: Path, manifest: Manifest) -> set[str]:
    """Return the beginning of each validation document."""
    end, own = manifest.vocabulary.end_of_text, tokenizer_in(folder, manifest.tokenizer)
    tokens = np.concatenate([np.load(folder / shard.name) for shard in manifest.of_split("val")])
    return {own.decode(part[1:])[:60] for part in np.split(tokens, np.flatnonzero(tokens == end)[1:]) if len(part) > 60}


def test_tokenizers_hold_out_the_same_documents(recipe_of: RecipeOf, tmp_path: Path) -> None:
    sizes = {"gpt2": 1_000, "bytes": 2_400, "wide": 2_400, "cl100k": 1_000}
    made = {name: prepare(recipe_of(name, f"of-{name}", validation_tokens=size)) for name, size in sizes.items()}
    found = {name: held_out_texts(tmp_path / f"of-{name}", manifest) for name, manifest in made.items()}
    assert found["bytes"] == found["wide"] and len(found["gpt2"]) >= 3
    for one in found.values():  # sets of the lowest hashes: the smaller one is in the larger one
        assert one <= found["gpt2"] or found["gpt2"] <= one


@pytest.mark.slow
def test_other_tokenizer_works_in_several_processes(recipe_of: RecipeOf, tmp_path: Path) -> None:
    one, two = prepare(recipe_of("wide", "one", workers=1)), prepare(recipe_of("wide", "two", workers=2))
    assert one.digest == two.digest
    assert tokens_of(tmp_path / "one", one) == tokens_of(tmp_path / "two", two)


def test_stopped_preparation_refuses_another_tokenizer(recipe_of: RecipeOf, tmp_path: Path) -> None:
    whole = prepare(recipe_of("bytes", "whole"))
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe_of("bytes"), StopAfter(9))
    with pytest.raises(DataError, match=r"\.data\.preparing.*tokenizer\.json.*data\.tokenizer = 'gpt2'") as caught:
        prepare(recipe_of("gpt2"))
    assert "delete that folder" in caught.value.fix
    assert prepare(recipe_of("bytes")).digest == whole.digest


def test_existing_dataset_refuses_another_tokenizer(recipe_of: RecipeOf, tmp_path: Path) -> None:
    manifest = prepare(recipe_of("bytes"))
    with pytest.raises(UserError, match=r"data\.tokenizer = '.*data/tokenizer'.*asks for data\.tokenizer = 'gpt2'"):
        prepare(recipe_of("gpt2"))
    (tmp_path / "bytes").rename(tmp_path / "moved")
    for same in ("moved", "moved/tokenizer.json", "data/tokenizer"):
        assert prepare(recipe_of(same)).digest == manifest.digest
    assert open_or_prepare(recipe_of("data/tokenizer")).digest == manifest.digest
    unaware = tiny_recipe(tmp_path)
    assert with_fixed_settings(unaware, manifest).data.tokenizer == str(tmp_path / "data" / "tokenizer")


def test_too_few_rows_for_the_tokenizer_are_refused(recipe_of: RecipeOf, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.vocab_size = 128 is smaller.*257.*model\.vocab_size=320"):
        prepare(tiny_recipe(tmp_path, data={"tokenizer": str(tmp_path / "bytes")}, model={"vocab_size": 128}))
    assert not (tmp_path / ".data.preparing").exists()
    recipe = recipe_of("bytes")
    assert recipe.model.vocab_size == 320
    prepare(recipe)
    assert main(["train", "demo-modern", f"data.path={tmp_path / 'data'}", "model.vocab_size=192"]) != DONE


def test_gigatoken_is_refused_for_a_tokenizer_file(recipe_of: RecipeOf) -> None:
    with pytest.raises(DataError, match=r"gigatoken.*bytes"):
        prepare(recipe_of("bytes", tokenizer_backend="gigatoken"))


def test_file_changed_during_a_preparation_is_refused(
    recipe_of: RecipeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1_000)
    recipe = recipe_of("bytes")

    class Changing(StopAfter):
        def advanced(self, size: int, tokens: int, text_bytes: int) -> None:
            write_bytes_tokenizer(tmp_path / "bytes" / "tokenizer.json", end_name="<other>")

    with pytest.raises(DataError, match="changed while it was in use"):
        prepare(recipe, Changing(10**9))


def test_encoded_files_of_a_cluster_belong_to_a_tokenizer(recipe_of: RecipeOf) -> None:
    recipes = [recipe_of(name) for name in ("gpt2", "bytes", "wide", "cl100k")]
    part = open_source(recipes[0]).parts[0]
    assert len({piece_identity(part, recipe) for recipe in recipes}) == 4


def test_long_text_for_other_tokenizers_is_cut_behind_words() -> None:
    text = b"one two.\n\nthree!\n"
    assert within_document(text + b"   ", "") == len(text) - 1
    assert within_document(text + b"   ", "", behind_words=True) == len(b"one")
    cl100k = open_tokenizer("cl100k")
    whole, cut = cl100k.encode(text.decode()).tolist(), len(b"one two.")
    apart = [*cl100k.encode(text[:cut].decode()), *cl100k.encode(text[cut:].decode())]
    assert apart != whole, "GPT-2's place to cut would change the tokens"
    assert [*cl100k.encode("one"), *cl100k.encode(text[3:].decode())] == whole


@pytest.mark.slow
def test_cl100k_is_cut_as_one_text(recipe_of: RecipeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "texts").iterdir():
        path.unlink()
    text = "Some words here. And more of them!\nA line (with marks), 12 of them.\n\n" * 200
    (tmp_path / "texts" / "long.txt").write_text(text)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 999)
    manifest = prepare(recipe_of("cl100k", validation="first_tokens", validation_tokens=500))
    assert tokens_of(tmp_path / "data", manifest) == [100_257, *open_tokenizer("cl100k").encode(text)]


@pytest.mark.slow
def test_duplicates_are_found_in_uint32_shards(
    recipe_of: RecipeOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        copy = (tmp_path / "texts" / f"{number:02}.txt").read_text()
        (tmp_path / "texts" / f"9{number}.txt").write_text(copy)
    prepare(recipe_of("wide", validation="first_tokens", validation_tokens=5 * 901))
    assert main(["data", "show", str(tmp_path / "data"), "--duplicates"]) == DONE
    record = json.loads((tmp_path / "data" / "duplicates.json").read_text())
    assert (record["validation_documents"], record["exact_documents"]) == (5, 5)
