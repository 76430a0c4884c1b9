"""One thread owns the model and generates for all requests, which share its passes and wait in a bounded queue.

Requests begin in order. A request whose client has left is dropped, while it waits and in the middle of its text.
"""

import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from regpt.generation.decoder import Decoder, Prompt, Row
from regpt.generation.drawing import Drawn, Request, Sampling
from regpt.generation.half_weights import with_half_weights
from regpt.interop.open_model import LoadedModel
from regpt.serve.errors import ApiError, ErrorType

MOST_WAITING = 64  # requests
MOST_ROWS = 16  # texts that grow at the same time
MOST_PROMPTS = 4  # that are read in turn, so that a short one does not wait for a long one
RETRY_SECONDS = 5  # after which a refused client may ask again
CLOSING_SECONDS = 10.0


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


@dataclass(eq=False)
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

    def request(self, row: int) -> Request:
        """Return what a row asks for. The n rows of each prompt have the seeds seed, seed + 1, …"""
        return Request(
            sampling=replace(self.sampling, seed=self.sampling.seed + row % self.n),
            new_tokens=self.new_tokens,
            ends=self.ends,
            alternatives=self.alternatives,
        )


@dataclass(eq=False)
class Share:
    """Rows of a job that continue one prompt and begin together."""

    job: Job
    prompt: int
    rows: range


class Engine:
    """Generates for the requests of all clients."""

    def __init__(
        self,
        loaded: LoadedModel,
        most_waiting: int = MOST_WAITING,
        most_rows: int = MOST_ROWS,
        half_weights: bool = False,
    ) -> None:
        """`half_weights`: continue texts with weights in float16, where this CPU can; score them with exact ones."""
        self.loaded, self.most_waiting, self.most_rows = loaded, most_waiting, most_rows
        self.model = with_half_weights(loaded.model) if half_weights else loaded.model
        self.waiting: deque[Job] = deque()
        self.changed = threading.Condition()  # guards `waiting` and `closing`
        self.closing = False
        self.thread = threading.Thread(target=self.work, name="generation", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue. Raises ApiError if the queue is full."""
        with self.changed:
            self.waiting = deque(one for one in self.waiting if not one.left.is_set())
            if len(self.waiting) >= self.most_waiting:
                text = f"{self.most_waiting} requests are waiting; try again later"
                raise ApiError(429, ErrorType.RATE_LIMIT, "queue_full", text, retry_seconds=RETRY_SECONDS)
            self.waiting.append(job)
            self.changed.notify()

    def close(self) -> None:
        """End the thread; what waits is dropped."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(CLOSING_SECONDS)

    def next_job(self, wait: bool) -> Job | None:
        """Take the first job whose client is there. None without one, and when the engine closes."""
        with self.changed:
            while not self.closing:
                while self.waiting:
                    if not (job := self.waiting.popleft()).left.is_set():
                        return job
                if not wait:
                    break
                self.changed.wait()
        return None

    def work(self) -> None:
        """Serve jobs until the engine closes. Between two of them no cache is held."""
        while (job := self.next_job(wait=True)) is not None:
            batch = Batch(self)
            batch.open_job(job)
            try:
                batch.work()
            except Exception:  # of any type: it must not end the thread that serves later requests
                batch.fail(list(batch.open))


class Batch:
    """Jobs that share the passes of a model; later ones join until none is left."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.decoder = Decoder(engine.model, engine.loaded.tokenizer.vocabulary, engine.loaded.model)
        self.open: dict[Job, set[int]] = {}  # the rows that each job still waits for
        self.shares: deque[Share] = deque()  # not begun
        self.prompts: dict[Prompt, Share] = {}  # being read
        self.rows: dict[Row, tuple[Job, int]] = {}

    def work(self) -> None:
        while self.open and not self.engine.closing:
            self.drop_rows()
            self.begin_shares()
            self.emit(self.decoder.draw_tokens())
            self.read_parts()
        for job in list(self.open):
            self.end_job(job)

    def open_job(self, job: Job) -> None:
        """Divide the rows of a job into shares."""
        self.open[job] = set(range(len(job.prompts) * job.n))
        for prompt in range(len(job.prompts)):
            for first in range(prompt * job.n, (prompt + 1) * job.n, self.engine.most_rows):
                rows = range(first, min(first + self.engine.most_rows, (prompt + 1) * job.n))
                self.shares.append(Share(job, prompt, rows))

    def drop_rows(self) -> None:
        """Drop the jobs of clients that have left, and rows that need no more tokens."""
        for job in list(self.open):
            if job.left.is_set():
                self.end_job(job)
            elif done := self.open[job] & job.ended_rows:
                for row in [row for row, place in self.rows.items() if place[0] is job and place[1] in done]:
                    self.drop_row(row)
                self.finish(job, done)

    def begin_shares(self) -> None:
        """Begin what there is room for, in the order of the requests."""
        while len(self.prompts) < MOST_PROMPTS:
            if not self.shares and (job := self.engine.next_job(wait=False)) is not None:
                self.open_job(job)
            if not self.shares or len(self.rows) + len(self.shares[0].rows) > self.engine.most_rows:
                return
            self.begin(self.shares.popleft())

    def begin(self, share: Share) -> None:
        job = share.job
        is_scored = job.scores_prompts and share.rows[0] == share.prompt * job.n
        requests = [job.request(row) for row in share.rows] if job.new_tokens else []
        prompt = self.decoder.add(job.prompts[share.prompt], requests, job.alternatives if is_scored else None)
        self.prompts[prompt] = share
        self.rows.update((row, (job, number)) for row, number in zip(prompt.rows, share.rows, strict=False))

    def read_parts(self) -> None:
        """Read several short prompts, or a part of a long one, before the rows get their next token."""
        tokens = self.decoder.part
        for prompt in list(self.decoder.prompts):
            if tokens > 0 and prompt in self.decoder.prompts:
                tokens -= len(prompt.tokens) - prompt.read
                self.read_part()

    def read_part(self) -> None:
        """Read a part of the prompt whose turn it is. A failure ends its own job alone."""
        prompt = self.decoder.prompts[0]
        share = self.prompts.get(prompt)
        try:
            drawn = self.decoder.read_part()
        except Exception:  # of any type, as above
            self.fail([share.job] if share else [self.rows[row][0] for row in prompt.rows])
            return
        if share is not None and prompt.is_read:
            del self.prompts[prompt]
            if prompt.alternatives is not None:
                share.job.emit(PromptScored(share.prompt, prompt.scored))
            if not share.job.new_tokens:
                self.finish(share.job, set(share.rows))
        self.emit(drawn)

    def emit(self, drawn: list[tuple[Row, Drawn]]) -> None:
        for row, one in drawn:
            job, number = self.rows[row]
            if number not in job.ended_rows:
                job.emit(TokenDrawn(number, one))
            if not row.left:
                del self.rows[row]
                self.finish(job, {number})

    def finish(self, job: Job, rows: set[int]) -> None:
        """Wait no longer for these rows; end the job if they were its last."""
        self.open[job] -= rows
        if not self.open[job]:
            self.end_job(job)

    def fail(self, jobs: list[Job]) -> None:
        """End jobs because of the exception that is being handled."""
        traceback.print_exc()
        for job in dict.fromkeys(jobs):
            self.end_job(job, failed=True)

    def end_job(self, job: Job, failed: bool = False) -> None:
        """Forget a job, with all that it has not finished."""
        del self.open[job]
        for row in [row for row, (owner, _) in self.rows.items() if owner is job]:
            self.drop_row(row)
        for prompt in [prompt for prompt, share in self.prompts.items() if share.job is job]:
            del self.prompts[prompt]
            self.decoder.forget(prompt)
        self.shares = deque(share for share in self.shares if share.job is not job)
        job.emit(JobEnded(failed))

    def drop_row(self, row: Row) -> None:
        del self.rows[row]
        self.decoder.leave(row)
