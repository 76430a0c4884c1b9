"""A data set in the making: encoded in order, cut into shards, hashed, and named only when whole.

The work lies in a hidden folder beside `data.path` until it is done. Every second or so it is written down how far it
is, so a preparation that was stopped or killed goes on from there, and gives the same bytes as one that ran through.
"""

import contextlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError
from regpt.base.files import flush_directory, sha256_of_json, write_json
from regpt.base.recipe import Recipe
from regpt.data import gigatoken, tokenizer
from regpt.data.formats import DTYPE
from regpt.data.shards import Manifest, Shard, check_fits, gpt2_tokenizer_record, read_manifest
from regpt.prepare.corpora import Corpus
from regpt.prepare.encoders import Encoders, Work, workers_for
from regpt.prepare.hub import HubCorpus
from regpt.prepare.progress import PreparationProgress
from regpt.prepare.shard_writer import ShardWriter, Written
from regpt.prepare.state import Position

SAVE_EVERY_SECONDS = 1.0
SAVING_SHARE = 0.05  # of the time, at most: on a slow disk it is written down less often how far the work is
PROGRESS = "progress.json"
PREPARATION = "preparation.json"  # how it went: what may differ between two makings of one data set
BYTES_OF_TEXT_PER_TOKEN = 4.2  # at least, for English; FineWeb has 4.5
SPARE = 1.05  # of the space that is reckoned
WORTH_SAYING_BYTES = 1_000_000_000  # of input: from here on the console says how much space it will take


def folder_in_the_making(target: Path) -> Path:
    return target.with_name(f".{target.name}.preparing")


def made_with(recipe: Recipe) -> dict[str, Any]:
    """The program that encodes, and its version."""
    import tiktoken

    if recipe.data.tokenizer_backend == "gigatoken":
        return {"tokenizer_backend": "gigatoken", "version": gigatoken.version()}
    return {"tokenizer_backend": "tiktoken", "version": tiktoken.__version__}


class Preparation:
    """One data set in the making."""

    def __init__(self, recipe: Recipe, progress: PreparationProgress, open_corpus: Callable[[], Corpus]) -> None:
        self.recipe, self.progress, self.open_corpus = recipe, progress, open_corpus
        self.target = recipe.data.directory
        self.folder = folder_in_the_making(self.target)

    def run(self) -> tuple[Manifest, float]:
        """Returns the manifest, and the seconds that all attempts took together."""
        self.position = Position()
        try:
            if not self.is_sealed():
                self.make()
        except TooSmall:
            self.discard()
            raise
        except BaseException:
            if not self.holds_anything():
                self.discard()
            raise
        manifest = read_manifest(self.folder)
        self.publish(manifest)
        return manifest, self.position.seconds

    def make(self) -> None:
        """Everything up to a sealed data set that has not got its name yet."""
        tokenizer.check_vocabulary()  # before any work is done
        made = made_with(self.recipe)
        corpus = self.open_corpus()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.identity = sha256_of_json([corpus.fingerprint(), made, self.asked()])
        self.position = self.position_before()
        self.seal(self.manifest_of(corpus, made, self.encode_all(corpus)))

    def holds_anything(self) -> bool:
        """Whether another attempt would find something done: fetched files, pieces, or tokens."""
        if self.folder.is_dir() and any(path.is_dir() for path in self.folder.iterdir()):
            return True
        return bool(read_json(self.folder / PROGRESS).get("counts", {}).get("tokens"))

    def discard(self) -> None:
        """Leave nothing behind but a cluster's pieces, which other settings can use, and what was fetched for now."""
        if not self.folder.is_dir():
            return
        self.remove_all_but(set())
        shutil.rmtree(self.folder / "raw", ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def encode_all(self, corpus: Corpus) -> tuple[Shard, ...]:
        """Encode what is not encoded yet; returns the shards."""
        writer = self.open_writer()
        for part in corpus.parts[: self.position.part]:
            part.cleanup()  # a kill may have come before it
        started_at, before = time.monotonic(), self.position.seconds
        size = corpus.size
        workers = workers_for(self.recipe.data.workers, size)
        self.progress.started(corpus.description, size, workers)
        if self.position.done:
            self.progress.resumed(self.position.done, self.position.counts.tokens)
        save_at = started_at + SAVE_EVERY_SECONDS
        between_sections = True  # what is written and how far it is said to be belong together
        try:
            with Encoders(workers, self.recipe.data.tokenizer_backend) as encoders:
                work = self.work(corpus)
                for piece, encoded in encoders.encode(work, self.progress):
                    if encoded is not None and piece.section is not None:
                        between_sections = False
                        writer.add(encoded.tokens)
                        self.position = self.position.after(piece.section.size, encoded)
                        between_sections = True
                        self.progress.advanced(piece.section.size, len(encoded.tokens), encoded.text_bytes)
                    else:
                        piece.part.check_readable(
                            self.position.of_part.documents, Counter(self.position.of_part.refused)
                        )
                        self.position = self.position.after_part(piece.part.size)
                    now = time.monotonic()
                    self.position = replace(self.position, seconds=before + now - started_at)
                    if now > save_at or (encoded is None and isinstance(corpus, HubCorpus)):
                        self.save(writer)
                        took = time.monotonic() - now
                        save_at = time.monotonic() + max(SAVE_EVERY_SECONDS, took / SAVING_SHARE)
                    if encoded is None:
                        piece.part.cleanup()
                        self.check_space(corpus, size)
            between_sections = False
            return tuple(writer.finish())
        except BaseException:
            if between_sections:
                self.save(writer)  # else what was saved last is right, and the shards are cut back to it
            raise
        finally:
            writer.close()

    def work(self, corpus: Corpus) -> Iterator[Work]:
        """The sections that are not written yet, and a mark after each part."""
        first, skipped = self.position.part, self.position.section
        self.check_space(corpus, corpus.size)
        for part in corpus.fetched(range(first, len(corpus.parts)), self.progress):
            for number, section in enumerate(part.chunks()):
                if number >= skipped:
                    yield Work(part, section, begins_part=number == 0)
            yield Work(part, None)
            skipped = 0

    # Going on where it was

    def asked(self) -> dict[str, Any]:
        """The settings that change what is written."""
        data = self.recipe.data
        return {
            "source": data.source,
            "revision": data.revision,
            "validation_tokens": data.validation_tokens,
            "shard_tokens": data.shard_tokens,
            "text_column": data.text_column,
            "tokenizer": gpt2_tokenizer_record(),
        }

    def position_before(self) -> Position:
        """Where an earlier attempt at the same data set stands; the beginning where there was none."""
        path = self.folder / PROGRESS
        if not path.exists():
            return self.begin_anew()
        values = read_json(path)
        try:
            if values.pop("identity") != self.identity:
                self.progress.note("the text or the settings have changed since an earlier attempt; beginning anew")
                return self.begin_anew()
            position = Position.from_json(values)
        except (KeyError, TypeError, AttributeError):
            self.progress.note(f"{path} cannot be read; beginning anew")
            return self.begin_anew()
        return replace(position, attempts=position.attempts + 1)

    def open_writer(self) -> ShardWriter:
        data = self.recipe.data
        try:
            writer = ShardWriter(self.folder, data.validation_tokens, data.shard_tokens, self.position.written)
        except DataError as error:
            self.progress.note(f"{error.problem}; beginning anew")
            self.position = self.begin_anew()
            writer = ShardWriter(self.folder, data.validation_tokens, data.shard_tokens, Written())
        self.save(writer)
        return writer

    def begin_anew(self) -> Position:
        self.remove_all_but(set())
        return Position()

    def remove_all_but(self, names: set[str]) -> None:
        """Remove what else lies in the folder, but for fetched files and pieces, which have folders of their own."""
        for path in self.folder.iterdir():
            if path.is_file() and path.name not in names:
                path.unlink()

    def save(self, writer: ShardWriter) -> None:
        """Put what is written on the disk, and then how far it is."""
        self.position = replace(self.position, written=writer.flush())
        values = {"identity": self.identity, **asdict(self.position)}
        write_json(self.folder / PROGRESS, values)

    def check_space(self, corpus: Corpus, size: int) -> None:
        """Whether what is still to be written will find room. Raises DataError with the numbers."""
        position = self.position
        if position.done:  # from now on only for the next part: what comes later may be packed otherwise
            following = corpus.parts[position.part : position.part + 1]
            tokens_left = sum(part.likely_text_bytes for part in following) / BYTES_OF_TEXT_PER_TOKEN
        else:
            tokens_left = corpus.likely_text_bytes / BYTES_OF_TEXT_PER_TOKEN
        shards = round(DTYPE.itemsize * tokens_left * SPARE)
        raw = corpus.bytes_to_fetch(position.part)
        free = shutil.disk_usage(self.folder).free
        if position.done == 0 and size > WORTH_SAYING_BYTES:
            fetched = f" and {gigabytes(raw)} of fetched files at a time" if raw else ""
            self.progress.note(f"about {gigabytes(shards)} of shards{fetched} to come; {gigabytes(free)} are free")
        if shards + raw > free:
            raise DataError(
                f"{self.folder.parent}: {gigabytes(free)} are free, about {gigabytes(shards + raw)} are needed"
                f" ({gigabytes(shards)} of shards, {gigabytes(raw)} of fetched files)",
                "make room, or name another data.path" + ("; what was done is kept" if position.done else ""),
            )

    # The end

    def manifest_of(self, corpus: Corpus, made: dict[str, Any], shards: tuple[Shard, ...]) -> Manifest:
        counts, recipe = self.position.counts, self.recipe
        refused = dict(sorted(counts.refused.items()))
        if not shards:
            reasons = ", ".join(f"{count} {reason}" for reason, count in refused.items())
            raise TooSmall(
                f"data.source = '{recipe.data.source}' holds no text ({reasons or 'nothing at all'})", "name other text"
            )
        manifest = Manifest(
            tokenizer=gpt2_tokenizer_record(),
            source={
                "asked": recipe.data.source,
                "description": corpus.description,
                "parts": len(corpus.parts),
                **corpus.origin,
            },
            split_rule=f"the first {recipe.data.validation_tokens} tokens are validation, the rest training",
            shards=shards,
            statistics={
                "documents": counts.documents,
                "text_bytes": counts.text_bytes,
                "tokens": counts.tokens,
                "bytes_per_token": round(counts.text_bytes / counts.tokens, 4),
                "longest_document_tokens": counts.longest_document_tokens,
                "refused": refused,
            },
            made_with=made,
        )
        try:
            check_windows(recipe, manifest)
        except DataError as error:
            raise TooSmall(error.problem, error.fix) from None
        return manifest

    def seal(self, manifest: Manifest) -> None:
        """Write the manifest, and beside it how the preparation went."""
        manifest.write(self.folder)
        position = self.position
        seconds = max(position.seconds, 1e-3)
        write_json(
            self.folder / PREPARATION,
            {
                "seconds": round(seconds, 1),
                "attempts": position.attempts,
                "text_bytes_per_second": round(position.counts.text_bytes / seconds),
                "tokens_per_second": round(position.counts.tokens / seconds),
                "asked": self.asked(),
            },
        )

    def is_sealed(self) -> bool:
        """Whether an earlier attempt at this was killed after it was sealed and before it had its name."""
        return bool(read_json(self.folder / PREPARATION).get("asked") == self.asked())

    def publish(self, manifest: Manifest) -> None:
        """Remove what was needed on the way only, and give the folder its name."""
        self.remove_all_but({PREPARATION, "manifest.json"} | {shard.name for shard in manifest.shards})
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        flush_directory(self.folder)
        self.folder.rename(self.target)
        flush_directory(self.target.parent)


def read_json(path: Path) -> dict[str, Any]:
    """A file of our own; empty where it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


class TooSmall(DataError):
    """All was read, and it is of no use: nothing of it is kept."""


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


def check_windows(recipe: Recipe, manifest: Manifest) -> None:
    """Whether a data set holds something to work with. Raises DataError with a remedy in numbers."""
    block_size = recipe.model.block_size
    tokens = {"train": manifest.tokens("train"), "val": manifest.tokens("val")}
    windows = dict.fromkeys(tokens, 0)
    for shard in manifest.shards:
        windows[shard.split] += (shard.tokens - 1) // block_size
    check_fits(tokens, windows, recipe.batch_windows, block_size)
