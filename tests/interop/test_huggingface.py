"""An exported run opens in transformers by its folder alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regpt.base.architecture import ModelRecipe
from regpt.base.errors import UserError
from regpt.data.tokenizer import encode
from regpt.interop.huggingface import export, family
from tests.model.test_gpt import CLASSIC, SMALL, model_of

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("hf")


@pytest.mark.parametrize("recipe", [CLASSIC, SMALL, replace(SMALL, tied_head=False)], ids=["gpt2", "llama", "untied"])
def test_an_exported_model_opens_and_gives_the_same_logits(recipe: ModelRecipe, tmp_path: Path) -> None:
    ours = model_of(recipe)
    export(ours, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    x = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x).logits, ours.logits(ours.hidden(x)), rtol=1e-5, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.encode("Hello, I'm a language model,") == encode("Hello, I'm a language model,").tolist()


def test_a_mixture_is_refused() -> None:
    with pytest.raises(UserError, match="neither GPT-2's nor Llama's shape"):
        family(replace(SMALL, activation="gelu"))


def test_an_existing_folder_is_not_written_to(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        export(model_of(SMALL), tmp_path)
