"""Description of a dataset for `regpt data show`: its contents and its origin."""

from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

from regpt.data.shards import PREPARATION_FILE, Manifest, Split, TokenWindows, read_json_or_empty, read_manifest
from regpt.data.tokenizer import END_OF_TEXT_NAME, GPT2_VOCABULARY, describe_tokenizer
from regpt.data.validation_split import describe_warning
from regpt.inspection.documents import list_largest
from regpt.inspection.duplicate_record import describe_duplicates, remedy, stored_duplicates

INDENT = " " * 12
NO_SUFFIX = "without a suffix"
SHARDS_SHOWN = 6  # per split; a large dataset has hundreds


def describe(directory: Path, block_size: int, width: int) -> Iterator[str]:
    """Yield lines that describe a dataset. Raise DataError if `directory` is not one.

    Longer lines than `width` characters are broken; the first words of documents are cut.
    """
    manifest = read_manifest(directory)
    for text in origin_lines(directory, manifest):
        yield from wrap(text, width, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)
    for split in ("val", "train"):
        yield from shard_lines(directory, manifest, split, manifest.row_tokens or block_size)
    yield ""
    yield from list_largest(directory, manifest, width)


def origin_lines(directory: Path, manifest: Manifest) -> Iterator[str]:
    yield f"digest      {manifest.digest}"
    yield f"text        {manifest.source['description']}"
    if "revision" in manifest.source:
        yield f"revision    {manifest.source['repository']} at {manifest.source['revision']}"
    yield f"tokenizer   {describe_tokenizer(manifest.tokenizer)}{ids(manifest)}{backend(manifest)}"
    yield f"splits      {manifest.split_rule}"
    for warning in manifest.validation.warnings():
        yield f"warning     {describe_warning(manifest.validation, warning)}"
    if duplicates := stored_duplicates(directory, manifest):
        yield f"duplicates  {describe_duplicates(duplicates)}"
        if advice := remedy(duplicates):
            yield f"warning     {advice}"
    yield from statistics_lines(manifest)
    yield from preparation_lines(directory)


def ids(manifest: Manifest) -> str:
    """Return the number of token ids and their type; nothing for GPT-2's, which are known."""
    vocabulary = manifest.vocabulary
    return "" if vocabulary == GPT2_VOCABULARY else f", {vocabulary.size:,} tokens, {vocabulary.dtype.name}"


def backend(manifest: Manifest) -> str:
    made = manifest.made_with
    return f", by {made['tokenizer_backend']} {made['version']}" if made else ""


def statistics_lines(manifest: Manifest) -> Iterator[str]:
    known = manifest.statistics
    yield f"documents   {known['documents']:,}"
    yield f"tokens      {known['tokens']:,}"
    if {"text_bytes", "bytes_per_token", "longest_document_tokens", "refused"} <= known.keys():
        yield f"bytes       {known['text_bytes']:,} of text, {known['bytes_per_token']:.3f} per token"
        yield f"longest     {known['longest_document_tokens']:,} tokens in one document"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in known["refused"].items())
        yield f"left out    {reasons or 'nothing'}"
        for reason, names in known.get("refused_in", {}).items():
            yield f"{INDENT}{reason}: first in {', '.join(names)}"
    if left_out := manifest.source.get("files_left_out"):
        yield f"not read    {', '.join(f'{count:,} {suffix or NO_SUFFIX}' for suffix, count in left_out.items())}"
    if counted := known.get("counted_tokens"):
        yield (
            f"loss mask   {counted:,} tokens count; rows of {manifest.row_tokens:,} with"
            f" {known['padding_tokens']:,} tokens of padding; {known['cut']:,} conversations cut"
        )
    if marks := known.get("end_marks"):
        yield f"end marks   {END_OF_TEXT_NAME} as text, encoded as ordinary characters: {marks:,}"


def preparation_lines(directory: Path) -> Iterator[str]:
    known = read_json_or_empty(directory / PREPARATION_FILE)
    if {"attempts", "seconds", "tokens_per_second"} <= known.keys():
        attempts = f" in {known['attempts']} attempts" if known["attempts"] != 1 else ""
        yield f"prepared    in {known['seconds']:,} s{attempts}, {known['tokens_per_second']:,} tokens/s"


def shard_lines(directory: Path, manifest: Manifest, split: Split, block_size: int) -> Iterator[str]:
    shards = manifest.of_split(split)
    windows = len(TokenWindows(directory, manifest, split, block_size))
    yield ""
    yield f"{split}: {manifest.tokens(split):,} tokens in {len(shards)} shards, {windows:,} windows of {block_size:,}"
    for shard in shards[:SHARDS_SHOWN]:
        yield f"  {shard.name:<22} {shard.tokens:>13,} tokens {shard.documents:>9,} documents  {shard.sha256[:8]}…"
    if len(shards) > SHARDS_SHOWN:
        yield f"  … and {len(shards) - SHARDS_SHOWN} more"
