"""A chat starts from the weights of a model that has no tokens around messages."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regpt.base.errors import UserError
from regpt.interop.initial import with_chat_rows
from regpt.interop.open_model import open_model
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe
from regpt.tokenization.chat_tokens import ChatTokenizer
from regpt.tracking.run import Run
from regpt.training.start import train
from tests.conftest import tiny_recipe
from tests.helpers.conversations import byte_tokenizer, chat_recipe

pytestmark = pytest.mark.slow
TOKENS = 257  # of the tokenizer: bytes, and the end of a text
SHAPE = {"block_size": 64, "tied_head": False}


@pytest.fixture(scope="module", params=[257, 320], ids=["grown", "padding"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Run:
    """A model of text, without rows for more tokens or with rows of padding."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "a.txt").write_text(real_text, encoding="utf-8")
    recipe = tiny_recipe(
        folder,
        run={"max_steps": 2},
        data={"source": str(folder / "a.txt"), "tokenizer": str(byte_tokenizer(folder))},
        model={**SHAPE, "vocab_size": request.param},
        evaluation={"sample_count": 0},
    )
    run = train(recipe, folder / "base")
    assert run is not None
    return run


def chat_from(base: Run, **data: Any) -> Recipe:
    folder = base.path.parent
    return chat_recipe(
        folder,
        run={"init_from": str(base.path), "max_steps": 3},
        data={"tokenizer": str(folder / "tokenizer.json"), "path": str(folder / "chat-data"), **data},
        model={**SHAPE, "vocab_size": 320},
        evaluation={"sample_count": 0},
    )


def test_new_tokens_begin_as_the_mean_of_the_others_and_the_rest_as_it_was(base: Run) -> None:
    run = train(chat_from(base), base.path.parent / "chat")
    assert run is not None and run.recipe.model.vocab_size == 320 and run.environment.origin is not None
    source = open_model(base.path, base.path.parent).model
    start = open_model(run.paths.checkpoint(0), base.path.parent)
    assert isinstance(start.tokenizer, ChatTokenizer) and start.tokenizer.new_tokens == 2
    for name, theirs in source.named_parameters():
        ours = start.model.get_parameter(name)
        assert torch.equal(ours[:TOKENS], theirs[:TOKENS])
        if name in ("token_embedding.weight", "head.weight"):
            assert len(ours) == 320
            mean = theirs[:TOKENS].mean(dim=0)
            assert all(torch.allclose(row, mean, atol=1e-7) for row in ours[TOKENS : TOKENS + 2])
    first, last = run.history.validations[0].loss, run.history.validations[-1].loss
    assert last < first - 0.1


def test_conversations_with_another_tokenizer_are_refused(base: Run) -> None:
    folder = base.path.parent
    path = {"path": str(folder / "gpt2-data")}
    prepare(chat_recipe(folder, data=path))
    with pytest.raises(UserError, match=r"tokenizer.*gpt2"):
        train(chat_from(base, **path), folder / "refused")
    assert not (folder / "refused").exists()


def test_recipe_of_a_chat_has_rows_for_the_tokens_around_messages(tmp_path: Path) -> None:
    recipe = load_recipe("gpt2-chat")
    openai = replace(recipe, model=replace(recipe.model, vocab_size=50_257))
    assert with_chat_rows(openai).model == recipe.model and with_chat_rows(recipe) is recipe
    text = replace(openai, data=replace(openai.data, format="text"))
    assert with_chat_rows(text) is text
