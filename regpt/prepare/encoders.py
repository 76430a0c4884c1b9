"""Worker processes that turn sections of text into tokens; what they give comes back in order."""

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from itertools import islice
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.progress import StopCheck
from regpt.data import gigatoken, tokenizer
from regpt.prepare.corpora import Part, accepted
from regpt.prepare.sections import Chunk

Backend = Literal["tiktoken", "gigatoken"]

DOCUMENTS_AT_A_TIME = 256  # of a section
COMPARED_DOCUMENTS = 32  # of each part, where gigatoken does the work
WAITING_SECTIONS = 3  # for each worker, in work or done and not yet taken: this bounds the memory
TEXT_FOR_A_WORKER = 16_000_000  # bytes of input; with less, starting a process costs more than it gives
MOST_WORKERS = 61 if os.name == "nt" else 1024  # Windows cannot wait for more processes at once
CANNOT_ENCODE = "tiktoken cannot encode it"


@dataclass(frozen=True)
class Encoded:
    """What became of a section."""

    tokens: NDArray[np.uint16]  # of all documents: each the end token and then its ids
    documents: int
    text_bytes: int  # UTF-8, of the documents in `tokens`
    longest_document: int  # in tokens, with the end token
    refused: Counter[str]  # documents left out, by reason


@dataclass(frozen=True)
class Ready:
    """A section that was encoded before, elsewhere."""

    size: int
    encoded: Encoded

    def read(self, refused: Counter[str]) -> Iterator[object]:
        raise AssertionError("its text is not at hand")


@dataclass(frozen=True)
class Work:
    """A section to encode; without one, only a mark that passes through in its turn: the end of a part."""

    part: Part
    section: Chunk | None
    begins_part: bool = False


def encode_section(section: Chunk, backend: Backend, begins: str) -> Encoded:
    """Read a section and encode its documents.

    Where it `begins` a part, named so, gigatoken's ids of its first documents are held against tiktoken's. Raises
    DataError where they differ, or where the section cannot be read.
    """
    if isinstance(section, Ready):
        return section.encoded
    refused: Counter[str] = Counter()
    texts = accepted(section.read(refused), refused)
    end = np.array([tokenizer.END_OF_TEXT], dtype=np.uint16)
    pieces: list[NDArray[np.uint16]] = [np.empty(0, dtype=np.uint16)]
    text_bytes = longest = documents = 0
    while group := list(islice(texts, DOCUMENTS_AT_A_TIME)):
        ids_of_group = encode_group(group, backend, begins if not documents else "")
        kept = [(text, ids) for text, ids in zip(group, ids_of_group, strict=True) if ids is not None]
        if len(kept) < len(group):
            refused[CANNOT_ENCODE] += len(group) - len(kept)
        documents += len(kept)
        for text, ids in kept:
            text_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            longest = max(longest, len(ids) + 1)
        rows = [row for _, ids in kept for row in (end, ids)]
        if rows:
            pieces.append(np.concatenate(rows, dtype=np.uint16, casting="unsafe"))  # GPT-2's ids fit
    return Encoded(np.concatenate(pieces), documents, text_bytes, longest, refused)


def encode_group(texts: list[str], backend: Backend, begins: str) -> list[NDArray[np.integer] | None]:
    """Each text's ids; None for one that cannot be encoded."""
    if backend == "tiktoken":
        return [tokenizer.encode_or_none(text) for text in texts]
    ids_of_texts = list(one_gigatoken().encode(texts))
    if begins:
        compare_with_tiktoken(texts[:COMPARED_DOCUMENTS], ids_of_texts, begins)
    return ids_of_texts


@cache
def one_gigatoken() -> gigatoken.Gigatoken:
    return gigatoken.Gigatoken()


def compare_with_tiktoken(texts: list[str], ids_of_texts: list[NDArray[np.integer] | None], name: str) -> None:
    for number, (text, ids) in enumerate(zip(texts, ids_of_texts, strict=False), start=1):
        expected = tokenizer.encode_or_none(text)
        same = expected is ids if expected is None or ids is None else np.array_equal(expected, ids)
        if not same:
            raise DataError(
                f"{name}: gigatoken {gigatoken.version()} gives document {number} other ids than tiktoken"
                f" ({text[:40]!r} …)",
                "write data.tokenizer_backend=tiktoken",
            )


class Encoders:
    """So many processes, or none: with one worker the calling process does the work. Use as a context manager."""

    def __init__(self, workers: int, backend: Backend) -> None:
        self.workers = workers
        self.backend = backend
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Encoders":
        if self.workers > 1:
            self.pool = ProcessPoolExecutor(self.workers, context(), initializer=begin_worker)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def encode(self, work: Iterable[Work], stop: StopCheck) -> Iterator[tuple[Work, Encoded | None]]:
        """Each piece of work with what became of it, in order. Check `stop` while waiting."""
        if self.pool is None:
            for piece in work:
                stop.raise_if_stopped()
                yield piece, encode_section(*self.arguments(piece, piece.section)) if piece.section else None
            return
        waiting: deque[tuple[Work, Future[Encoded] | None]] = deque()
        try:
            for piece in work:
                task = self.arguments(piece, piece.section) if piece.section else None
                waiting.append((piece, self.pool.submit(encode_section, *task) if task else None))
                if len(waiting) >= WAITING_SECTIONS * self.workers:
                    yield self.taken(*waiting.popleft(), stop)
            while waiting:
                yield self.taken(*waiting.popleft(), stop)
        except BrokenProcessPool:
            stop.raise_if_stopped()  # a signal to the whole group reaches the workers too, in their first moments
            raise DataError(
                "a worker process was killed, perhaps for want of memory",
                f"run the command again with fewer than {self.workers} of them (data.workers=…);"
                " it goes on where it was",
            ) from None

    def arguments(self, piece: Work, section: Chunk) -> tuple[Chunk, Backend, str]:
        return section, self.backend, piece.part.name if piece.begins_part else ""

    def taken(self, piece: Work, future: "Future[Encoded] | None", stop: StopCheck) -> tuple[Work, Encoded | None]:
        while True:
            stop.raise_if_stopped()
            try:
                return piece, future.result(timeout=0.5) if future else None
            except TimeoutError:
                continue


def workers_for(asked: int, size: int) -> int:
    """How many are worth starting for `size` bytes of input; 0 asks for as many as there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, asked or max(1, min(cores, size // TEXT_FOR_A_WORKER)))


def context() -> multiprocessing.context.BaseContext:
    """Workers are forked from a clean process that has loaded what they need; where there is no fork, started anew.

    Forking this process itself would copy the locks of its threads, torch's among them.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    method = multiprocessing.get_context("forkserver")
    method.set_forkserver_preload(["regpt.prepare.encoders", "tiktoken", "pyarrow.parquet"])
    return method


def begin_worker() -> None:
    """A worker ends with its parent, however that ends, and leaves signals to it."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    tokenizer.encoding()


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
