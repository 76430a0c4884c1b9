"""Statistics of both sides of a split: lengths of documents, entropies of tokens and pairs, distance of the sides.

All entropies are in nats per token, so they compare with a loss. They are baselines: a model that has learned more than
frequencies has a lower validation loss than `unigram_cross_entropy`, and more than pairs, than `bigram_cross_entropy`.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError, UserError
from regpt.base.files import write_json
from regpt.data import tokenizer
from regpt.data.formats import opened
from regpt.data.shards import PREPARE_AGAIN, Manifest, Shard, Split, check_shard, outside, read_json_or_empty
from regpt.data.tokenizer import GPT2_VOCABULARY

STATISTICS_FILE = "statistics.json"  # next to the manifest; not part of the digest
MOST_SAMPLED = {"train": 8_000_000, "val": 2_000_000}  # tokens; about a second of one core
STRETCH = 1 << 16  # consecutive tokens of a sample
BLOCK = 1 << 10  # tokens; two parts of the training sample take turns of this length

T = TypeVar("T")
Tokens = NDArray[np.integer]
Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SideStatistics:
    """One side of a split. Its entropies, its bytes and its median document are those of `sampled_tokens` tokens."""

    tokens: int
    documents: int  # that start on this side
    mean_document: float  # tokens, with the end token; 0: no document starts
    median_document: float  # the same; of the part that is on this side
    sampled_tokens: int
    bytes_per_token: float  # of text; 0: unknown
    entropy: float  # of the token frequencies
    conditional_entropy: float  # of a token given the one before it, from the frequencies of pairs

    # The plug-in estimate of the conditional entropy is biased low, strongly so for small texts: most pairs are seen
    # once, and then their second token looks certain. `bigram_cross_entropy` has no such bias.


@dataclass(frozen=True, kw_only=True)
class TokenStatistics:
    """Statistics of both sides of a split, and how far one is from the other.

    Samples of the same text have a divergence too, which depends on their lengths. So the part of training is about as
    long as validation (at most half of the sample), and both are compared with the rest of training.
    """

    train: SideStatistics
    validation: SideStatistics
    unigram_cross_entropy: float  # of validation under training's token frequencies, add-one smoothing
    bigram_cross_entropy: float  # of validation under training's frequencies of pairs; see `bigram_cross_entropy`
    divergence: float  # Jensen-Shannon, of the token frequencies of both sides; at most ln 2
    divergence_within_training: float  # the same, with a part of training in the place of validation

    @staticmethod
    def from_json(values: Any) -> "TokenStatistics":
        """Build from what a file stores; further entries are ignored. Raise ValueError if it is not a record."""
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        sides = {name: record(SideStatistics, values.get(name)) for name in ("train", "validation")}
        return record(TokenStatistics, values, **sides)

    def to_json(self) -> dict[str, Any]:
        """Return what a file stores."""
        return asdict(self)


def record(kind: type[T], values: Any, **given: Any) -> T:
    """Build a record of numbers. Raise ValueError where one is missing, no number or not finite."""
    for entry in fields(kind):  # type: ignore[arg-type]
        if entry.name not in given:
            value = values.get(entry.name) if isinstance(values, dict) else None
            is_number = type(value) is int or (entry.type is float and type(value) is float)
            if not is_number or not np.isfinite(value):  # type: ignore[arg-type]
                raise ValueError(f"{entry.name} is {value!r}")
            given[entry.name] = value
    return kind(**given)


def statistics_of(directory: Path, manifest: Manifest) -> TokenStatistics | None:
    """Return the stored statistics of a dataset. Measure them if they are missing, and store them if possible.

    None if a shard cannot be read, which training reports, or if a side has fewer than two tokens.
    """
    known = read_json_or_empty(directory / STATISTICS_FILE)
    with contextlib.suppress(ValueError):
        if known.get("digest") == manifest.digest:
            return TokenStatistics.from_json(known)
    measured = None
    with contextlib.suppress(OSError, UserError):
        measured = measure(directory, manifest)
        write_statistics(directory, manifest, measured)
    return measured


def write_statistics(directory: Path, manifest: Manifest, measured: TokenStatistics | None) -> None:
    """Store the statistics in the folder of the dataset, with its digest."""
    if measured:
        write_json(directory / STATISTICS_FILE, {"digest": manifest.digest, **measured.to_json()})


def measure(directory: Path, manifest: Manifest, sizes: Counts | None = None) -> TokenStatistics | None:
    """Measure a dataset from a sample of at most ten million tokens; None if a side has fewer than two.

    `sizes` are each token's bytes of text, by default GPT-2's. Raise DataError if a shard is not that of the manifest.
    """
    if min(manifest.tokens("train"), manifest.tokens("val")) < 2:
        return None
    V = manifest.vocabulary.size
    training, validation = sample(directory, manifest, "train"), sample(directory, manifest, "val")
    frequencies, of_validation = token_counts(training, V), token_counts(validation, V)
    pairs, pairs_of_validation = pair_counts(training, V), pair_counts(validation, V)
    part, rest = two_parts(np.concatenate(training), sum(map(len, validation)))
    return TokenStatistics(
        train=side(manifest, "train", training, frequencies, pairs, sizes),
        validation=side(manifest, "val", validation, of_validation, pairs_of_validation, sizes),
        unigram_cross_entropy=unigram_cross_entropy(frequencies, of_validation),
        bigram_cross_entropy=bigram_cross_entropy(frequencies, pairs, pairs_of_validation),
        divergence=jensen_shannon(token_counts([rest], V), of_validation),
        divergence_within_training=jensen_shannon(token_counts([rest], V), token_counts([part], V)),
    )


def side(
    manifest: Manifest, split: Split, sampled: list[Tokens], counts: Counts, pairs: "Pairs", sizes: Counts | None
) -> SideStatistics:
    shards = manifest.of_split(split)
    tokens, documents = manifest.tokens(split), sum(shard.documents for shard in shards)
    number = int(counts.sum())
    end = manifest.vocabulary.end_of_text
    lengths = np.concatenate([document_tokens(stretch, number == tokens, end) for stretch in sampled])
    return SideStatistics(
        tokens=tokens,
        documents=documents,
        mean_document=tokens / documents if documents else 0.0,
        median_document=float(np.median(lengths)) if len(lengths) else 0.0,
        sampled_tokens=number,
        bytes_per_token=bytes_per_token(manifest, counts, sizes),
        entropy=entropy(counts),
        conditional_entropy=conditional_entropy(pairs),
    )


# The sample


def sample(directory: Path, manifest: Manifest, split: Split) -> list[Tokens]:
    """Read a side in one piece, or, if it is longer than the sample may be, evenly spaced stretches of its shards."""
    shards = manifest.of_split(split)
    total, most = sum(shard.tokens for shard in shards), MOST_SAMPLED[shards[0].split]
    number = max(1, most // STRETCH)
    wanted = np.arange(number, dtype=np.int64) * total // number
    sampled, before = [], 0
    for shard in shards:
        here = wanted[(wanted >= before) & (wanted < before + shard.tokens)] - before
        if total <= most:
            sampled += read_stretches(directory, manifest, shard, [0], shard.tokens)
        elif len(here):
            sampled += read_stretches(directory, manifest, shard, here.tolist(), STRETCH)
        before += shard.tokens
    return [np.concatenate(sampled)] if total <= most else sampled


def read_stretches(directory: Path, manifest: Manifest, shard: Shard, starts: list[int], tokens: int) -> list[Tokens]:
    """Read at most `tokens` tokens from each start. Raise DataError if the file does not hold them."""
    path, dtype = directory / shard.name, manifest.vocabulary.dtype
    header_bytes = check_shard(path, shard, dtype)
    read = []
    with opened(path) as file:
        for start in starts:
            file.seek(header_bytes + start * dtype.itemsize)
            wanted = dtype.itemsize * min(tokens, shard.tokens - start)
            content = file.read(wanted)
            if len(content) != wanted:
                raise DataError(f"{path}: truncated while in use", PREPARE_AGAIN)
            read.append(np.frombuffer(content, dtype=dtype))
            if wanted and int(read[-1].max()) >= manifest.vocabulary.size:
                raise outside(path, int(read[-1].max()), manifest)
    return read


def document_tokens(stretch: Tokens, is_whole: bool, end: int = tokenizer.END_OF_TEXT) -> Counts:
    """Return the tokens of each document that starts in a stretch; the last may be cut, and then counts as it is.

    If the stretch is a part of more, only the documents of its first half count. So none of less than half a stretch
    is cut, and the median is right if it is shorter than that.
    """
    starts = np.flatnonzero(stretch == end)
    lengths = np.diff(starts, append=len(stretch))
    return lengths if is_whole else lengths[starts < len(stretch) // 2]


def two_parts(tokens: Tokens, wanted: int) -> tuple[Tokens, Tokens]:
    """Divide tokens into a part of about `wanted` tokens, at most half, and the rest; both are from everywhere."""
    turns = max(2, round(len(tokens) / wanted))
    block = max(1, min(BLOCK, len(tokens) // (8 * turns)))
    of_part = np.repeat(np.arange(-(-len(tokens) // block)) % turns == 0, block)[: len(tokens)]
    return tokens[of_part], tokens[~of_part]


def bytes_per_token(manifest: Manifest, counts: Counts, sizes: Counts | None) -> float:
    """Return the bytes of text per token: of the sample, or of all text where those of the tokens are not known."""
    if sizes is None and manifest.vocabulary == GPT2_VOCABULARY and tokenizer.package_folder() is not None:
        sizes = tokenizer.bytes_of_tokens()
    known = float(manifest.statistics.get("bytes_per_token", 0.0))
    return known if sizes is None else float(counts @ sizes[: len(counts)] / counts.sum())


# Frequencies


@dataclass(frozen=True)
class Pairs:
    """The different pairs of neighboring tokens, in order, and how often each occurs."""

    codes: NDArray[np.unsignedinteger]  # first token * vocabulary + second token
    counts: Counts
    vocabulary: int = tokenizer.VOCABULARY

    @property
    def first(self) -> Counts:
        return (self.codes // self.vocabulary).astype(np.int64)

    @property
    def second(self) -> Counts:
        return (self.codes % self.vocabulary).astype(np.int64)

    def count(self, codes: NDArray[np.unsignedinteger]) -> Counts:
        """Return how often each of the given pairs occurs."""
        if not len(self.codes):
            return np.zeros(len(codes), dtype=np.int64)
        places = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[places] == codes, self.counts[places], 0)


def token_counts(stretches: Sequence[Tokens], vocabulary: int = tokenizer.VOCABULARY) -> Counts:
    """Return the number of occurrences of each token.  -> (vocabulary)"""
    return np.sum([np.bincount(stretch, minlength=vocabulary) for stretch in stretches], axis=0)


def pair_counts(stretches: Sequence[Tokens], vocabulary: int = tokenizer.VOCABULARY) -> Pairs:
    """Count the pairs of neighbors; none crosses the border of two stretches."""
    dtype: Any = np.uint32 if vocabulary <= 1 << 16 else np.uint64
    codes = [one[:-1].astype(dtype) * dtype(vocabulary) + one[1:] for one in stretches]
    return Pairs(*np.unique(np.concatenate(codes), return_counts=True), vocabulary)


def entropy(counts: NDArray[Any]) -> float:
    """Return the entropy of frequencies in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def conditional_entropy(pairs: Pairs) -> float:
    """Return the plug-in entropy of the second token given the first, in nats; biased low for small texts."""
    of_first = np.bincount(pairs.first, weights=pairs.counts, minlength=pairs.vocabulary)
    return max(0.0, entropy(pairs.counts) - entropy(of_first)) if len(pairs.codes) else 0.0


def smoothed(counts: Counts) -> NDArray[np.float64]:
    """Return the probability of each token with one occurrence added to each."""
    return (counts + 1.0) / (counts.sum() + len(counts))


def unigram_cross_entropy(training: Counts, validation: Counts) -> float:
    """Return the cross-entropy of validation under training's smoothed token frequencies, in nats per token."""
    return float(-(validation * np.log(smoothed(training))).sum() / validation.sum())


def bigram_cross_entropy(frequencies: Counts, training: Pairs, validation: Pairs) -> float:
    """Return the cross-entropy of validation under training's frequencies of pairs, in nats per token.

    They are interpolated with the smoothed token frequencies by the rule of Witten and Bell (method C, 1991): the
    weight of the token frequencies is k / (n + k) after a token seen n times with k different followers.
    """
    if not len(validation.codes):
        return 0.0
    first, second = validation.first, validation.second
    seen = np.bincount(training.first, weights=training.counts, minlength=training.vocabulary)[first]
    followers = np.bincount(training.first, minlength=training.vocabulary)[first]
    alone = smoothed(frequencies)[second]
    joint = training.count(validation.codes) + followers * alone
    probability = np.where(seen > 0, joint / np.maximum(1, seen + followers), alone)
    return float(-(validation.counts * np.log(probability)).sum() / validation.counts.sum())


def jensen_shannon(one: Counts, other: Counts) -> float:
    """Return the Jensen-Shannon divergence of two frequencies in nats (Lin 1991), the square of SciPy's distance."""
    p, q = one / one.sum(), other / other.sum()
    return max(0.0, entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2)
