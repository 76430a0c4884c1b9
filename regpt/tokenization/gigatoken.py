"""gigatoken, an optional faster encoder, with the vocabulary that `tokenizer` has checked.

A preparation compares it with tiktoken at the start of each part. Documents that tiktoken cannot encode are left out
here too, so that both give the same dataset.
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
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer

# gigatoken caches every word (about 80 bytes each, measured), so it is reloaded from time to time.
RELOAD_AFTER_CHARACTERS = 500_000_000

# tiktoken's regular expression fails on white space of about a million characters followed by text.
TIKTOKEN_MAY_FAIL = 500_000


def version() -> str:
    """Return the version of the installed package. Raise DataError if it is not installed."""
    try:
        return importlib.metadata.version("gigatoken")
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            "data.tokenizer_backend = 'gigatoken': the package gigatoken is not installed",
            "pip install 'regpt[fast]', or set data.tokenizer_backend=tiktoken",
        ) from None


class Gigatoken:
    """A tokenizer of OpenAI in gigatoken. Use one per process."""

    def __init__(self, reference: Tokenizer = GPT2_TOKENIZER) -> None:
        """`reference` is the same tokenizer in tiktoken."""
        self.reference = reference
        self.tokenizer: Any = None
        self.characters = 0

    def encode(self, texts: Sequence[str]) -> Iterator[NDArray[np.integer] | None]:
        """Yield each text's ids, in order; None for a text that tiktoken cannot encode."""
        if self.tokenizer is None or self.characters > RELOAD_AFTER_CHARACTERS:
            self.tokenizer, self.characters = load(self.reference), 0
        self.characters += sum(map(len, texts))
        try:
            rows = self.tokenizer.encode_batch(list(texts), parallel=False).layout
        except TypeError:  # a lone surrogate
            rows = self.tokenizer.encode_batch([tokenizer.without_surrogates(t) for t in texts], parallel=False).layout
        ids, ends = rows.content.data, rows.offsets.data
        for text, begin, end in zip(texts, ends[:-1], ends[1:], strict=True):
            if len(text) > TIKTOKEN_MAY_FAIL and longest_whitespace(text) > TIKTOKEN_MAY_FAIL:
                yield self.reference.encode_or_none(text)
            else:
                yield ids[begin:end]


def longest_whitespace(text: str) -> int:
    """Return the number of characters in the longest run of white space."""
    return max((len(run) for run in re.findall(r"\s+", text)), default=0)


def load(reference: Tokenizer) -> Any:
    """Load gigatoken with a vocabulary, written to a temporary file because it reads only tiktoken's format."""
    import gigatoken

    encoding: Any = tokenizer.encoding() if reference is GPT2_TOKENIZER else getattr(reference, "encoding")  # noqa: B009
    ranks = encoding._mergeable_ranks
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in sorted(ranks.items(), key=lambda kv: kv[1]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{reference.name}.tiktoken"
        path.write_bytes(b"".join(lines))
        return gigatoken.Tokenizer.from_tiktoken(path, pretokenizer=reference.name)
