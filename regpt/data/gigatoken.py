"""The same ids, faster: gigatoken, an extra, over the vocabulary that `tokenizer` has checked.

It is held against tiktoken at the beginning of each part. Where tiktoken gives up on a document it is not asked either,
so that both leave out the same ones.
"""

import base64
import importlib.metadata
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.data import tokenizer

# gigatoken keeps every word that it has met (about 80 bytes each, measured), so it is loaded anew now and then.
RENEWED_AFTER_CHARACTERS = 500_000_000

# tiktoken's regular expression gives up on white space of about a million characters that text follows.
TIKTOKEN_MAY_GIVE_UP = 500_000


def version() -> str:
    """Of the installed package. Raises DataError where there is none."""
    try:
        return importlib.metadata.version("gigatoken")
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            "data.tokenizer_backend = 'gigatoken': it is not installed",
            "pip install 'regpt[fast]', or write data.tokenizer_backend=tiktoken",
        ) from None


class Gigatoken:
    """GPT-2's tokenizer in gigatoken. One a process."""

    def __init__(self) -> None:
        self.tokenizer: Any = None
        self.characters = 0

    def encode(self, texts: Sequence[str]) -> Iterator[NDArray[np.integer] | None]:
        """Each text's ids, in order; None where tiktoken would give none."""
        if self.tokenizer is None or self.characters > RENEWED_AFTER_CHARACTERS:
            self.tokenizer, self.characters = load(), 0
        self.characters += sum(map(len, texts))
        try:
            rows = self.tokenizer.encode_batch(list(texts), parallel=False).layout
        except TypeError:  # half a surrogate pair somewhere
            rows = self.tokenizer.encode_batch([tokenizer.without_surrogates(t) for t in texts], parallel=False).layout
        ids, ends = rows.content.data, rows.offsets.data
        for text, begin, end in zip(texts, ends[:-1], ends[1:], strict=True):
            if len(text) > TIKTOKEN_MAY_GIVE_UP and longest_blank(text) > TIKTOKEN_MAY_GIVE_UP:
                yield tokenizer.encode_or_none(text)
            else:
                yield ids[begin:end]


def longest_blank(text: str) -> int:
    """Characters in the longest run of white space."""
    return max((len(run) for run in re.findall(r"\s+", text)), default=0)


def load() -> Any:
    """gigatoken reads a vocabulary from a file of tiktoken's form only, so it gets one, for a moment."""
    import gigatoken

    ranks = tokenizer.encoding()._mergeable_ranks
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in sorted(ranks.items(), key=lambda kv: kv[1]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gpt2.tiktoken"
        path.write_bytes(b"".join(lines))
        return gigatoken.Tokenizer.from_tiktoken(path, pretokenizer="gpt2")
