"""The console of a dataset's preparation, import and verification."""

import time

from regpt.base.format import byte_size, duration, percent, short_count
from regpt.console.time_left import time_left
from regpt.console.training import Console
from regpt.corpus.notes import note_about_refused
from regpt.data import tokenizer
from regpt.data.shards import Manifest
from regpt.data.validation_split import describe_warning


class PreparationConsole:
    """Prints a preparation: implements `PreparationProgress`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.note = console.note
        self.raise_if_stopped = console.raise_if_stopped
        self.started_at = time.perf_counter()
        self.total_size = 1  # bytes of the corpus
        self.done_size = self.done_tokens = 0  # of all attempts
        self.new_tokens = self.new_text_bytes = 0  # of this attempt
        self.split_started_at: float | None = None

    def started(self, description: str, size: int, workers: int) -> None:
        parallel = f", {workers} workers" if workers > 1 else ""
        self.console.print_line(f"preparing {description} ({byte_size(size)}{parallel})")
        self.started_at, self.total_size = time.perf_counter(), max(1, size)
        self.console.start_bar("prepare", size)

    def resumed(self, done: int, tokens: int) -> None:
        self.console.print_line(f"resuming after {tokens:,} tokens, {percent(done / self.total_size)} of the corpus")
        self.done_size, self.done_tokens = done, tokens

    def advanced(self, size: int, tokens: int, text_bytes: int) -> None:
        self.done_size += size
        self.done_tokens += tokens
        self.new_tokens += tokens
        self.new_text_bytes += text_bytes
        seconds = time.perf_counter() - self.started_at
        share = self.done_size / self.total_size
        new_share = self.new_tokens / max(1, self.done_tokens) * share
        left = seconds / max(new_share, 1e-9) * max(0.0, 1 - share)
        self.console.update_bar(
            f"{percent(share)} · {duration(left)} left · {self.done_tokens:,} tokens"
            f" · {byte_size(self.new_text_bytes / seconds)}/s of text · {self.new_tokens / seconds:,.0f} tokens/s",
            completed=self.done_size,
        )

    def fetching(self, name: str, done: int, size: int) -> None:
        self.console.update_bar(f"downloading {name}: {byte_size(done)} of {byte_size(size)}")

    def splitting(self, done: int, total: int) -> None:
        if self.split_started_at is None:
            self.split_started_at = time.perf_counter()
        left = time_left(self.split_started_at, done, total)
        status = f"{percent(done / max(1, total))}{left} · dividing into validation and training"
        self.console.update_bar(status, completed=done, total=total)

    def finished(self, path: str, manifest: Manifest, seconds: float) -> None:
        statistics = manifest.statistics
        self.console.print_line(
            f"{path}: {statistics['documents']:,} documents, {manifest.tokens('train'):,} training and"
            f" {manifest.tokens('val'):,} validation tokens in {len(manifest.shards)} shards,"
            f" {statistics['bytes_per_token']:.2f} bytes per token, longest document"
            f" {statistics['longest_document_tokens']:,} tokens; {duration(seconds)},"
            f" {byte_size(statistics['text_bytes'] / max(seconds, 1e-3))}/s of text"
        )
        self.console.print_line(f"validation: {manifest.split_rule}")
        for warning in manifest.validation.warnings():
            self.note(describe_warning(manifest.validation, warning))
        for reason, count in statistics["refused"].items():
            self.note(note_about_refused(reason, count, statistics.get("refused_in", {}).get(reason, [])))
        if marks := statistics.get("end_marks"):
            mark = tokenizer.END_OF_TEXT_NAME
            self.note(f"{mark} as text, encoded as ordinary characters: {marks:,}")


class ReadingConsole:
    """Shows the progress of reading files, in bytes: implements `Progress`."""

    def __init__(self, console: Console, name: str) -> None:
        """Start a bar with the label `name`."""
        self.console = console
        self.raise_if_stopped = console.raise_if_stopped
        self.started_at = time.perf_counter()
        console.start_bar(name)

    def update(self, done: int, total: int) -> None:
        rate = done / (time.perf_counter() - self.started_at)
        left = time_left(self.started_at, done, total)
        self.console.update_bar(self.status(done, total, left, rate), completed=done, total=total)

    def status(self, done: int, total: int, left: str, rate: float) -> str:
        return f"{byte_size(done)} of {byte_size(total)}{left} · {byte_size(rate)}/s"


class ReadingTokensConsole(ReadingConsole):
    """Shows the progress of reading tokens: implements `Progress`."""

    def status(self, done: int, total: int, left: str, rate: float) -> str:
        return f"{percent(done / max(1, total))}{left} · {short_count(rate)} tokens/s"
