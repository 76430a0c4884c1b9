"""Logits, gradients, an optimizer step and greedy text equal those of GPT-2 and Llama in transformers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from regpt.evaluation.sampling import generate
from regpt.generation.drawing import Sampling
from regpt.interop.huggingface import from_hugging_face, hugging_face_config, to_hugging_face
from regpt.model.gpt import GPT
from regpt.recipe.architecture import ModelRecipe
from tests.model.test_gpt import CLASSIC, SMALL, model_of, tokens

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("hf")

GROUPED = replace(SMALL, n_head=4, n_kv_head=2, head_dim=6, rope_scaling="llama3", rope_original_block_size=12)
FORMS = {
    "GPT2LMHeadModel": CLASSIC,
    "LlamaForCausalLM": SMALL,
    "LlamaForCausalLM, grouped": GROUPED,
    "LlamaForCausalLM, biases of queries, keys and values": replace(
        SMALL, n_head=4, n_kv_head=1, qkv_bias=True, tied_head=False
    ),
}
EACH = pytest.mark.parametrize("recipe", FORMS.values(), ids=FORMS)


def reference(ours: GPT) -> nn.Module:
    """Build the Hugging Face model of the same shape with the same weights."""
    config = hugging_face_config(ours.recipe)
    kinds = {
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    make_config, make_model = kinds[config["model_type"]]
    model = make_model(make_config(**config, attn_implementation="eager")).eval()
    missing, unexpected = model.load_state_dict(to_hugging_face(ours), strict=False)
    assert not unexpected
    assert all("lm_head" in name for name in missing)  # tied
    return model


def perturbed_model(recipe: ModelRecipe) -> GPT:
    """Build a model whose weights are so large that an error in any part changes the logits."""
    model = model_of(recipe)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: GPT, x: torch.Tensor) -> torch.Tensor:
    return model.logits(model.hidden(x))


@EACH
def test_logits_equal_those_of_transformers(recipe: ModelRecipe) -> None:
    ours, x = perturbed_model(recipe), tokens(recipe, 24)
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, x), reference(ours)(x).logits, rtol=1e-5, atol=5e-5)


@EACH
@pytest.mark.parametrize(
    "planted", ["attention.out.weight", "mlp.down.weight", "final_norm.weight", "attention.qkv.weight"]
)
def test_planted_weight_errors_change_the_logits(recipe: ModelRecipe, planted: str) -> None:
    """Transpose a square projection, or roll the rows of another tensor."""
    ours, x = perturbed_model(recipe), tokens(recipe, 24)
    theirs = reference(ours)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith(planted):
                square = parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]
                parameter.copy_(parameter.t().clone() if square else parameter.roll(1, 0))
        assert (logits(ours, x) - theirs(x).logits).abs().max() > 0.01


@EACH
def test_loss_gradients_and_an_optimizer_step_equal_transformers(recipe: ModelRecipe) -> None:
    ours, x = perturbed_model(recipe), tokens(recipe, 24)
    theirs = reference(ours)
    our_loss = ours(x[:, :-1], x[:, 1:])
    their_loss = theirs(x, labels=x).loss
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-5, atol=1e-5)
    our_loss.backward()
    their_loss.backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, gradient in from_hugging_face(recipe, their_gradients).items():
        torch.testing.assert_close(ours.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6)
    for model in (ours, theirs):
        torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4, fused=model is ours).step()
    for name, weight in from_hugging_face(recipe, dict(theirs.named_parameters())).items():
        torch.testing.assert_close(ours.get_parameter(name), weight, rtol=1e-4, atol=1e-5)


@EACH
def test_conversion_there_and_back_keeps_every_bit(recipe: ModelRecipe) -> None:
    ours = perturbed_model(recipe)
    back = from_hugging_face(recipe, to_hugging_face(ours))
    assert back.keys() == dict(ours.named_parameters()).keys()
    assert all(torch.equal(back[name], parameter) for name, parameter in ours.named_parameters())


@EACH
def test_greedy_text_equals_that_of_transformers(recipe: ModelRecipe) -> None:
    ours, x = perturbed_model(recipe), tokens(recipe, 6)
    with torch.no_grad():
        ours.token_embedding.weight[50_257:] = 0  # padding rows of the vocabulary are never sampled here
    theirs = reference(ours).generate(x, max_new_tokens=15, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert generate(ours, x, 15, Sampling(temperature=0)).tolist() == theirs.tolist()
