"""Preparation of one dataset: encode the text in order, cut it into shards, hash them, and rename the finished folder.

The work is done in a hidden folder next to `data.path`. The state is saved about every second, so a stopped or killed
preparation resumes there, and its files have the same bytes as those of an uninterrupted one.
"""

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError, writing_errors
from regpt.base.files import flush_directory, sha256_of_json, write_json
from regpt.corpus.corpora import Corpus
from regpt.corpus.notes import note_about_end_marks
from regpt.corpus.progress import PreparationProgress
from regpt.data import tokenizer
from regpt.data.shard_writer import FOLDER, ShardWriter, WrittenShards, write_tokenizer
from regpt.data.shards import (
    MANIFEST_FILE,
    PREPARATION_FILE,
    Manifest,
    Shard,
    read_json_or_empty,
    read_manifest,
)
from regpt.data.sizes import check_rows
from regpt.data.token_statistics import STATISTICS_FILE, measure, write_statistics
from regpt.data.tokenizer import GPT2_TOKENIZER
from regpt.data.validation_split import SplitRule, ValidationSplit
from regpt.preparation.changed_files import record_of_files
from regpt.preparation.encoders import Encoders, Work, choose_encoder, worker_count
from regpt.preparation.hub import HubCorpus
from regpt.preparation.manifest import EmptyOrTooSmall, build_manifest
from regpt.preparation.space import check_space
from regpt.preparation.split import divide
from regpt.preparation.state import PrepareState, refuse_other_tokenizer
from regpt.recipe.recipe import Recipe
from regpt.tokenization.opening import open_tokenizer

STATE_FILE = "progress.json"
ENCODED = "encoded"  # shards of text that is not divided yet
SAVE_SECONDS = 1.0  # between two saves of the state
MAX_SAVE_SHARE = 0.05  # of the time: on a slow disk the state is saved less often


def staging_folder(target: Path) -> Path:
    """Return the hidden folder in which the dataset at `target` is prepared."""
    return target.with_name(f".{target.name}.preparing")


class Preparation:
    """The preparation of one dataset."""

    def __init__(self, recipe: Recipe, progress: PreparationProgress, open_corpus: Callable[[], Corpus]) -> None:
        self.recipe, self.progress, self.open_corpus = recipe, progress, open_corpus
        self.target = recipe.data.directory
        self.folder = staging_folder(self.target)
        self.state = PrepareState()
        self.holds_out_documents = recipe.data.split_rule == "documents"
        self.tokenizer = open_tokenizer(recipe.data.tokenizer)
        self.encoder = choose_encoder(self.tokenizer, recipe.data.tokenizer, recipe.data.tokenizer_backend)

    def run(self) -> tuple[Manifest, float]:
        """Prepare the dataset, or resume it. Return the manifest and the seconds of all attempts together."""
        try:
            if not self.is_sealed():
                self.prepare()
        except EmptyOrTooSmall:
            self.discard()
            raise
        except BaseException:
            if not self.has_results():
                self.discard()
            raise
        manifest = read_manifest(self.folder)
        self.publish(manifest)
        return manifest, self.state.seconds

    def prepare(self) -> None:
        """Do everything except giving the folder its name."""
        if self.tokenizer is GPT2_TOKENIZER or self.holds_out_documents:
            tokenizer.check_vocabulary()  # before any work is done
        check_rows(self.recipe, self.tokenizer.ids.size)
        self.tokenizer.encode("")
        backend = self.encoder.record()
        files = record_of_files(self.recipe.data.source)
        corpus = self.open_corpus()
        for note in corpus.notes:
            self.progress.note(note)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.identity = sha256_of_json([corpus.fingerprint(), backend, self.settings()])
        self.state = self.saved_state()
        shards = self.encode_all(corpus)
        validation = ValidationSplit(rule=SplitRule.FIRST_TOKENS)
        if self.holds_out_documents and shards:
            started_at = time.monotonic()
            validation, shards = divide(self.folder, shards, self.recipe.data, self.tokenizer, self.progress)
            self.state = replace(self.state, seconds=self.state.seconds + time.monotonic() - started_at)
        self.seal(build_manifest(self.recipe, self.tokenizer, corpus, backend, self.state, shards, validation), files)

    def has_results(self) -> bool:
        """Return whether another attempt could use something: downloaded files, encoded files, or tokens."""
        if self.folder.is_dir() and any(path.is_dir() for path in self.folder.iterdir()):
            return True
        return bool(read_json_or_empty(self.folder / STATE_FILE).get("counts", {}).get("tokens"))

    def discard(self) -> None:
        """Remove everything except the encoded files of a cluster, which other settings can use."""
        if not self.folder.is_dir():
            return
        self.remove_files(keep=set())
        shutil.rmtree(self.folder / "raw", ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def encode_all(self, corpus: Corpus) -> tuple[Shard, ...]:
        """Encode the rest of the corpus and return all shards."""
        writer = self.open_writer()
        for part in corpus.parts[: self.state.part]:
            part.cleanup()  # a kill may have come before it
        started_at, seconds_before = time.monotonic(), self.state.seconds
        size = corpus.size
        workers = worker_count(self.recipe.data.workers, size)
        self.progress.started(corpus.description, size, workers)
        if self.state.done:
            self.progress.resumed(self.state.done, self.state.counts.tokens)
        save_at = started_at + SAVE_SECONDS
        is_consistent = True  # the state and the written tokens agree
        try:
            with Encoders(workers, self.encoder) as encoders:
                for item, encoded in encoders.encode(self.work(corpus), self.progress):
                    if encoded is not None:
                        if encoded.end_marks and not self.state.counts.end_marks:
                            self.progress.note(note_about_end_marks(item.part.name))
                        is_consistent = False
                        writer.add(encoded.tokens)
                        self.state = self.state.after_chunk(encoded)
                        is_consistent = True
                        self.progress.advanced(encoded.size, len(encoded.tokens), encoded.text_bytes)
                    else:
                        item.part.check_readable(self.state.of_part.documents, Counter(self.state.of_part.refused))
                        self.state = self.state.after_part(item.part.name, item.part.size)
                    now = time.monotonic()
                    self.state = replace(self.state, seconds=seconds_before + now - started_at)
                    if now > save_at or (encoded is None and isinstance(corpus, HubCorpus)):
                        self.save(writer)
                        save_seconds = time.monotonic() - now
                        save_at = time.monotonic() + max(SAVE_SECONDS, save_seconds / MAX_SAVE_SHARE)
                    if encoded is None:
                        item.part.cleanup()
                        self.check_space(corpus)
            is_consistent = False
            shards = tuple(writer.finish())
            if self.holds_out_documents:
                self.save(writer)  # an attempt that is killed later encodes nothing again
            return shards
        except BaseException:
            if is_consistent:
                self.save(writer)  # otherwise the next attempt truncates the shards to the last saved state
            raise
        finally:
            writer.close()

    def work(self, corpus: Corpus) -> Iterator[Work]:
        """Yield the chunks that are not written yet, and a mark after each part."""
        first, skipped = self.state.part, self.state.chunk
        self.check_space(corpus)
        for part in corpus.fetched(range(first, len(corpus.parts)), self.progress):
            for number, chunk in enumerate(part.chunks()):
                if number >= skipped:
                    yield Work(part, chunk, starts_part=number == 0)
            yield Work(part, None)
            skipped = 0

    # Resuming

    def settings(self) -> dict[str, Any]:
        """Return the settings that change the written bytes. Stored, so the keys must stay."""
        data = self.recipe.data
        separator = {"document_separator": data.document_separator} if data.document_separator else {}
        rule = {"validation": SplitRule.DOCUMENTS} if self.holds_out_documents else {}
        return {
            **separator,
            **rule,
            "source": data.source,
            "revision": data.revision,
            "validation_tokens": data.validation_tokens,
            "shard_tokens": data.shard_tokens,
            "text_column": data.text_column,
            "tokenizer": self.tokenizer.record,
        }

    def saved_state(self) -> PrepareState:
        """Return the state that an earlier attempt at the same dataset saved, or else a new one."""
        path = self.folder / STATE_FILE
        if not path.exists():
            return self.new_state()
        values = read_json_or_empty(path)
        before = values.pop("tokenizer", GPT2_TOKENIZER.record)
        refuse_other_tokenizer(self.folder, before, self.tokenizer.record, self.recipe.data.tokenizer)
        try:
            if values.pop("identity") != self.identity:
                self.progress.note("the text or the settings have changed since the last attempt; starting again")
                return self.new_state()
            state = PrepareState.from_json(values)
        except (KeyError, TypeError, AttributeError):
            self.progress.note(f"{path} cannot be read; starting again")
            return self.new_state()
        return replace(state, attempts=state.attempts + 1)

    def open_writer(self) -> ShardWriter:
        try:
            writer = self.writer_after(self.state.written)
        except DataError as error:
            self.progress.note(f"{error.problem}; starting again")
            self.state = self.new_state()
            writer = self.writer_after(WrittenShards())
        self.save(writer)
        return writer

    def writer_after(self, written: WrittenShards) -> ShardWriter:
        """Return a writer of both splits; where documents are held out, of the encoded text that is divided later."""
        data, ids = self.recipe.data, self.tokenizer.ids
        if self.holds_out_documents:
            return ShardWriter(self.folder, 0, data.shard_tokens, written, ENCODED, ids)
        return ShardWriter(self.folder, data.validation_tokens, data.shard_tokens, written, "train", ids)

    def new_state(self) -> PrepareState:
        self.remove_files(keep=set())
        return PrepareState()

    def remove_files(self, keep: set[str]) -> None:
        """Remove the files in the folder; downloads and encoded files lie in folders of their own and stay."""
        for path in self.folder.iterdir():
            if path.is_file() and path.name not in keep:
                path.unlink()

    def save(self, writer: ShardWriter) -> None:
        """Wait until the tokens are on the disk, then save the state."""
        self.state = replace(self.state, written=writer.flush())
        saved = {"identity": self.identity, "tokenizer": self.tokenizer.record, **asdict(self.state)}
        with writing_errors(self.folder / STATE_FILE):
            write_json(self.folder / STATE_FILE, saved)

    def check_space(self, corpus: Corpus) -> None:
        """Raise DataError if the disk has no room for the rest of the work."""
        copies = 2 if self.holds_out_documents else 1  # the encoded text, and the shards that it is divided into
        check_space(self.folder, corpus, self.state, copies * self.tokenizer.ids.dtype.itemsize, self.progress)

    # Finishing

    def seal(self, manifest: Manifest, files: dict[str, Any]) -> None:
        """Write the manifest, and next to it the statistics of the tokens and how the preparation went."""
        own = self.tokenizer
        write_tokenizer(own, self.folder)
        manifest.write(self.folder)
        sizes = None if own is GPT2_TOKENIZER else own.bytes_of_tokens()
        write_statistics(self.folder, manifest, measure(self.folder, manifest, sizes))
        counts, seconds = self.state.counts, max(self.state.seconds, 1e-3)
        write_json(
            self.folder / PREPARATION_FILE,
            {
                "seconds": round(seconds, 1),
                "attempts": self.state.attempts,
                "text_bytes_per_second": round(counts.text_bytes / seconds),
                "tokens_per_second": round(counts.tokens / seconds),
                "asked": self.settings(),
                "files": files,
            },
        )

    def is_sealed(self) -> bool:
        """Return whether an earlier attempt sealed this dataset and was killed before it renamed the folder."""
        return bool(read_json_or_empty(self.folder / PREPARATION_FILE).get("asked") == self.settings())

    def publish(self, manifest: Manifest) -> None:
        """Remove temporary files and give the folder its name."""
        self.remove_files(
            keep={PREPARATION_FILE, STATISTICS_FILE, MANIFEST_FILE} | {shard.name for shard in manifest.shards}
        )
        for path in self.folder.iterdir():
            if path.is_dir() and path.name != FOLDER:
                shutil.rmtree(path)
        flush_directory(self.folder)
        self.folder.rename(self.target)
        flush_directory(self.target.parent)
