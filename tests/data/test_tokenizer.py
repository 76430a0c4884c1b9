"""GPT-2's ids, as in the table of its authors."""

from pathlib import Path

import numpy as np
import pytest

from regpt.base.errors import DataError
from regpt.data import tokenizer


def test_tokenizer_gives_known_ids() -> None:
    # The first is the example that the seed lineage samples from; ids from OpenAI's encoder.
    assert tokenizer.encode("Hello, I'm a language model,").tolist() == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert tokenizer.encode("hello world").tolist() == [31373, 995]


def test_tokenizer_decodes_to_the_same_text(real_text: str) -> None:
    for text in (real_text, "emoji 🙂 and ß", "\x00\t\r\n", " "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_encodes_literal_end_of_text_as_text() -> None:
    ids = tokenizer.encode_or_none("before <|endoftext|> after")
    assert ids is not None
    assert not np.any(ids == tokenizer.END_OF_TEXT)
    assert tokenizer.decode(ids) == "before <|endoftext|> after"


def test_tokenizer_gives_none_for_texts_tiktoken_cannot_encode() -> None:
    assert tokenizer.encode_or_none(" " * 1_000_000 + "x") is None
    assert tokenizer.decode(tokenizer.encode("\ud800 lone surrogate")) == "\ufffd lone surrogate"


def test_tokenizer_encodes_a_long_run_of_one_letter() -> None:
    """In quadratic time, as before tiktoken 0.13, this would take hours and run into the timeout of a test."""
    ids = tokenizer.encode("a" * 2_000_000)
    assert tokenizer.decode(ids) == "a" * 2_000_000


def test_vocabulary_file_with_wrong_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tokenizer.package_folder()
    assert real is not None, "the data package is not installed; see data-packages.txt"
    for name in tokenizer.FILES:
        (tmp_path / name).write_bytes((real / name).read_bytes())
    (tmp_path / "vocab.bpe").write_bytes((tmp_path / "vocab.bpe").read_bytes()[:-1] + b"x")
    monkeypatch.setattr(tokenizer, "package_folder", lambda: tmp_path)
    tokenizer.encoding.cache_clear()
    try:
        with pytest.raises(DataError, match=r"vocab\.bpe: not GPT-2's"):
            tokenizer.encoding()
    finally:
        tokenizer.encoding.cache_clear()
