"""A GGUF file holds the model and its tokenizer as llama.cpp reads them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regpt.base.errors import DONE, USAGE, UserError
from regpt.cli.main import main
from regpt.data import tokenizer
from regpt.data.tokenizer import encode
from regpt.export import gguf_file
from regpt.export.directory import ExportOptions
from regpt.export.gguf_file import export_gguf, read_gguf, tokenizer_json
from regpt.export.gguf_vocabulary import TokenType, gguf_vocabulary
from regpt.export.opened import export_file
from regpt.export.precision import Precision
from regpt.export.read_back import ReadBackError
from regpt.interop.open_model import LoadedModel, open_model
from regpt.model.rotary import rotary_table
from tests.interop.test_pretrained import saved, write_tokenizer
from tests.model.test_gpt import SMALL, model_of

gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("hf")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of both classes with a vocabulary of 257 tokens, which gguf's reader reads in no time."""
    root = tmp_path_factory.mktemp("gguf")
    found = {
        "gpt2": saved(root / "gpt2", "gpt2", vocab_size=257, n_inner=96, bos_token_id=256, eos_token_id=256)[0],
        "llama": saved(root / "llama", "llama", head_dim=12)[0],
        "qwen2": saved(root / "qwen2", "qwen2")[0],
        "tied": saved(root / "tied", "llama", num_key_value_heads=4, tie_word_embeddings=True)[0],
    }
    for folder in found.values():
        write_tokenizer(folder)
    return found


def opened(folders: dict[str, Path], kind: str) -> LoadedModel:
    return open_model(folders[kind], folders[kind].parent)


def fields_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "tied"])
@pytest.mark.parametrize("precision", list(Precision))
def test_gguf_tensors_have_llama_cpps_names_shapes_and_types(
    folders: dict[str, Path], kind: str, precision: Precision, tmp_path: Path
) -> None:
    model = opened(folders, kind)
    export_file(model, tmp_path / "m.gguf", ExportOptions(precision=precision))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    shared = {"attn_norm.weight", "attn_output.weight", "ffn_norm.weight", "ffn_up.weight", "ffn_down.weight"}
    block = {name.removeprefix("blk.1.") for name in tensors if name.startswith("blk.1.")}
    if kind == "gpt2":
        biases = {f"{name.rpartition('.')[0]}.bias" for name in shared}
        assert block == {*shared, *biases, "attn_qkv.weight", "attn_qkv.bias"}
        assert tensors.keys() >= {"token_embd.weight", "position_embd.weight", "output_norm.bias"}
        assert list(tensors["blk.0.ffn_up.weight"].shape) == [32, 96]  # (in, out): GGUF lists the last dimension first
    else:
        assert block == {*shared, "attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight"}
    assert ("output.weight" in tensors) == (kind == "llama")
    expected = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[precision]
    for name, tensor in tensors.items():
        is_rounded = len(tensor.shape) > 1 and not name.startswith("position")
        assert tensor.tensor_type.name == (expected if is_rounded else "F32"), name


def test_gguf_metadata_describes_the_shape_of_the_model(folders: dict[str, Path], tmp_path: Path) -> None:
    model = opened(folders, "llama")
    export_file(model, tmp_path / "llama.gguf", ExportOptions(precision=Precision.BFLOAT16))
    found = fields_of(tmp_path / "llama.gguf")
    assert found["general.architecture"] == "llama" and found["general.file_type"] == 32
    assert {name.removeprefix("llama."): value for name, value in found.items() if name.startswith("llama.")} == {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "vocab_size": 300,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "attention.key_length": 12,
        "attention.value_length": 12,
        "rope.freq_base": 5000.0,
        "rope.dimension_count": 12,
    }
    export_file(opened(folders, "gpt2"), tmp_path / "gpt2.gguf", ExportOptions())
    classic = fields_of(tmp_path / "gpt2.gguf")
    assert classic["general.architecture"] == "gpt2" and classic["general.file_type"] == 0
    assert classic["gpt2.feed_forward_length"] == 96  # the converter of llama.cpp writes 4 n_embd
    assert classic["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)


def rotated(heads: torch.Tensor, angles: torch.Tensor, in_pairs: bool) -> torch.Tensor:
    """Rotate heads (T, H, D) by angles (T, D/2): elements (2i, 2i + 1) as llama.cpp does, or (i, i + D/2)."""
    one, other = (heads[..., 0::2], heads[..., 1::2]) if in_pairs else heads.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack([one * cos - other * sin, other * cos + one * sin])


@pytest.mark.parametrize(("kind", "width"), [("llama", 12), ("qwen2", 8)])
def test_gguf_queries_and_keys_rotate_in_pairs(folders: dict[str, Path], kind: str, width: int, tmp_path: Path) -> None:
    """Compute queries and keys from the file's matrices and biases with llama.cpp's rotation; expect our own."""
    model = opened(folders, kind)
    export_file(model, tmp_path / "m.gguf", ExportOptions())
    tensors = {
        tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors
    }
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    angles = torch.outer(torch.arange(9.0), 5000.0 ** (-torch.arange(0, width, 2) / width))
    theirs = gguf_file.exported_weights(model.model, 300, Precision.FLOAT32)
    for theirs_name, name in (("q_proj", "attn_q"), ("k_proj", "attn_k")):
        weight, bias = (theirs.get(f"model.layers.1.self_attn.{theirs_name}.{part}") for part in ("weight", "bias"))
        file, file_bias = (tensors.get(f"blk.1.{name}.{part}") for part in ("weight", "bias"))
        assert (bias is not None) == (file_bias is not None) == (kind == "qwen2")
        assert weight is not None and file is not None and not torch.equal(weight, file)
        half = rotated(F.linear(x, weight, bias).unflatten(1, (-1, width)), angles, in_pairs=False)
        pairs = rotated(F.linear(x, file, file_bias).unflatten(1, (-1, width)), angles, in_pairs=True)
        torch.testing.assert_close(half, pairs)
    assert fields_of(tmp_path / "m.gguf")["general.architecture"] == "llama"


def test_gguf_has_the_factors_of_scaled_rotary_wavelengths(tmp_path: Path) -> None:
    """Expect the angles of our table from llama.cpp's: position x theta^(-2i/D) / factor."""
    recipe = replace(
        SMALL, vocab_size=300, rope_scaling="llama3", rope_factor=8.0, rope_original_block_size=64, rope_theta=500.0
    )
    weights = gguf_file.to_llama_cpp({}, recipe)
    factors, D = weights["rope_freqs.weight"], recipe.head_width
    angles = torch.outer(torch.arange(24.0), 500.0 ** (-torch.arange(0, D, 2) / D) / factors)
    torch.testing.assert_close(angles.cos(), rotary_table(recipe)[0, :, : D // 2])
    assert factors.min() == 1.0 and factors.max() == pytest.approx(8.0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_gguf_is_read_back_bit_for_bit(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    model = opened(folders, kind)
    export_file(model, tmp_path / "m.gguf", ExportOptions())
    again = read_gguf(tmp_path / "m.gguf", model.recipe.model)
    for (name, one), (_, other) in zip(model.model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_gguf_tokenizer_has_tokens_types_merges_and_special_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    model = opened(folders, "llama")
    export_file(model, tmp_path / "m.gguf", ExportOptions())
    found = {name.removeprefix("tokenizer.ggml."): value for name, value in fields_of(tmp_path / "m.gguf").items()}
    assert (found["model"], found["pre"]) == ("gpt2", "gpt-2")
    assert len(found["tokens"]) == len(found["token_type"]) == 300
    assert found["tokens"][256:258] == ["<|endoftext|>", "[PAD257]"]
    assert found["token_type"][255:258] == [TokenType.NORMAL, TokenType.CONTROL, TokenType.UNUSED]
    assert found["eos_token_id"] == min(model.tokenizer.eos) and found["bos_token_id"] == model.tokenizer.bos
    assert found["add_bos_token"] is False


def test_gguf_vocabulary_of_gpt2_covers_every_row() -> None:
    padded = gguf_vocabulary(tokenizer_json(None), 50_304, "GPT-2's")
    assert padded.split == "gpt-2" and len(padded.merges) == 50_000
    assert padded.types.count(TokenType.UNUSED) == 47 and padded.types[tokenizer.END_OF_TEXT] == TokenType.CONTROL
    assert [padded.tokens[token] for token in encode("Hello world")] == ["Hello", "Ġworld"]
    assert TokenType.UNUSED not in gguf_vocabulary(tokenizer_json(None), 50_257, "GPT-2's").types


def split_by(expression: str) -> dict[str, Any]:
    """The form of tiktoken's encodings in a tokenizer.json."""
    split = {"type": "Split", "pattern": {"Regex": expression}}
    return {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}


CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
O200K = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\p{N}{1,3}|\s+"


@pytest.mark.parametrize(
    ("changes", "split"),
    [
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}, "gpt-2"),
        (
            {"pre_tokenizer": split_by(CL100K)},
            "llama-bpe",
        ),
        ({"pre_tokenizer": split_by(O200K)}, "gpt-4o"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, None),
        ({"pre_tokenizer": {"type": "Whitespace"}}, None),
        ({"pre_tokenizer": None}, None),
        ({"normalizer": {"type": "NFC"}}, None),
        ({"model": {"type": "Unigram", "vocab": []}}, None),
        ({"model": {"type": "BPE"}}, None),
    ],
)
def test_gguf_pre_tokenizer_is_known_to_llama_cpp_or_refused(changes: dict[str, Any], split: str | None) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}
    given = {"model": model, "pre_tokenizer": {"type": "ByteLevel"}, "added_tokens": [], **changes}
    if split is None:
        with pytest.raises(UserError, match="their tokenizer"):
            gguf_vocabulary(given, 2, "their tokenizer")
    else:
        assert gguf_vocabulary(given, 2, "x").split == split


def test_gguf_with_other_logits_is_refused_and_removed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(folders, "llama")
    monkeypatch.setattr(gguf_file, "to_llama_cpp", lambda weights, recipe: weights)  # heads not in pairs
    with pytest.raises(ReadBackError, match="logits"):
        export_file(model, tmp_path / "m.gguf", ExportOptions())
    assert not list(tmp_path.iterdir())


def existing_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("mine")


def missing_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "is_installed", lambda name: False)


@pytest.mark.parametrize(
    ("recipe", "prepare", "message"),
    [
        (SMALL, existing_file, "m.gguf"),
        (SMALL, missing_package, r"regpt\[gguf\]"),
        (replace(SMALL, qk_norm=True), None, "model.qk_norm = True"),
    ],
)
def test_gguf_export_is_refused_by_name(
    recipe: Any, prepare: Callable[..., None] | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if prepare:
        prepare(tmp_path / "m.gguf", monkeypatch)
    before = [path.read_bytes() for path in tmp_path.iterdir()]
    with pytest.raises(UserError, match=message):
        export_gguf(model_of(recipe), tmp_path / "m.gguf", name="m")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == before


def test_export_command_writes_directory_and_gguf_together(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(folders["tied"]), "out", "--gguf", "out.gguf", "--dtype", "float16"]) == DONE
    assert (tmp_path / "out" / "config.json").is_file() and fields_of(Path("out.gguf"))["general.file_type"] == 1
    assert main(["export", str(folders["tied"])]) == USAGE
    assert "--gguf" in capsys.readouterr().err
