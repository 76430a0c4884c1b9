"""Worker processes that encode chunks of text; their results arrive in the order of the chunks."""

import importlib.metadata
import multiprocessing
import os
import signal
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from itertools import islice
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.progress import StopCheck
from regpt.corpus.chunks import Chunk, EncodedChunk, TextChunk
from regpt.corpus.corpora import Part, accepted
from regpt.corpus.long_texts import TextStretch
from regpt.data import tokenizer
from regpt.data.tokenizer import Tokenizer
from regpt.machine.limits import free_memory, usable_processors
from regpt.recipe.sections import DataRecipe
from regpt.tokenization import gigatoken
from regpt.tokenization.opening import open_tokenizer
from regpt.tokenization.tokenizer_file import FileTokenizer

Backend = Literal["tiktoken", "gigatoken"]
Program = Literal["tiktoken", "gigatoken", "tokenizers"]  # that encodes

DOCUMENTS_PER_BATCH = 1024
COMPARED_DOCUMENTS = 32  # the first ones of each part, where gigatoken encodes
CHUNKS_PER_WORKER = 3  # being encoded, or encoded and not yet taken: this bounds the memory
BYTES_PER_WORKER = 16_000_000  # of input; for less, starting a process costs more time than it saves
MEMORY_PER_WORKER = 250_000_000  # bytes: 120 MB of libraries and vocabulary, and the chunks in its hands
MAX_WORKERS = 61 if os.name == "nt" else 1024  # Windows cannot wait for more processes at once
MAX_TEMPORARY_PATH = 104 - 44  # bytes: macOS allows 104 for a socket (Linux 108), Python adds up to 44
CANNOT_ENCODE = "tiktoken cannot encode it"


@dataclass(frozen=True)
class Encoder:
    """How text is encoded: the tokenizer as data.tokenizer names it, its digest, and the program.

    Sent to worker processes, each of which opens the tokenizer by itself.
    """

    choice: str = tokenizer.NAME
    digest: str = tokenizer.FILES["vocab.bpe"]
    program: Program = "tiktoken"

    def open(self) -> Tokenizer:
        """Return the tokenizer. Raise DataError if its file has changed since the preparation began."""
        found = open_tokenizer(self.choice)
        if found.digest != self.digest:
            raise DataError(
                f"data.tokenizer = '{self.choice}': the file changed while it was in use", "run the command again"
            )
        return found

    def record(self) -> dict[str, Any]:
        """Return the program that encodes and its version, as the manifest stores them."""
        version = gigatoken.version() if self.program == "gigatoken" else importlib.metadata.version(self.program)
        return {"tokenizer_backend": self.program, "version": version}


def choose_encoder(found: Tokenizer, choice: str, backend: Backend) -> Encoder:
    """Return the encoder of a tokenizer. Raise DataError where gigatoken is asked for and cannot be used."""
    if isinstance(found, FileTokenizer):
        if backend == "gigatoken":
            raise DataError(
                f"data.tokenizer_backend = 'gigatoken' does not read data.tokenizer = '{choice}'",
                "set data.tokenizer_backend=tiktoken, which for a tokenizer.json means the package tokenizers",
            )
        return Encoder(choice, found.digest, "tokenizers")
    return Encoder(choice, found.digest, backend)


def encoder_of(data: DataRecipe) -> Encoder:
    """Return the encoder that a recipe asks for."""
    return choose_encoder(open_tokenizer(data.tokenizer), data.tokenizer, data.tokenizer_backend)


GPT2_ENCODER = Encoder()


@dataclass(frozen=True)
class Work:
    """A chunk to encode. Without a chunk it marks the end of a part."""

    part: Part
    chunk: Chunk | None
    starts_part: bool = False


def encode_chunk(chunk: Chunk, encoder: Encoder = GPT2_ENCODER, part_name: str = "") -> EncodedChunk:
    """Read a chunk and encode its documents; return an encoded chunk as it is.

    With `part_name`, the chunk starts that part: compare gigatoken's ids of its first documents with tiktoken's. Raise
    DataError if they differ, or if the chunk cannot be read.
    """
    if isinstance(chunk, EncodedChunk):
        return chunk
    refused: Counter[str] = Counter()
    texts = accepted(chunk.read(refused), refused)
    found = encoder.open()
    dtype = found.ids.dtype
    end = np.array([found.ids.end_of_text], dtype=dtype)
    rest = chunk.rest if isinstance(chunk, TextStretch) else ""
    pieces: list[NDArray[np.integer]] = [np.empty(0, dtype=dtype)]
    if rest:
        pieces.append(encoded_stretch(chunk, encode_batch([rest], found, encoder, "")[0]).astype(dtype))
    continued, text_bytes, end_marks = len(pieces[-1]), len(rest.encode()), rest.count(tokenizer.END_OF_TEXT_NAME)
    longest = documents = last = 0
    while batch := list(islice(texts, DOCUMENTS_PER_BATCH)):
        ids_of_batch = encode_batch(batch, found, encoder, part_name if not documents else "")
        kept = [(text, ids) for text, ids in zip(batch, ids_of_batch, strict=True) if ids is not None]
        if len(kept) < len(batch):
            encoded_stretch(chunk, ids_of_batch[-1])
            refused[CANNOT_ENCODE] += len(batch) - len(kept)
        documents += len(kept)
        for text, ids in kept:
            text_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            longest, last = max(longest, len(ids) + 1), len(ids) + 1
            end_marks += text.count(tokenizer.END_OF_TEXT_NAME)
        rows = [row for _, ids in kept for row in (end, ids)]
        if rows:
            pieces.append(np.concatenate(rows, dtype=dtype, casting="unsafe"))  # its ids fit
    tokens = np.concatenate(pieces)
    return EncodedChunk(chunk.size, tokens, documents, text_bytes, longest, refused, continued, last, end_marks)


def encoded_stretch(chunk: TextChunk, ids: NDArray[np.integer] | None) -> NDArray[np.integer]:
    """Return the ids of a stretch of a long document. Raise DataError without ids: the rest of it must not be lost."""
    if ids is None and isinstance(chunk, TextStretch):
        raise DataError(
            f"{chunk.name}: tiktoken cannot encode a stretch of it, perhaps a very long run of white space",
            "shorten such runs, or cut the file into documents: data.document_separator=…",
        )
    return np.empty(0, dtype=np.uint16) if ids is None else ids


def encode_batch(
    texts: list[str], found: Tokenizer, encoder: Encoder, part_name: str
) -> list[NDArray[np.integer] | None]:
    """Return each text's ids; None for a text that cannot be encoded."""
    if encoder.program != "gigatoken":
        return [found.encode_or_none(text) for text in texts]
    ids_of_texts = list(process_gigatoken(encoder).encode(texts))
    if part_name:
        compare_with_tiktoken(texts[:COMPARED_DOCUMENTS], ids_of_texts, part_name, found)
    return ids_of_texts


@cache
def process_gigatoken(encoder: Encoder) -> gigatoken.Gigatoken:
    """Return the encoder of this process."""
    return gigatoken.Gigatoken(encoder.open())


def compare_with_tiktoken(
    texts: list[str], ids_of_texts: list[NDArray[np.integer] | None], part_name: str, found: Tokenizer
) -> None:
    """Raise DataError if gigatoken's ids differ from tiktoken's."""
    for number, (text, ids) in enumerate(zip(texts, ids_of_texts, strict=False), start=1):
        expected = found.encode_or_none(text)
        same = expected is ids if expected is None or ids is None else np.array_equal(expected, ids)
        if not same:
            raise DataError(
                f"{part_name}: gigatoken {gigatoken.version()} and tiktoken encode document {number} differently"
                f" ({text[:40]!r} …)",
                "set data.tokenizer_backend=tiktoken",
            )


class Encoders:
    """A pool of worker processes. With one worker, the calling process encodes. Use as a context manager."""

    def __init__(self, workers: int, encoder: Encoder = GPT2_ENCODER) -> None:
        self.workers = workers
        self.encoder = encoder
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Encoders":
        if self.workers > 1:
            self.pool = ProcessPoolExecutor(self.workers, worker_context(), start_worker, (self.encoder,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def encode(self, work: Iterable[Work], stop: StopCheck) -> Iterator[tuple[Work, EncodedChunk | None]]:
        """Yield each piece of work with its result, in order; the end of a part has none.

        Call `stop` while waiting. Raise DataError if a worker is killed or a chunk cannot be read.
        """
        if self.pool is None:
            for item in work:
                stop.raise_if_stopped()
                yield item, encode_chunk(*self.arguments(item, item.chunk)) if item.chunk else None
            return
        pending: deque[tuple[Work, Future[EncodedChunk] | None]] = deque()
        try:
            for item in work:
                arguments = self.arguments(item, item.chunk) if item.chunk else None
                pending.append((item, self.pool.submit(encode_chunk, *arguments) if arguments else None))
                if len(pending) >= CHUNKS_PER_WORKER * self.workers:
                    yield self.wait_for(*pending.popleft(), stop)
            while pending:
                yield self.wait_for(*pending.popleft(), stop)
        except BrokenProcessPool:
            stop.raise_if_stopped()  # a signal to the process group also kills workers that are still starting
            raise DataError(
                f"one of the {self.workers} worker processes was killed, perhaps because memory ran out",
                f"run the command again with data.workers below {self.workers}; it resumes where it stopped",
            ) from None

    def arguments(self, item: Work, chunk: Chunk) -> tuple[Chunk, Encoder, str]:
        return chunk, self.encoder, item.part.name if item.starts_part else ""

    def wait_for(
        self, item: Work, future: "Future[EncodedChunk] | None", stop: StopCheck
    ) -> tuple[Work, EncodedChunk | None]:
        while True:
            stop.raise_if_stopped()
            try:
                return item, future.result(timeout=0.5) if future else None
            except TimeoutError:
                continue


def worker_count(requested: int, size: int) -> int:
    """Return the number of workers for `size` bytes of input.

    `requested` = 0 takes one per processor that this process may use, fewer for little input or little free memory.
    """
    fit = int(free_memory() // MEMORY_PER_WORKER)
    return min(MAX_WORKERS, requested or max(1, min(usable_processors(), fit, size // BYTES_PER_WORKER)))


def worker_context() -> multiprocessing.context.BaseContext:
    """Return how workers start: forked from a clean process with the libraries loaded, or else spawned.

    Forking this process itself would copy the locks of its threads, such as torch's. The clean process listens on a
    socket in the folder for temporary files, and the system limits the length of its path. Spawning needs no socket.
    """
    folder = os.fsencode(tempfile.gettempdir())
    if "forkserver" not in multiprocessing.get_all_start_methods() or len(folder) > MAX_TEMPORARY_PATH:
        return multiprocessing.get_context("spawn")
    method = multiprocessing.get_context("forkserver")
    method.set_forkserver_preload(["regpt.preparation.encoders", "tiktoken", "pyarrow.parquet"])
    return method


def start_worker(encoder: Encoder) -> None:
    """Prepare a worker: it ignores signals, which its parent handles, and exits when its parent ends for any reason."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()
    encoder.open().encode("a")


def exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
