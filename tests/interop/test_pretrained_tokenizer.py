"""The tokenizers of foreign models: what they put before a text, which tokens end one, tokens that were added."""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from regpt.base.errors import UserError
from regpt.data.tokenizer import END_OF_TEXT, GPT2_TOKENIZER, Tokenizer
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.lm_eval import make_harness_model
from regpt.interop.open_model import LoadedModel, open_model
from regpt.machine.device import open_device
from regpt.tasks.packing import tokenize_separately, tokenize_together
from tests.interop.test_pretrained import saved, write_tokenizer

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("hf")
SENTENCES = ["the cat sat on the mat and then the dog ran to the house", "Question: who is walking? Answer: a man"]
PAIRS = [("the cat sat on", " the mat"), ("Question: who\nAnswer:", " a man"), ("the cat ", "sat"), ("", " the dog")]


def sentencepiece_like(folder: Path, *, metaspace: bool, prefix: bool) -> None:
    """Write a tokenizer like Llama's: as a pre-tokenizer or, older, as a normalizer; with <s> before each text."""
    from tokenizers import Tokenizer as Theirs
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    made = Theirs(models.BPE(unk_token="<unk>"))
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    made.train_from_iterator(SENTENCES * 9, trainer)
    if prefix:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))


def opened(folder: Path) -> LoadedModel:
    return open_model(folder, folder, ["run.device=cpu", "run.precision=float32"])


@pytest.fixture
def hugging_face_lm(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Return a function that makes lm-eval's own Hugging Face model, as far as it encodes texts.

    Its module imports accelerate, which encoding does not need and which may not be installed.
    """
    if find_spec("accelerate") is None:
        for name in ("accelerate", "accelerate.utils"):
            monkeypatch.setitem(sys.modules, name, MagicMock())
    from lm_eval.models.huggingface import HFLM

    def make(folder: Path) -> Any:
        model = HFLM.__new__(HFLM)
        model.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model.add_bos_token = model.custom_prefix_token_id = model.enable_thinking = None
        return model

    return make


@pytest.mark.parametrize("metaspace", [True, False], ids=["metaspace", "normalizer"])
@pytest.mark.parametrize("prefix", [True, False], ids=["bos", "no-bos"])
def test_harness_encodes_as_lm_eval_does_for_a_llama(
    tmp_path: Path, hugging_face_lm: Callable[[Path], Any], metaspace: bool, prefix: bool
) -> None:
    folder, _ = saved(tmp_path / "m", "llama")
    sentencepiece_like(folder, metaspace=metaspace, prefix=prefix)
    theirs, loaded = hugging_face_lm(folder), opened(folder)
    ours = make_harness_model(loaded, open_device(loaded.recipe.run), RankGroup(), lambda what, done, of: None)
    assert ours.tok_encode(SENTENCES[0]) == theirs.tok_encode(SENTENCES[0])
    assert (ours.tok_encode(SENTENCES[0])[0] == 1) == prefix
    assert (ours.eot_token_id, ours.prefix_token_id) == (theirs.eot_token_id, theirs.prefix_token_id) == (2, 1)
    asked: list[list[Any]] = []
    requests: list[Any] = [SimpleNamespace(args=pair) for pair in PAIRS]
    for model in (ours, theirs):
        model._loglikelihood_tokens = lambda requests, **_: asked.append([request[1:] for request in requests])
        model.loglikelihood(requests)
    assert asked[0] == asked[1]
    assert all(context[0] == 1 for context, _ in asked[0]) == prefix


@pytest.mark.parametrize("metaspace", [True, False], ids=["metaspace", "normalizer"])
def test_ending_has_no_lone_token_before_it(tmp_path: Path, metaspace: bool) -> None:
    folder, _ = saved(tmp_path / "m", "llama")
    sentencepiece_like(folder, metaspace=metaspace, prefix=True)
    tokenizer = opened(folder).tokenizer
    assert tokenizer.prefix == (1,)
    together = tokenize_together(["the cat sat on"], [" the mat"], tokenizer)
    separately = tokenize_separately(["the cat sat on"], [" the mat"], tokenizer)
    for question in (together, separately):
        context, choice = question.contexts[0].tolist(), question.choices[0].tolist()
        assert context == [1, *tokenizer.tokens("the cat sat on").tolist()]
        assert context + choice == [1, *tokenizer.tokens("the cat sat on the mat").tolist()]
        assert choice == tokenizer.tokens("the mat").tolist()
    alone = tokenizer.tokens(" the mat").tolist()
    assert (len(alone) > len(choice)) == (not metaspace)
    assert tokenize_separately([""], [" the mat"], tokenizer).contexts[0].tolist() == [1]


def test_gpt2_tokenizer_puts_nothing_before_a_text() -> None:
    assert GPT2_TOKENIZER.context("a b").tolist() == GPT2_TOKENIZER.tokens("a b").tolist()
    assert GPT2_TOKENIZER.context("").tolist() == [END_OF_TEXT]
    assert GPT2_TOKENIZER.encodes_alone


def test_added_tokens_beyond_the_model_are_refused_only_in_text(tmp_path: Path) -> None:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Theirs

    folder, _ = saved(tmp_path / "m", "llama", vocab_size=257)  # 256 bytes and <|endoftext|>
    write_tokenizer(folder)
    made = Theirs.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens(["[PAD]"])
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    made.save(str(folder / "tokenizer.json"))
    tokenizer = opened(folder).tokenizer
    assert tokenizer.vocabulary == 257
    assert len(tokenizer.tokens("a [PAD] b")) == len("a [PAD] b")  # a special token in a text is text
    with pytest.raises(UserError, match=r"'<tool>' as token 258.*257"):
        tokenizer.tokens("call <tool> now")


@pytest.mark.parametrize(
    ("config", "named", "bos", "eos"),
    [
        ({"bos_token_id": 5, "eos_token_id": 6}, {}, 5, {6}),
        ({"bos_token_id": None, "eos_token_id": [6, 7]}, {}, 6, {6, 7}),
        ({"bos_token_id": 5, "eos_token_id": None}, {}, 5, {5}),
        ({"bos_token_id": None, "eos_token_id": None}, {}, 0, {0}),
        ({"bos_token_id": 5, "eos_token_id": 999}, {"bos_token": {"content": "<|endoftext|>"}}, 256, {256}),
        ({"bos_token_id": 5, "eos_token_id": 6}, {"eos_token": "<|endoftext|>", "bos_token": None}, 5, {256}),
    ],
)
def test_special_tokens_come_from_the_tokenizer_or_the_config(
    tmp_path: Path, config: dict[str, Any], named: dict[str, Any], bos: int, eos: set[int]
) -> None:
    folder, _ = saved(tmp_path / "m", "llama")
    write_tokenizer(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    found: Tokenizer = opened(folder).tokenizer
    assert (found.bos, found.eos) == (bos, eos)
