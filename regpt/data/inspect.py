"""A data set in words: what it holds, where it came from, and the text of a window."""

from collections.abc import Iterator
from pathlib import Path

from regpt.data import tokenizer
from regpt.data.shards import PREPARATION_FILE, Manifest, Split, TokenWindows, read_json_or_empty, read_manifest

SHARDS_SHOWN = 6  # of each split; a large set has hundreds


def describe(directory: Path, block_size: int) -> Iterator[str]:
    """Lines that say what is in a data set. Raises DataError where it is none."""
    manifest = read_manifest(directory)
    yield f"digest      {manifest.digest}"
    yield f"text        {manifest.source['description']}"
    if "revision" in manifest.source:
        yield f"revision    {manifest.source['repository']} at {manifest.source['revision']}"
    yield f"tokenizer   {manifest.tokenizer['name']}{made_with(manifest)}"
    yield f"splits      {manifest.split_rule}"
    yield from statistics(manifest)
    yield from preparation(directory)
    for split in ("val", "train"):
        yield from shards_of(directory, manifest, split, block_size)


def made_with(manifest: Manifest) -> str:
    made = manifest.made_with
    return f", by {made['tokenizer_backend']} {made['version']}" if made else ""


def statistics(manifest: Manifest) -> Iterator[str]:
    known = manifest.statistics
    yield f"documents   {known['documents']:,}"
    yield f"tokens      {known['tokens']:,}"
    if {"text_bytes", "bytes_per_token", "longest_document_tokens", "refused"} <= known.keys():
        yield f"bytes       {known['text_bytes']:,} of text, {known['bytes_per_token']:.3f} a token"
        yield f"longest     {known['longest_document_tokens']:,} tokens in one document"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in known["refused"].items())
        yield f"left out    {reasons or 'nothing'}"


def preparation(directory: Path) -> Iterator[str]:
    known = read_json_or_empty(directory / PREPARATION_FILE)
    if {"attempts", "seconds", "tokens_per_second"} <= known.keys():
        attempts = f" in {known['attempts']} attempts" if known["attempts"] != 1 else ""
        yield f"prepared    in {known['seconds']} s{attempts}, {known['tokens_per_second']} tokens/s"


def shards_of(directory: Path, manifest: Manifest, split: Split, block_size: int) -> Iterator[str]:
    shards = manifest.of_split(split)
    windows = len(TokenWindows(directory, manifest, split, block_size))
    yield ""
    yield f"{split}: {manifest.tokens(split):,} tokens in {len(shards)} shards, {windows:,} windows of {block_size:,}"
    for shard in shards[:SHARDS_SHOWN]:
        yield f"  {shard.name:<24} {shard.tokens:>13,} tokens  {shard.documents:>9,} documents  {shard.sha256[:12]}…"
    if len(shards) > SHARDS_SHOWN:
        yield f"  … and {len(shards) - SHARDS_SHOWN} more"


def describe_window(directory: Path, split: Split, number: int, block_size: int, as_text: bool) -> Iterator[str]:
    """Lines that say what one window holds. `number` is below the count of windows."""
    windows = TokenWindows(directory, read_manifest(directory), split, block_size)
    shard, first = windows.place(number)
    row = windows.rows([number])[0]
    ends = int((row == tokenizer.END_OF_TEXT).sum())
    yield (
        f"window {number:,} of {len(windows):,} in {split}: {shard.name}, tokens {first:,} to {first + block_size:,};"
        f" {ends} documents begin in it"
    )
    yield tokenizer.decode(row) if as_text else " ".join(map(str, row.tolist()))
