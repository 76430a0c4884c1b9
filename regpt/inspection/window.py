"""Description of one window of a dataset: its place, and its tokens or its text."""

from collections.abc import Iterator
from pathlib import Path

from regpt.data.shards import Split, TokenWindows, read_manifest
from regpt.data.tokenizer import text_with_ends
from regpt.tokenization.opening import tokenizer_in


def describe_window(directory: Path, split: Split, number: int, block_size: int, as_text: bool) -> Iterator[str]:
    """Yield lines that describe one window, and its tokens or its text. Raise DataError if `number` is out of range."""
    manifest = read_manifest(directory)
    block_size = manifest.row_tokens or block_size
    windows = TokenWindows(directory, manifest, split, block_size)
    shard, first = windows.place(number)
    row = windows.rows([number])[0]
    ends = int((row == manifest.vocabulary.end_of_text).sum())
    yield (
        f"window {number:,} of {len(windows):,} in {split}: {shard.name}, tokens {first:,} to {first + block_size:,};"
        f" {ends} documents start in it"
    )
    tokenizer = tokenizer_in(directory, manifest.tokenizer)
    yield text_with_ends(row, tokenizer) if as_text else " ".join(map(str, row.tolist()))
