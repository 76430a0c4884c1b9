"""Lines of `regpt data show --duplicates`: the cost of a search before it starts, and its result."""

from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

from regpt.base.format import byte_size, duration, percent, short_count
from regpt.data.shards import Manifest, Split
from regpt.inspection.documents import beginning_at, first_words, fitting
from regpt.inspection.duplicate_record import NEAR, OVERLAP, SplitDuplicates, remedy
from regpt.inspection.duplicates import Findings, Match, Search
from regpt.inspection.shingles import SHINGLE

MOST_LISTED = {"train": 10, "val": 5}  # pairs
HEADING = f"  {'document':>10} {'contained':>9}  {'document':>11} {'at token':>14}  first words"


def describe_cost(search: Search, manifest: Manifest) -> str:
    """Say what a search reads, and the most memory that it needs."""
    return (
        f"reading {short_count(manifest.tokens('train'))} training tokens once and"
        f" {short_count(manifest.tokens('val'))} validation tokens twice, with at most {byte_size(search.memory)} of"
        " memory"
    )


def describe_seconds(seconds: float) -> str:
    return f"about {duration(seconds)}, by the speed of the first pieces"


def describe_findings(directory: Path, manifest: Manifest, found: Findings, width: int) -> Iterator[str]:
    """Yield the counts of each kind, the documents that have most in common, and what to do."""
    record = found.record
    yield f"  {'validation documents':<24} {'number':>9} {'tokens':>12} {'share':>8}"
    yield row("all", record.validation_documents, record.validation_tokens, record)
    yield row("same tokens", record.exact_documents, record.exact_tokens, record)
    yield row("near-duplicates", record.near_documents, record.near_tokens, record)
    yield row("overlap", record.overlapping_documents, record.overlapping_tokens, record)
    yield row("repeated text", record.repeated_documents, record.repeated_tokens, record)
    yield row("twice in validation", record.within_documents, record.within_tokens, record)
    yield ""
    yield from wrap(explanation(found), width)
    yield from pairs(directory, manifest, found.across, "train", width)
    yield from pairs(directory, manifest, found.within, "val", width)
    if advice := remedy(record):
        yield ""
        yield from wrap(f"warning: {advice}.", width)


def row(name: str, documents: int, tokens: int, record: SplitDuplicates) -> str:
    return f"  {name:<24} {documents:>9,} {tokens:>12,} {percent(record.share_of(tokens)):>8}"


def explanation(found: Findings) -> str:
    return (
        f"A shingle is {SHINGLE} tokens in a row. A near-duplicate has at least {percent(NEAR)} of its shingles in one"
        f" training document, an overlap {percent(OVERLAP)} to {percent(NEAR)}. Shingles that more than"
        f" {found.most_frequent} validation documents have are repeated text, such as a licence, and count for neither."
        f" Anywhere in training: {percent(found.record.shared_shingles)} of the shingles of validation."
    )


def pairs(directory: Path, manifest: Manifest, found: list[Match], split: Split, width: int) -> Iterator[str]:
    if not found:
        return
    shown, words = found[: MOST_LISTED[split]], first_words(directory, manifest)
    yield ""
    yield f"  {'validation':>10} {'':>9}  {'training' if split == 'train' else 'validation':>11}"
    yield HEADING
    for match in shown:
        start = (
            f"  {match.validation:>10,} {percent(match.containment):>9}  {match.other:>11,} {match.other_start:>14,}  "
        )
        beginning = beginning_at(directory, manifest, "val", match.start)
        yield start + fitting(words(beginning), width - len(start))
    if len(found) > len(shown):
        yield f"  {f'{len(found) - len(shown):,} more':>10}"
