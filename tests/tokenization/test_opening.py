"""Opening tokenizers: their ids, their special tokens, their records, and what is wrong with a name or a file."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from regpt.base.errors import DataError, UserError
from regpt.data.shard_writer import FOLDER, write_tokenizer
from regpt.data.tokenizer import END_OF_TEXT, FILES, GPT2_TOKENIZER
from regpt.recipe.vocabulary import SIZES, padded_size, tokenizer_size
from regpt.tokenization import openai
from regpt.tokenization.opening import open_folder, open_tokenizer, tokenizer_in
from tests.helpers.tokenizers import WIDE, write_bytes_tokenizer

pytest.importorskip("tokenizers")

HOSTILE = [
    "it's IT'S IT'\u017f \t\n\n  x  \r\n a",
    "Füße \u00df \U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467 e\u0301 \u0627\u0644\u0639",
    "1234567 \u00b2\u00b3 \u0661\u0662\u0663\u0664",
    "<|endoftext|> and <|fim_prefix|>",
    "a" * 200 + " " * 50 + "\u2028\u00a0\x85x",
    "",
]


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    write_bytes_tokenizer(tmp_path / "wide" / "tokenizer.json", WIDE)
    return tmp_path / "wide"


def test_cl100k_and_o200k_give_openais_ids() -> None:
    cl100k, o200k = open_tokenizer("cl100k"), open_tokenizer("o200k")
    assert cl100k.encode("hello world").tolist() == [15339, 1917]
    assert o200k.encode("hello world").tolist() == [24912, 2375]
    assert (cl100k.vocabulary, cl100k.end_of_text) == (SIZES["cl100k"], 100_257)
    assert (o200k.vocabulary, o200k.end_of_text) == (SIZES["o200k"], 199_999)
    assert cl100k.ids.dtype == o200k.ids.dtype == np.dtype("<u4")
    for text in HOSTILE:
        assert cl100k.decode([100_257, *cl100k.encode(text).tolist(), 100_270]) == text
        assert cl100k.bytes_of_tokens()[cl100k.encode(text)].sum() == len(text.encode())  # type: ignore[index]


def test_patterns_and_special_tokens_are_tiktokens(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda url, expected_hash: {url: expected_hash})
    for name in openai.DIGESTS:
        theirs = getattr(openai_public, f"{name}_base")()
        assert theirs["pat_str"] == openai.PATTERNS[name] and theirs["special_tokens"] == openai.SPECIAL_TOKENS[name]
        assert theirs["mergeable_ranks"] == {f"{openai.URL}/{name}_base.tiktoken": openai.DIGESTS[name]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cl100k", pytest.param("o200k", marks=pytest.mark.nightly)])
def test_tokenizer_json_of_openais_vocabularies_gives_the_same_ids(tmp_path: Path, name: str) -> None:
    theirs = open_tokenizer(name)
    write_tokenizer(theirs, tmp_path)
    folder = tmp_path / FOLDER
    assert open_folder(folder).record == theirs.record
    (folder / f"{name}.tiktoken").unlink()
    ours = open_folder(folder)
    assert ours.name == "tokenizer.json"
    assert (ours.bos, ours.eos, ours.vocabulary) == (theirs.bos, theirs.eos, theirs.vocabulary)
    for text in [*HOSTILE, Path(openai.__file__).read_text(encoding="utf-8")]:
        assert ours.encode(text).tolist() == theirs.encode(text).tolist()
        assert ours.decode(ours.encode(text)) == text


def test_missing_vocabulary_names_the_package_that_ships_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken.load

    def offline(url: str, expected: str) -> bytes:
        raise OSError(f"no route to {url}")

    monkeypatch.setattr(openai, "package_file", lambda name: None)
    monkeypatch.setattr(tiktoken.load, "read_file_cached", offline)
    with pytest.raises(DataError, match=r"cl100k.*OSError") as caught:
        openai.OpenAiTokenizer("cl100k").encode("a")
    assert openai.PACKAGE in caught.value.fix


def test_damaged_vocabulary_is_refused_by_its_hash(tmp_path: Path) -> None:
    (tmp_path / "cl100k.tiktoken").write_text("IQ== 0\n")
    with pytest.raises(DataError, match=r"cl100k\.tiktoken.*223921b76ee9"):
        open_folder(tmp_path).encode("a")


def test_tokenizer_file_knows_its_ids_bytes_and_end(wide: Path) -> None:
    found = open_tokenizer(str(wide))
    assert found.encode("é").tolist() == [WIDE + byte for byte in "é".encode()]
    assert found.decode([WIDE + 256, *found.encode("é <|endoftext|>").tolist()]) == "é <|endoftext|>"
    sizes = found.bytes_of_tokens()
    assert sizes is not None and sizes[WIDE : WIDE + 257].tolist() == [1] * 256 + [0] and sizes[:WIDE].sum() == 0
    assert (found.vocabulary, found.end_of_text, found.ids.dtype) == (WIDE + 257, WIDE + 256, np.dtype("<u4"))
    assert found.special_tokens == {"<|endoftext|>": WIDE + 256}
    digest = hashlib.sha256((wide / "tokenizer.json").read_bytes()).hexdigest()
    ids = {"vocabulary": WIDE + 257, "end_of_text": WIDE + 256}
    assert found.record == {"name": "tokenizer.json", "vocabulary_sha256": digest, **ids}
    assert tokenizer_size(str(wide)) == tokenizer_size(str(wide / "tokenizer.json")) == WIDE + 257


def test_lone_surrogate_is_encoded_as_the_replacement_character(wide: Path) -> None:
    found = open_tokenizer(str(wide))
    assert found.decode(found.encode("\ud800 x")) == "\ufffd x"


def test_gpt2_keeps_the_record_of_earlier_versions() -> None:
    assert open_tokenizer("gpt2") is GPT2_TOKENIZER and tokenizer_in(Path("nowhere")) is GPT2_TOKENIZER
    assert GPT2_TOKENIZER.record == {"name": "gpt2", "vocabulary_sha256": FILES["vocab.bpe"]}
    assert (GPT2_TOKENIZER.ids.end_of_text, GPT2_TOKENIZER.ids.dtype) == (END_OF_TEXT, np.dtype("<u2"))
    assert GPT2_TOKENIZER.files() == {}


def test_sizes_of_tokenizers_are_known_without_opening_them() -> None:
    assert {name: open_tokenizer(name).vocabulary for name in SIZES} == SIZES
    assert [padded_size(tokens) for tokens in (1, 64, 65, *SIZES.values())] == [64, 64, 128, 50_304, 100_288, 200_064]


@pytest.mark.parametrize(("choice", "named"), [("gpt3", "gpt3"), ("nothing/tokenizer.json", "nothing/tokenizer.json")])
def test_unknown_tokenizer_is_named_with_the_choices(choice: str, named: str) -> None:
    with pytest.raises(UserError, match=rf"data\.tokenizer = '{named}'.*gpt2, cl100k, o200k"):
        open_tokenizer(choice)


def test_tokenizer_without_an_end_cannot_separate_documents(tmp_path: Path) -> None:
    write_bytes_tokenizer(tmp_path / "tokenizer.json", end_name="")
    found = open_tokenizer(str(tmp_path))
    assert found.end_of_text is None
    with pytest.raises(DataError, match=f"tokenizer.json {found.digest[:8]} has no token that ends a text"):
        _ = found.ids
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "!"}')
    assert open_tokenizer(str(tmp_path / "tokenizer.json")).end_of_text is None  # the opened file has not changed
    (tmp_path / "tokenizer.json").touch()
    assert open_tokenizer(str(tmp_path / "tokenizer.json")).end_of_text == ord("!")


def test_folder_of_another_tokenizer_is_refused_by_the_record(wide: Path, tmp_path: Path) -> None:
    found = open_tokenizer(str(wide))
    write_tokenizer(found, tmp_path / "data")
    assert tokenizer_in(tmp_path / "data", found.record).record == found.record
    write_bytes_tokenizer(tmp_path / "data" / FOLDER / "tokenizer.json")
    with pytest.raises(DataError, match="another tokenizer"):
        tokenizer_in(tmp_path / "data", found.record)
    with pytest.raises(DataError, match="missing"):
        tokenizer_in(tmp_path / "elsewhere", found.record)
