"""Losses of blocks of text: those of their tokens, the same blocks for every tokenizer."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regpt.data.shards import TokenWindows
from regpt.data.tokenizer import GPT2_TOKENIZER
from regpt.evaluation.text_losses import blocks_of, text_losses
from regpt.preparation.dataset import prepare
from regpt.tokenization.opening import tokenizer_in
from regpt.tracking.window_losses import BLOCK_BYTES
from tests.conftest import tiny_recipe
from tests.helpers.tokenizers import write_bytes_tokenizer

pytest.importorskip("tokenizers")


def test_token_on_the_border_of_two_blocks_is_divided_by_bytes() -> None:
    sizes, losses = np.array([BLOCK_BYTES - 1, 4, BLOCK_BYTES - 3, 9]), np.array([1.0, 8.0, 2.0, 5.0])
    (first, one), (second, other) = blocks_of(b"x" * (2 * BLOCK_BYTES + 9), sizes, losses)
    assert (one, other) == pytest.approx((1 + 2, 6 + 2)) and first != second


def losses_of(folder: Path, texts: Path, **data: Any) -> tuple[TokenWindows, np.ndarray, Any]:
    recipe = tiny_recipe(
        folder,
        data={"source": str(texts), "validation_tokens": 3_000, **data},
        model={"vocab_size": 0},
    )
    manifest = prepare(recipe)
    windows = TokenWindows(recipe.data.directory, manifest, "val", 32)
    own = tokenizer_in(recipe.data.directory, manifest.tokenizer)
    sizes = own.bytes_of_tokens()
    assert sizes is not None
    targets = windows.rows(range(len(windows)))[:, 1:]
    return windows, sizes[np.minimum(targets, len(sizes) - 1)].astype(np.float32), own  # a nat for each byte


def test_blocks_are_the_same_for_every_tokenizer(tmp_path: Path, texts: Path) -> None:
    write_bytes_tokenizer(tmp_path / "bytes" / "tokenizer.json", 500)
    found = {}
    for name, choice in (("gpt2", "gpt2"), ("bytes", str(tmp_path / "bytes"))):
        windows, losses, own = losses_of(tmp_path / f"of-{name}", texts, tokenizer=choice, shard_tokens=1_000)
        assert len(windows.shards) == 3
        blocks = text_losses(windows, losses, own)
        assert blocks is not None and np.allclose(blocks["nats"], BLOCK_BYTES), "a nat for each byte"
        found[name] = blocks["text"].tolist()
        losses[-1, -1] = np.nan  # a token that does not count
        assert text_losses(windows, losses, own) is None
    assert len(found["bytes"]) == 3 and len(found["gpt2"]) > 9  # of the first shard: the others begin in a document
    assert found["gpt2"][:3] == found["bytes"]


def test_text_of_another_document_has_other_blocks(tmp_path: Path) -> None:
    for name, text in (("one", "same. " * 100), ("two", "Same. " + "same. " * 99)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for _ in range(60)))
    hashes = []
    for name in ("one", "two"):
        windows, losses, own = losses_of(tmp_path / name, tmp_path / f"{name}.jsonl")
        blocks = text_losses(windows, losses, own)
        assert blocks is not None and own is GPT2_TOKENIZER
        hashes.append(set(blocks["text"].tolist()))
    assert hashes[0] and not hashes[0] & hashes[1]
    assert math.isclose(float(blocks["nats"].sum()), len(blocks) * BLOCK_BYTES, rel_tol=1e-6)
