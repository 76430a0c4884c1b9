"""The switches of the model, each alone and in pairs: counts, gradients, cache, masks, and what each computes."""

import copy
import math
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.data.tokenizer import END_OF_TEXT
from regpt.model.cache import KeyValueCache
from regpt.model.elementwise import unit_rms
from regpt.model.gpt import GPT
from regpt.model.masks import SharedPrefix, document_blocks, document_numbers
from regpt.recipe.architecture import ModelRecipe
from tests.helpers.switches import SMALL, covering_set, each_alone

MODELS = {**each_alone(), **{f"pairs {number}": model for number, model in enumerate(covering_set())}}


def model_of(recipe: ModelRecipe, seed: int = 1) -> GPT:
    """Return a model whose weights are all away from zero, so that every part has an effect."""
    model = GPT(recipe)
    model.initialize(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tokens(length: int = 25, seed: int = 3) -> Tensor:
    """Return two rows of random tokens, with a document that begins inside each."""
    drawn = torch.randint(0, 50_256, (2, length), generator=torch.Generator().manual_seed(seed))
    drawn[0, 5] = drawn[0, 14] = drawn[1, 9] = END_OF_TEXT
    return drawn


@pytest.mark.parametrize("recipe", MODELS.values(), ids=MODELS)
def test_parameters_and_products_are_counted_exactly(recipe: ModelRecipe) -> None:
    with torch.device("meta"):
        named = dict(GPT(recipe).named_parameters())
    assert sum(p.numel() for p in named.values()) == recipe.parameters
    active = recipe.experts_per_token / max(1, recipe.experts)  # share of the experts that a token passes
    products = sum(
        p.numel() * (active if p.ndim == 3 else 1)
        for n, p in named.items()
        if p.ndim >= 2 and "embedding" not in n and n != "head.weight"
    )
    assert products + recipe.vocab_size * recipe.n_embd == recipe.matmul_parameters
    assert not list(recipe.problems())


def test_flops_count_the_products_and_the_width_of_the_heads() -> None:
    wide = replace(SMALL, head_dim=12)
    weights = 3 * (4 * 16 * 24 + 3 * 16 * 40) + 50_304 * 16
    assert wide.flops_per_token == 6 * weights + 12 * 3 * 24 * 24
    weights -= 3 * 2 * 16 * 12  # of the keys and values of one of two heads
    assert replace(wide, n_kv_head=1).flops_per_token == 6 * weights + 12 * 3 * 24 * 24


@pytest.mark.parametrize("recipe", MODELS.values(), ids=MODELS)
def test_every_parameter_gets_a_gradient(recipe: ModelRecipe) -> None:
    model, x = model_of(recipe).train(), tokens()
    model(x[:, :-1], x[:, 1:]).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


INITIAL = ("zero_init", "head_init", "embedding_init_std")  # switches of the initial weights alone


@pytest.mark.parametrize("name", each_alone())
def test_switch_changes_the_loss(name: str) -> None:
    """Weights of the same names are the same, so only the switch differs."""
    switched, plain, x = GPT(each_alone()[name]), GPT(SMALL), tokens()
    for model in (switched, plain):
        model.initialize(1)
    if name not in INITIAL:
        switched = model_of(each_alone()[name])
        ours, own = switched.state_dict(), plain.state_dict()
        plain.load_state_dict({n: ours[n] if ours[n].shape == w.shape else w for n, w in own.items()})
    assert abs(switched(x[:, :-1], x[:, 1:]) - plain(x[:, :-1], x[:, 1:])) > 1e-7


@pytest.mark.parametrize("recipe", MODELS.values(), ids=MODELS)
def test_cache_gives_the_hidden_states_of_the_whole_row(recipe: ModelRecipe) -> None:
    model, x = model_of(recipe), tokens(24)
    cache = KeyValueCache(recipe, 2, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        pieces = [model.hidden(x[:, :8], cache), *(model.hidden(x[:, i : i + 1], cache) for i in range(8, 24))]
        torch.testing.assert_close(torch.cat(pieces, 1), model.hidden(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", MODELS.values(), ids=MODELS)
def test_rows_of_a_cache_have_lengths_of_their_own(recipe: ModelRecipe) -> None:
    """Rows join with prompts of 9, 2 and 14 tokens, the second part of a prompt is read behind the first one, a row
    leaves, and each gets the hidden states of its whole row."""
    model, x = model_of(recipe), torch.cat([tokens(24), tokens(24, seed=4)[:1]])
    cache = KeyValueCache(recipe, 0, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        expected = model.hidden(x)
        for row, length in zip(x, (9, 2, 14), strict=True):
            alone = KeyValueCache(recipe, 1, torch.float32, torch.device("cpu"))
            model.hidden(row[None, : length - 1], alone)
            model.hidden(row[None, length - 1 : length], alone)
            cache.join(alone, 1)
        rows = [0, 1, 2]
        for _ in range(10):
            if cache.lengths == [12, 5, 17]:
                cache.leave(0)
                rows = [2, 1]
            places = list(zip(rows, cache.lengths, strict=True))
            found = model.hidden(torch.stack([x[row, at : at + 1] for row, at in places]), cache)[:, 0]
            wanted = torch.stack([expected[row, at] for row, at in places])
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert cache.lengths == [24, 12]


@pytest.mark.parametrize("recipe", MODELS.values(), ids=MODELS)
def test_long_prompt_may_be_read_in_parts(recipe: ModelRecipe) -> None:
    model, x = model_of(recipe), tokens(24)
    cache = KeyValueCache(recipe, 2, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        parts = [model.hidden(part, cache) for part in x.split(7, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model.hidden(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", MODELS.values(), ids=MODELS)
def test_hidden_states_do_not_depend_on_later_tokens(recipe: ModelRecipe) -> None:
    model, x = model_of(recipe), tokens(24)
    changed = x.clone()
    changed[:, 16:] = 7
    torch.testing.assert_close(model.hidden(x)[:, :16], model.hidden(changed)[:, :16])


@pytest.mark.parametrize("recipe", MODELS.values(), ids=MODELS)
def test_shared_prefix_gives_the_losses_of_separate_rows(recipe: ModelRecipe) -> None:
    """One row: a prefix of 10 tokens with a document's end, and two continuations, one with an end of its own."""
    model = model_of(recipe)
    prefix, one, two = tokens()[0, :10], tokens()[1, 5:12], tokens()[1, 15:20]
    packed = torch.cat([prefix, one, two])[None]
    numbers = torch.tensor([*range(10), *range(10, 17), *range(10, 15)])[None]
    layout = SharedPrefix(numbers, torch.tensor([0] * 10 + [1] * 7 + [2] * 5)[None])
    hidden = model.hidden(packed, prefix=layout)[0]
    for begin, end, own in ((10, 17, one), (17, 22, two)):
        alone = model.hidden(torch.cat([prefix, own])[None])[0, 10:]
        torch.testing.assert_close(hidden[begin:end], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", MODELS.values(), ids=MODELS)
def test_activation_checkpointing_changes_no_gradient(recipe: ModelRecipe) -> None:
    x, found = tokens(), []
    for checkpointing in (False, True):
        model = model_of(recipe).train()
        model.activation_checkpointing = checkpointing
        model(x[:, :-1], x[:, 1:]).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        assert plain is not None and recomputed is not None and torch.equal(plain, recomputed)


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(model, marks=() if number < 1 else pytest.mark.nightly)
        for number, model in enumerate(covering_set())
    ],
)
def test_compiled_loss_and_gradients_equal_the_eager_ones(recipe: ModelRecipe) -> None:
    model, x, found = model_of(recipe).train(), tokens(), []
    for function in (model, torch.compile(model, dynamic=False)):
        model.zero_grad()
        loss = function(x[:, :-1], x[:, 1:])
        loss.backward()
        found.append([loss.detach(), *(copy.copy(p.grad) for p in model.parameters() if p.grad is not None)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)


# What each switch computes


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_unit_rms_equals_the_plain_expression(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 10, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ours = unit_rms(x, 1e-5)
    theirs = F.rms_norm(x.double(), (10,), None, 1e-5)
    weights = torch.linspace(-1, 1, 10, dtype=torch.float64)
    (ours_gradient,) = torch.autograd.grad((ours.double() * weights).sum(), x)
    (their_gradient,) = torch.autograd.grad((theirs * weights).sum(), x)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(ours.double(), theirs, **tolerance)
    torch.testing.assert_close(ours_gradient.double(), their_gradient.double(), **tolerance)


def test_normalized_queries_and_keys_ignore_the_scale_of_their_weights() -> None:
    model, x = model_of(replace(SMALL, qk_norm=True, norm_eps=1e-12)), tokens(24)
    before = model.hidden(x)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[:32] *= 3.0  # queries and keys, not values
    torch.testing.assert_close(model.hidden(x), before)


def test_zero_projections_make_every_block_the_identity() -> None:
    model, x = GPT(replace(SMALL, zero_init=True)), tokens(24)
    model.initialize(1)
    torch.testing.assert_close(model.hidden(x), model.final_norm(model.token_embedding(x)))


def test_zero_head_starts_with_equally_likely_tokens() -> None:
    model, x = GPT(replace(SMALL, tied_head=False, head_init="zero")), tokens()
    model.initialize(1)
    assert model(x[:, :-1], x[:, 1:]).item() == pytest.approx(math.log(50_304), abs=1e-5)


def test_embedding_norm_gives_the_first_block_a_mean_square_of_one() -> None:
    model, seen = model_of(replace(SMALL, embedding_norm=True, norm_eps=1e-12)), []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    model.hidden(tokens(24))
    torch.testing.assert_close(seen[0].square().mean(-1), torch.ones(2, 24), rtol=1e-3, atol=1e-3)


def test_initial_residual_scalars_and_value_gates_are_neutral() -> None:
    """Scalars 1 and 0 leave the residual stream as it is; a gate of zeros passes the value embedding once."""
    x = tokens(24)
    plain, scaled = GPT(SMALL), GPT(replace(SMALL, residual_scalars=True))
    plain.initialize(1)
    scaled.initialize(1)
    torch.testing.assert_close(scaled.hidden(x), plain.hidden(x))
    model = GPT(replace(SMALL, value_embeddings=True))
    model.initialize(1)
    assert model.shortcuts is not None and list(model.shortcuts.value_embeddings) == ["0", "2"]
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.zero_()  # equal scores and no values of the block's own
    seen = []
    model.blocks[0].attention.out.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    model.hidden(x)
    table = model.shortcuts.value_embeddings["0"]
    averages = table[x].cumsum(1) / torch.arange(1, 25)[:, None]
    torch.testing.assert_close(seen[0], averages, rtol=1e-4, atol=1e-5)


def test_value_residual_with_a_share_of_one_repeats_the_first_values() -> None:
    model = model_of(replace(SMALL, value_residual=True))
    assert model.shortcuts is not None and model.shortcuts.value_share is not None
    with torch.no_grad():
        model.shortcuts.value_share.fill_(1.0)
    before = model.hidden(tokens(24))
    with torch.no_grad():
        for block in list(model.blocks)[1:]:
            block.attention.qkv.weight[32:] = 0.0  # their own values, which have no share
    torch.testing.assert_close(model.hidden(tokens(24)), before)


def test_z_loss_is_added_in_training_and_not_in_evaluation() -> None:
    model, x = model_of(replace(SMALL, z_loss=0.01)), tokens()
    log_sums = model(x[:, :-1]).logsumexp(-1)
    expected = F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    assert model.losses(x[:, :-1], x[:, 1:]).mean().item() == pytest.approx(expected.item(), rel=1e-5)
    with_z = model(x[:, :-1], x[:, 1:]).item()
    assert with_z == pytest.approx((expected + 0.01 * log_sums.square().mean()).item(), rel=1e-5)


# Grouped-query attention and rotary wavelengths

GROUPED = replace(SMALL, n_head=4, n_kv_head=2, qkv_bias=True)


@pytest.mark.parametrize("changes", [{}, {"positions": "learned"}, {"document_mask": True}, {"qk_norm": True}], ids=str)
def test_grouped_heads_compute_what_repeated_ones_do(changes: dict[str, Any]) -> None:
    grouped, x = model_of(replace(GROUPED, **changes)), tokens()
    repeated = GPT(replace(grouped.recipe, n_kv_head=0))
    weights = grouped.state_dict()
    for name in [name for name in weights if ".qkv." in name]:
        q, k, v = weights[name].split([16, 8, 8])  # heads of width 4
        k, v = (part.unflatten(0, (2, 4)).repeat_interleave(2, dim=0).flatten(0, 1) for part in (k, v))
        weights[name] = torch.cat([q, k, v])
    repeated.load_state_dict(weights)
    torch.testing.assert_close(grouped.losses(x[:, :-1], x[:, 1:]), repeated.eval().losses(x[:, :-1], x[:, 1:]))


def test_as_many_key_heads_as_query_heads_are_the_same_bits() -> None:
    plain, named, x = model_of(SMALL), model_of(replace(SMALL, n_kv_head=2)), tokens()
    assert torch.equal(plain(x[:, :-1]), named(x[:, :-1]))


def test_cache_holds_the_heads_of_keys_alone() -> None:
    cache = KeyValueCache(GROUPED, 3, torch.float32, torch.device("cpu"))
    assert cache.buffer.shape == (3, 2, 3, 2, 24, 4)


# Documents


def test_documents_losses_do_not_depend_on_their_neighbours() -> None:
    model, x = model_of(replace(SMALL, document_mask=True)), tokens()
    changed = x.clone()
    changed[0, :5] = changed[0, 15:] = 11
    changed[1, 10:] = 12
    before, after = (model.losses(row[:, :-1], row[:, 1:]) for row in (x, changed))
    assert torch.equal(before[0, 5:14], after[0, 5:14]) and torch.equal(before[1, :9], after[1, :9])


def test_leak_across_a_document_boundary_is_seen_without_the_mask() -> None:
    model, x = model_of(SMALL), tokens()
    changed = x.clone()
    changed[0, :5] = 11
    before, after = (model.losses(row[:, :-1], row[:, 1:]) for row in (x, changed))
    assert not torch.allclose(before[0, 5:14], after[0, 5:14])


def test_first_document_is_as_in_a_row_of_its_own() -> None:
    model, x = model_of(replace(SMALL, document_mask=True)), tokens()
    torch.testing.assert_close(model.hidden(x[1:, 9:20]), model.hidden(x[1:, :20])[:, 9:], rtol=1e-4, atol=1e-5)


def test_document_mask_follows_the_end_of_the_models_tokenizer() -> None:
    model = GPT(replace(SMALL, document_mask=True))
    row = torch.tensor([[5, 6, 9, 7, 8]])
    assert int((model.attention_mask(row, None, None) == 0.0).sum()) == 15  # no document ends: causal
    model.end_of_text = 9
    assert int((model.attention_mask(row, None, None) == 0.0).sum()) == 3 + 6
    assert document_numbers(row, None, 9).tolist() == [[0, 0, 1, 1, 1]]


def test_flex_attention_sees_the_same_pairs_as_the_additive_mask() -> None:
    """The blocks are for CUDA; their mask is checked here, and tests/gpu runs the kernel."""
    documents = document_numbers(tokens(24), None, END_OF_TEXT)
    from torch.nn.attention.flex_attention import create_mask

    blocks = document_blocks(documents)
    seen = create_mask(blocks.mask_mod, 2, 1, 24, 24, device="cpu")
    recipe = replace(SMALL, document_mask=True)
    additive = GPT(recipe).attention_mask(tokens(24), None, None)
    assert torch.equal(seen, additive == 0.0)
