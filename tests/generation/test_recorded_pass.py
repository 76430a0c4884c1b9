"""A pass over all rows and positions that a cache has room for draws what a pass over its filled part draws."""

from dataclasses import replace

import pytest
import torch

from regpt.data.tokenizer import VOCABULARY
from regpt.generation import decoder
from regpt.generation.decoder import Decoder
from regpt.generation.drawing import Request, Sampling
from regpt.generation.recorded_pass import RecordedPass, can_record
from regpt.model.cache import FIRST_POSITIONS, KeyValueCache
from regpt.model.gpt import GPT
from regpt.recipe.architecture import ModelRecipe
from tests.generation.test_decoder import RULES, rows_of
from tests.model.test_gpt import SMALL, model_of

LONG = replace(SMALL, block_size=4 * FIRST_POSITIONS)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU compute the passes that a GPU records."""
    monkeypatch.setattr(decoder, "can_record", lambda model: True)


def caches(model: GPT, lengths: list[int]) -> tuple[KeyValueCache, KeyValueCache]:
    """Return two caches with rows of these lengths, filled with the same tokens."""
    made = []
    for _ in range(2):
        cache = KeyValueCache(model.recipe, 0, torch.float32, torch.device("cpu"))
        for row, length in enumerate(lengths):
            one = KeyValueCache(model.recipe, 1, torch.float32, torch.device("cpu"))
            with torch.no_grad():
                model.next_logits(1 + row + torch.arange(length)[None], one)
            cache.join(one, 1)
        made.append(cache)
    return made[0], made[1]


@pytest.mark.parametrize("lengths", [[3], [3, 3], [5, 1, 2], [FIRST_POSITIONS, 2]])
@pytest.mark.parametrize("mask", [False, True])
def test_logits_and_cache_are_those_of_a_plain_pass(lengths: list[int], mask: bool) -> None:
    model = model_of(replace(LONG, document_mask=mask)).eval()
    plain, recorded = caches(model, lengths)
    passes = RecordedPass(model, recorded)
    for token in range(40, 44):
        tokens = [token + row for row in range(len(lengths))]
        with torch.no_grad():
            expected = model.next_logits(torch.tensor(tokens)[:, None], plain)
        torch.testing.assert_close(passes.next_logits(tokens), expected, rtol=1e-5, atol=1e-5)
    assert recorded.lengths == plain.lengths == [length + 4 for length in lengths]
    for row, length in enumerate(plain.lengths):
        torch.testing.assert_close(recorded.buffer[:, :, row, :, :length], plain.buffer[:, :, row, :, :length])


def texts_of(model: GPT) -> list[list[int]]:
    """Return the texts of rows that join at different times and end at different times, one of them in a full block."""
    decoding = Decoder(model, VOCABULARY)
    rows = []
    for number, rule in enumerate(RULES):
        new_tokens = 6 + 30 * number if number < len(RULES) - 1 else model.recipe.block_size + 9
        rows += decoding.add([1 + number] * (3 + number), [Request(sampling=rule, new_tokens=new_tokens)]).rows
        for _ in range(4):
            decoding.draw_tokens()
            decoding.read_part()
    while decoding.is_busy:
        decoding.draw_tokens()
        decoding.read_part()
    return [row.tokens for row in rows]


@pytest.mark.parametrize(
    "recipe", [LONG, replace(LONG, n_kv_head=2), replace(LONG, value_residual=True, value_embeddings=True)]
)
def test_rows_that_join_and_leave_draw_the_tokens_of_plain_passes(
    recipe: ModelRecipe, recording: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(recipe).eval()
    found = texts_of(model)
    monkeypatch.undo()
    assert found == texts_of(model) and len(found[-1]) > recipe.block_size


def test_pass_is_computed_without_dropout_and_leaves_the_mode(recording: None) -> None:
    model = model_of(replace(SMALL, dropout=0.5))
    request = Request(sampling=Sampling(temperature=1.3), new_tokens=4)
    assert rows_of(model.train(), [request]) == rows_of(model.eval(), [request])


def test_cpu_records_nothing() -> None:
    assert not can_record(model_of(SMALL))
