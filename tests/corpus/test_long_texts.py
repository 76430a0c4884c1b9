"""A long text is cut without any effect on its tokens, and in bounded memory."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.corpus import chunks, long_texts
from regpt.corpus.corpora import documents, open_corpus
from regpt.corpus.long_texts import TextStretch, within_document
from regpt.corpus.text_files import FilePart
from regpt.data import tokenizer
from regpt.preparation.encoders import encode_chunk
from regpt.preparation.state import Counts

# Pieces that GPT-2's pre-tokenizer treats differently, white space above all.
PIECES = ["a", "Zz", "22", "'s", "'ll", " ", "  ", "\n", "\r\n", "\t", "日本", "。", "é", "😀", "<", "!", "-", "\x1c"]
PIECES += ["\N{IDEOGRAPHIC SPACE}", "\N{NO-BREAK SPACE}", "\N{LINE SEPARATOR}", "\N{NEXT LINE}", "\N{ZERO WIDTH SPACE}"]


def encoded(path: Path, separator: str, chunk_bytes: int) -> tuple[NDArray[np.uint16], Counts, list[str]]:
    """Return tokens, counts and documents of a file that is read in chunks of this size."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
        patched.setattr(long_texts, "CUT_SEARCH_BYTES", chunk_bytes // 4)
        part = FilePart(path, "text", separator)
        counts, tokens = Counts(), [np.empty(0, dtype=np.uint16)]
        for chunk in part.chunks():
            result = encode_chunk(chunk)
            counts, tokens = counts.plus(result), [*tokens, result.tokens]
        return np.concatenate(tokens), counts, list(documents(part, Counter()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), min_size=30, max_size=300), st.sampled_from(["", "<!", "\n\n"]), st.data())
def test_cuts_change_no_token_and_no_count(
    tmp_path: Path, pieces: list[str], separator: str, data: st.DataObject
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(pieces), encoding="utf-8", newline="")
    whole = encoded(path, separator, 10**9)
    cut = encoded(path, separator, data.draw(st.sampled_from([16, 40, 100])))
    assert whole[0].tolist() == cut[0].tolist()
    assert whole[1:] == cut[1:]


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("one two", 3),
        ("one  two", 3),
        ("一。 二", 6),
        ("a b\N{IDEOGRAPHIC SPACE} c", 1),  # not within a run of white space
        ("a\N{NO-BREAK SPACE}\nb", 0),
        ("<!\n\nb c", 5),  # not directly behind the separator, whose line end may follow
        ("word", 0),
    ],
)
def test_cut_is_before_white_space_that_follows_another_character(text: str, position: int) -> None:
    assert within_document(text.encode() + b"  ", "<!") == position


def test_longest_document_counts_all_its_stretches(tmp_path: Path, real_text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"short<s>{real_text}<s>short", encoding="utf-8")
    tokens, counts, texts = encoded(path, "<s>", 5_000)
    assert counts.longest_document_tokens == 1 + len(tokenizer.encode(real_text))
    assert counts.documents == len(texts) == int((tokens == tokenizer.END_OF_TEXT).sum()) == 3


@pytest.mark.parametrize("separator", ["", "<|endoftext|>"])
def test_stretches_stay_small_in_a_long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1_000)
    (tmp_path / "a.txt").write_text("Once upon a time.\n<|endoftext|>\n" * 10_000)
    (part,) = open_corpus(str(tmp_path), "text", separator).parts
    found = list(part.chunks())
    assert len(found) > 300
    assert all(isinstance(chunk, TextStretch) and len(chunk.content) < 2_100 for chunk in found)
    assert sum(chunk.size for chunk in found) == part.size


def test_stretch_that_cannot_be_encoded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 10_000)
    path = tmp_path / "a.txt"
    path.write_text("words " * 5_000 + " " * 1_000_000 + "x")
    with pytest.raises(DataError, match=r"a\.txt: tiktoken cannot encode a stretch"):
        for chunk in FilePart(path, "text").chunks():
            encode_chunk(chunk)
