"""A model that neither GPT-2's nor Llama's class computes is exported with classes of its own, with the same logits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from regpt.base.errors import DONE, UserError
from regpt.cli.main import main
from regpt.export import directory
from regpt.export.directory import MODELING_FILES, ExportOptions, export, read_directory
from regpt.export.precision import Precision
from regpt.export.read_back import ReadBackError, error_of_logits
from regpt.interop.form import SWITCHES_OFF, Form, ModelType, form_of
from regpt.interop.pretrained import load_pretrained
from regpt.model.gpt import GPT
from regpt.recipe.architecture import ModelRecipe
from tests.helpers.switches import ALONE, covering_set, each_alone
from tests.model.test_gpt import CLASSIC, SMALL

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("hf")

ROWS = 300  # of a vocabulary, for speed
TINY = replace(SMALL, n_layer=3, vocab_size=ROWS)


def trained(recipe: ModelRecipe) -> GPT:
    """Return a model whose parts all count: nothing is zero, and no score is the same."""
    model = GPT(replace(recipe, vocab_size=ROWS))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            offset = 1.0 if name.endswith("norm.weight") else 0.0
            tensor.copy_(offset + 0.15 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


MIXES = [
    replace(TINY, activation="gelu"),
    replace(TINY, n_kv_head=1, qk_norm=True),
    replace(TINY, rope_scaling="llama3", rope_original_block_size=8, logit_softcap=5.0),
    replace(TINY, qkv_bias=True, normalization="layernorm"),
    replace(CLASSIC, tied_head=False),
    replace(CLASSIC, head_dim=12, bias=False),
    replace(TINY, value_embeddings=True, n_kv_head=1, tied_head=False),
]


@pytest.mark.parametrize("recipe", [*covering_set(), *MIXES])
def test_modeling_file_computes_the_logits_of_every_mix_of_parts(recipe: ModelRecipe) -> None:
    model = trained(recipe)
    plain = directory.PlainModel(model.recipe)
    plain.load_state_dict(model.state_dict())
    assert error_of_logits(model, plain.eval(), ROWS, frozenset()) < 3e-6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[GPT, Any, Path]]:
    """Models by name: ours, transformers' after a round trip, and the directory."""
    recipes = {
        "everything": replace(
            TINY, qk_norm=True, value_residual=True, residual_scalars=True, value_embeddings=True, embedding_norm=True
        ),
        "experts": replace(TINY, **ALONE["shared_experts"]),
        "gelu": replace(TINY, activation="gelu", positions="learned", tied_head=False),
    }
    root, patch = tmp_path_factory.mktemp("own"), pytest.MonkeyPatch()
    for place in ("transformers.dynamic_module_utils.HF_MODULES_CACHE", "transformers.utils.hub.HF_MODULES_CACHE"):
        patch.setattr(place, str(root / "modules"), raising=False)
    found = {}
    for name, recipe in recipes.items():
        ours = trained(recipe)
        export(ours, root / name)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(root / name, trust_remote_code=True).eval()
        found[name] = ours, theirs, root / name
    patch.undo()
    return found


TOKENS = torch.randint(0, ROWS, (2, 12), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["everything", "experts", "gelu"])
def test_transformers_computes_the_logits_with_and_without_a_cache(
    models: dict[str, tuple[GPT, Any, Path]], name: str
) -> None:
    ours, theirs, _ = models[name]
    with torch.no_grad():
        expected = ours(TOKENS)
        torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=1e-5, atol=2e-5)
        first = theirs(TOKENS[:, :7], use_cache=True)
        cache = first.past_key_values
        parts = [first.logits, theirs(TOKENS[:, 7:10], past_key_values=cache).logits]
        parts += [theirs(TOKENS[:, at : at + 1], past_key_values=cache).logits for at in (10, 11)]
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["everything", "gelu"])
def test_transformers_generates_padded_batches_as_single_rows(
    models: dict[str, tuple[GPT, Any, Path]], name: str
) -> None:
    _, theirs, _ = models[name]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": ROWS}
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    together = theirs.generate(TOKENS, attention_mask=mask, **options)[:, 12:]
    alone = torch.cat([theirs.generate(row[None], **options)[:, -6:] for row in (TOKENS[0], TOKENS[1, 4:])])
    without_cache = theirs.generate(TOKENS, attention_mask=mask, use_cache=False, **options)[:, 12:]
    assert together.tolist() == alone.tolist() == without_cache.tolist()


def test_transformers_loss_of_labels_is_the_mean_loss(models: dict[str, tuple[GPT, Any, Path]]) -> None:
    ours, theirs, _ = models["everything"]
    with torch.no_grad():
        loss = ours(TOKENS[:, :-1], TOKENS[:, 1:])
        torch.testing.assert_close(theirs(TOKENS, labels=TOKENS).loss, loss)


def test_own_directory_is_complete_without_regpt(models: dict[str, tuple[GPT, Any, Path]]) -> None:
    folder = models["experts"][2]
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", *MODELING_FILES}
    for name in MODELING_FILES:
        text = (folder / name).read_text()
        assert "import regpt" not in text and "from regpt" not in text
    assert json.loads((folder / "config.json").read_text())["model_type"] == "regpt"


def test_own_directory_is_read_by_regpt_bit_for_bit(tmp_path: Path) -> None:
    ours = GPT(replace(SMALL, experts=4, logit_softcap=15.0)).eval()
    ours.initialize(3)
    ours.blocks[0].mlp.balance[2] = 0.25
    export(ours, tmp_path / "m", options=ExportOptions(keep_padding=True))
    again = load_pretrained(tmp_path / "m")[0]
    assert again.recipe == ours.recipe
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_own_vocabulary_is_cut_in_every_table(tmp_path: Path) -> None:
    ours = GPT(replace(SMALL, value_embeddings=True, tied_head=False, vocab_size=50_304)).eval()
    ours.initialize(1)
    export(ours, tmp_path / "m", options=ExportOptions(precision=Precision.BFLOAT16))
    weights = load_file(tmp_path / "m" / "model.safetensors")
    rows = {name: len(tensor) for name, tensor in weights.items() if tensor.numel() > 50_000}
    assert rows == dict.fromkeys(
        ["model.token_embedding.weight", "model.head.weight", "model.shortcuts.value_embeddings.1"], 50_257
    )
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_own_model_with_other_logits_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(replace(TINY, qk_norm=True))

    def without_norm(folder: Path) -> torch.nn.Module:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "regpt": {**config["regpt"], "qk_norm": False}}))
        return read_directory(folder)

    monkeypatch.setattr(directory, "read_directory", without_norm)
    with pytest.raises(ReadBackError, match="logits differ"):
        export(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", each_alone())
def test_each_switch_is_exported_with_the_class_that_has_it(name: str) -> None:
    form = form_of(each_alone()[name])
    needs_own = name in (*SWITCHES_OFF, "relu2")
    assert form.type is (ModelType.OWN if needs_own else ModelType.LLAMA)
    assert not needs_own or ("activation" if name == "relu2" else name) in form.unlike


def test_form_names_what_neither_gpt2_nor_llama_has() -> None:
    assert form_of(SMALL) == Form(ModelType.LLAMA) and form_of(CLASSIC) == Form(ModelType.GPT2)
    assert form_of(replace(SMALL, activation="gelu")) == Form(ModelType.OWN, ("activation",))
    assert form_of(replace(CLASSIC, normalization="rmsnorm", qk_norm=True)) == Form(
        ModelType.OWN, ("normalization", "qk_norm")
    )
    assert form_of(replace(CLASSIC, tied_head=False)) == Form(ModelType.OWN, ("tied_head",))


def test_own_config_that_is_incomplete_is_refused_by_name(
    models: dict[str, tuple[GPT, Any, Path]], tmp_path: Path
) -> None:
    config = json.loads((models["gelu"][2] / "config.json").read_text())
    del config["regpt"]["qk_norm"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="qk_norm"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "present", "absent"),
    [
        (["gpt2-modern"], ["Llama", "llama.cpp"], ["trust_remote_code"]),
        (["gpt2-classic"], ["GPT-2"], ["trust_remote_code"]),
        (["gpt2-modern", "model.qkv_bias=true"], ["Llama"], ["trust_remote_code"]),
        (["gpt2-modern", "model.qk_norm=true"], ["trust_remote_code", "model.qk_norm"], ["model.activation"]),
    ],
)
def test_recipe_show_says_how_the_model_is_exported(
    recipe: list[str], present: list[str], absent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "show", *recipe]) == DONE
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("#   export "))
    assert [word for word in present if word not in line] == [word for word in absent if word in line] == []
