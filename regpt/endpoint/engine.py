"""One thread owns the model and generates for all requests, which wait in a bounded queue.

Requests are served in order. A request whose client has left is dropped, also in the middle of its text.
"""

import contextlib
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from regpt.generation.decoder import generate_tokens
from regpt.generation.drawing import Drawn, Request, Sampling
from regpt.interop.open_model import LoadedModel
from regpt.model.evaluation_mode import evaluation_mode
from regpt.serve.errors import ApiError, ErrorType

MOST_WAITING = 64  # requests
CLOSING_SECONDS = 10.0


class Left(Exception):
    """The client has left, or the server ends."""


@dataclass(frozen=True)
class PromptScored:
    """The log-probability of each token of a prompt given those before it."""

    prompt: int
    tokens: list[Drawn]  # the first one has no log-probability


@dataclass(frozen=True)
class TokenDrawn:
    """A row has drawn a token."""

    row: int
    drawn: Drawn


@dataclass(frozen=True)
class JobEnded:
    """No more tokens come; `failed` if the server failed."""

    failed: bool = False


JobEvent = PromptScored | TokenDrawn | JobEnded


@dataclass
class Job:
    """What the engine shall generate: `n` rows for each prompt, numbered prompt by prompt."""

    prompts: Sequence[Sequence[int]]
    n: int
    new_tokens: int
    sampling: Sampling
    alternatives: int | None
    scores_prompts: bool
    emit: Callable[[JobEvent], None]  # called in the engine's thread
    ends: frozenset[int] = frozenset()  # a row ends behind one of these tokens
    ended_rows: set[int] = field(default_factory=set)  # rows that need no more tokens, as at a stop word
    left: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Generates for the requests of all clients."""

    def __init__(self, loaded: LoadedModel, most_waiting: int = MOST_WAITING) -> None:
        self.loaded = loaded
        self.jobs: queue.Queue[Job | None] = queue.Queue(most_waiting)
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.work, name="generation", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue. Raises ApiError if the queue is full."""
        try:
            self.jobs.put_nowait(job)
        except queue.Full:
            text = f"{self.jobs.maxsize} requests are waiting; try again later"
            raise ApiError(429, ErrorType.RATE_LIMIT, "queue_full", text) from None

    def close(self) -> None:
        """End the thread; what waits is dropped."""
        self.closing.set()
        with contextlib.suppress(queue.Full):
            self.jobs.put_nowait(None)
        self.thread.join(CLOSING_SECONDS)

    def work(self) -> None:
        while (job := self.jobs.get()) is not None and not self.closing.is_set():
            failed = False
            try:
                self.run(job)
            except Left:
                pass
            except Exception:  # of any type: one request must not end the thread that serves the others
                traceback.print_exc()
                failed = True
            job.emit(JobEnded(failed))

    def run(self, job: Job) -> None:
        for number, prompt in enumerate(job.prompts):
            if job.scores_prompts:
                self.check(job)
                job.emit(PromptScored(number, self.score(prompt, job.alternatives)))
            self.generate(job, number, prompt)

    def generate(self, job: Job, number: int, prompt: Sequence[int]) -> None:
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        first = number * job.n
        requests = [
            Request(
                sampling=replace(job.sampling, seed=job.sampling.seed + row),
                new_tokens=job.new_tokens,
                ends=job.ends,
                alternatives=job.alternatives,
            )
            for row in range(job.n)
        ]
        ids = torch.tensor([prompt] * job.n, dtype=torch.int64, device=model.head_weight.device)
        rows = range(first, first + job.n)
        drawing = generate_tokens(model, ids, requests, tokenizer.vocabulary, lambda: self.check(job))
        for drawn in drawing:
            for row, one in zip(rows, drawn, strict=True):
                if one is not None and row not in job.ended_rows:
                    job.emit(TokenDrawn(row, one))
            if job.ended_rows.issuperset(rows):
                break

    @torch.no_grad()
    def score(self, prompt: Sequence[int], alternatives: int | None) -> list[Drawn]:
        """Return the tokens of a prompt with their log-probabilities, by one forward pass."""
        model = self.loaded.model
        ids = torch.tensor([list(prompt)], dtype=torch.int64, device=model.head_weight.device)
        with evaluation_mode(model):
            logits = model(ids)[0, :-1, : self.loaded.tokenizer.vocabulary].float().cpu()
        scored = [Drawn(prompt[0])]
        for row, token in zip(logits.log_softmax(dim=1), prompt[1:], strict=True):
            best = row.topk(min(alternatives or 0, len(row)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            scored.append(Drawn(token, float(row[token]), tuple(pairs)))
        return scored

    def check(self, job: Job) -> None:
        if job.left.is_set() or self.closing.is_set():
            raise Left
