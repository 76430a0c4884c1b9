"""Models from Hugging Face directories give the same logits as in transformers: GPT-2, Llama, Mistral, Qwen2."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from regpt.base.errors import UserError
from regpt.data import tokenizer
from regpt.data.tokenizer import GPT2_TOKENIZER as GPT2_TOKENS
from regpt.export.directory import ExportOptions, export
from regpt.interop.configuration import read_config, recipe_from_config
from regpt.interop.pretrained import load_pretrained
from regpt.model.gpt import GPT
from regpt.model.rotary import rotary_table
from tests.model.test_gpt import CLASSIC, SMALL, model_of

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("hf")
LLAMA = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
GPT2 = {"vocab_size": 50_257, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

CLASSES = {
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,  # so that the eight frequencies lie on both sides of the limits, and between them
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def saved(folder: Path, kind: str, **changes: Any) -> tuple[Path, Any]:
    """Return the directory that transformers writes for a model with random weights, and that model."""
    torch.manual_seed(3)
    config, make = CLASSES[kind]
    base = GPT2 if kind == "gpt2" else LLAMA
    model = make(config(**{**base, **({"sliding_window": None} if kind == "mistral" else {}), **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    return folder, model


def same_logits(ours: GPT, theirs: Any) -> None:
    x = torch.randint(0, 250, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours.hidden(x)), theirs(x).logits, rtol=1e-5, atol=1e-5)


SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"num_key_value_heads": 4, "head_dim": 12}),
    ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3, "head_dim": 16}),
    ("mistral", {"head_dim": 12}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2", {"num_key_value_heads": 4}),
]


@pytest.mark.parametrize(("kind", "changes"), SHAPES, ids=str)
def test_modern_models_give_the_same_logits_there_and_back(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    folder, theirs = saved(tmp_path / "m", kind, **changes)
    write_tokenizer(folder)
    ours, vocabulary = load_pretrained(folder)
    same_logits(ours, theirs)
    assert ours.recipe.kv_heads == theirs.config.num_key_value_heads
    assert ours.recipe.parameters == sum(parameter.numel() for parameter in theirs.parameters())
    assert vocabulary is not GPT2_TOKENS and not ours.training
    export(ours, tmp_path / "out", vocabulary=vocabulary, source=folder)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again) is CLASSES["llama"][1]
    same_logits(ours, again)
    assert load_pretrained(tmp_path / "out")[0].recipe == ours.recipe
    weights = dict(again.named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in theirs.named_parameters())


def test_biases_of_llamas_attention_are_read_if_those_of_the_output_are_zero(tmp_path: Path) -> None:
    folder, theirs = saved(tmp_path / "m", "llama", attention_bias=True)
    write_tokenizer(folder)
    with pytest.raises(UserError, match=r"o_proj\.bias is not zero"):
        load_pretrained(folder)
    with torch.no_grad():
        for layer in theirs.model.layers:
            layer.self_attn.o_proj.bias.zero_()
    theirs.save_pretrained(folder)
    same_logits(load_pretrained(folder)[0], theirs)


def test_scaled_rotary_angles_equal_those_of_transformers(tmp_path: Path) -> None:
    """Of a real Llama 3.2, whose frequencies lie below, between and above the limits."""
    real = {**LLAMA3, "rope_theta": 500_000.0, "factor": 32.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(**{**LLAMA, "head_dim": 64, "rope_parameters": real})
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    positions = torch.arange(4000)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    config.save_pretrained(tmp_path)
    recipe = recipe_from_config(read_config(tmp_path), tmp_path)
    ours = rotary_table(replace(recipe, block_size=4000))
    sign = torch.tensor([-1.0, 1.0]).repeat_interleave(32)  # ours are negated in the first half
    torch.testing.assert_close(ours, torch.stack([cos[0], sin[0] * sign]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("layers", "heads", "width", "parameters"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_each_size_of_gpt2_has_its_number_of_parameters(
    tmp_path: Path, layers: int, heads: int, width: int, parameters: int
) -> None:
    config = {"model_type": "gpt2", "n_layer": layers, "n_head": heads, "n_embd": width, "n_ctx": 1024}
    recipe = recipe_from_config({**config, "vocab_size": 50_257}, tmp_path)
    assert recipe.parameters == parameters and recipe.vocab_size == 50_257


def test_gpt2_gives_the_same_logits_under_both_naming_schemes(tmp_path: Path) -> None:
    folder, theirs = saved(tmp_path / "m", "gpt2")
    ours, vocabulary = load_pretrained(folder)
    same_logits(ours, theirs)
    assert vocabulary is GPT2_TOKENS
    weights = load_file(folder / "model.safetensors")
    assert all(name.startswith("transformer.") for name in weights)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()  # OpenAI's files also hold masks
    save_file(bare, folder / "model.safetensors")
    same_logits(load_pretrained(folder)[0], theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_several_files_of_two_bytes_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    folder, theirs = saved(tmp_path / "m", "gpt2")
    theirs.to(dtype).save_pretrained(folder, max_shard_size="1MB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    ours = load_pretrained(folder)[0]
    assert ours.head_weight.dtype == torch.float32
    same_logits(ours, theirs.float())


@pytest.mark.parametrize("recipe", [CLASSIC, SMALL], ids=["gpt2", "llama"])
def test_exported_weights_are_read_back_bit_for_bit(tmp_path: Path, recipe: Any) -> None:
    model = model_of(recipe)
    export(model, tmp_path / "out", options=ExportOptions(keep_padding=True))
    again, vocabulary = load_pretrained(tmp_path / "out")
    assert vocabulary is GPT2_TOKENS
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one id for each byte, and a special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(folder / "tokenizer.json"))


def test_foreign_tokenizer_is_used_and_reads_special_names_as_text(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "m", "llama")
    write_tokenizer(folder)
    _, vocabulary = load_pretrained(folder)
    assert vocabulary is not GPT2_TOKENS
    assert len(vocabulary.tokens("abc")) == 3
    assert len(vocabulary.tokens("<|endoftext|>")) == len("<|endoftext|>")
    assert vocabulary.context("").tolist() == [1]  # the config's bos_token_id


def test_gpt2_tokenizer_is_recognized_in_either_file_format(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "m", "gpt2")
    package = tokenizer.package_folder()
    assert package is not None
    vocabulary = json.loads((package / "encoder.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocabulary, indent=2))
    assert load_pretrained(folder)[1] is GPT2_TOKENS
    (folder / "vocab.json").unlink()
    added = [{"id": 50_257, "content": "[PAD]", "special": True}]
    for more in ({}, {"added_tokens": added}):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, **more}))
        assert load_pretrained(folder)[1] is GPT2_TOKENS


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "lacks 'low_freq_factor'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 8.0}}, "rope_type = 'yarn'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "rope_type = 'linear'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("llama", {"num_key_value_heads": 3}, "key-value heads that do not divide"),
        ("mistral", {"sliding_window": 32}, "sliding_window = 32"),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": True, "layer_types": None}, "sliding_window = 32"),
        ("llama", {"attention_bias": True}, "do not fit its config.json"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"num_attention_heads": 5, "head_dim": None}, "heads that do not divide the width"),
        ("llama", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("llama", {"hidden_size": None}, "cannot be used"),
        ("llama", {"num_hidden_layers": 3}, "do not fit its config.json"),
        ("llama", {"intermediate_size": 40}, "do not fit its config.json"),
        ("llama", {"num_attention_heads": 0}, "cannot be used"),
        ("llama", {"max_position_embeddings": 0}, "model.block_size = 0 is below 1"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantized weights"),
        ("llama", {"tie_word_embeddings": True}, "holds lm_head.weight, for which"),
        ("gpt2", {"n_layer": 1}, r"holds transformer.h.1.* and 11 more, for which"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"model_type": "opt"}, "is a 'opt' model.*GPT-2, Llama, Mistral and Qwen2"),
    ],
)
def test_unsupported_model_settings_are_refused_by_name(
    tmp_path: Path, kind: str, change: dict[str, Any], says: str
) -> None:
    folder, _ = saved(tmp_path / "m", kind)
    write_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=says):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("mistral", {"sliding_window": 64}),  # of 64 positions
        ("qwen2", {"sliding_window": 32, "use_sliding_window": False}),
    ],
)
def test_window_that_limits_nothing_is_accepted(tmp_path: Path, kind: str, change: dict[str, Any]) -> None:
    folder, theirs = saved(tmp_path / "m", kind, **change)
    write_tokenizer(folder)
    same_logits(load_pretrained(folder)[0], theirs)


def test_missing_and_damaged_files_are_named_in_the_error(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "m", "llama")
    with pytest.raises(UserError, match=r"has 300 tokens and no tokenizer\.json"):
        load_pretrained(folder)
    write_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_pretrained(folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"model\.safetensors: a Git LFS pointer .*git lfs pull"):
        load_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(UserError, match="cannot be read"):
        load_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_pretrained(folder)
    (folder / "config.json").write_text("not json")
    with pytest.raises(UserError, match="does not say what model it is"):
        load_pretrained(folder)
