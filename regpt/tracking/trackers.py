"""Copy the journal's metrics to TensorBoard, Weights & Biases or trackio. A tracker that fails is dropped."""

import contextlib
import importlib
import io
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from regpt.base.errors import UserError
from regpt.base.format import duration
from regpt.base.packages import is_installed
from regpt.tracking.events import OutOfMemory, Rollback
from regpt.tracking.journal import EventRecord, Record, StepRecord, TaskRecord, ValidationRecord, first_event

PROJECT = "regpt"
FINISH_SECONDS = 60.0  # that the end of a run waits for metrics in transit
Metrics = dict[str, float]


class Tracker(Protocol):
    """A destination for metrics. `rolled_back` reports that later steps will be repeated."""

    def log(self, figures: Metrics, step: int) -> None: ...
    def rolled_back(self, step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Write event files into the run's directory; `tensorboard --logdir runs` shows them."""

    def __init__(self, run: Path, settings: dict[str, Any], resumed_at: int | None) -> None:
        self.folder = str(run / "tensorboard")
        self.open(resumed_at)

    def open(self, behind: int | None) -> None:
        """Start a new file, which hides steps after `behind` in earlier files."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(self.folder, purge_step=None if behind is None else behind + 1)

    def log(self, figures: Metrics, step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def rolled_back(self, step: int) -> None:
        self.writer.close()
        self.open(step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Send metrics where wandb's own settings say (`wandb login`, WANDB_MODE=offline); files are in the run directory.

    A resumed run keeps its id. Steps are a metric of ours, because wandb's own step must never decrease.
    """

    def __init__(self, run: Path, settings: dict[str, Any], resumed_at: int | None) -> None:
        self.client = importlib.import_module("wandb")
        started = first_event(run)
        self.client.init(
            project=PROJECT,
            name=run.name,
            id=re.sub(r"[/\\#?%:]", "-", f"{run.name}-{started.at if started else time.time():.0f}"),
            dir=str(run),
            config=settings,
            resume="allow",
            settings=self.client.Settings(console="off", quiet=True, finish_timeout=FINISH_SECONDS),
        )
        self.client.define_metric("*", step_metric="step")

    def log(self, figures: Metrics, step: int) -> None:
        self.client.log({**figures, "step": step})

    def rolled_back(self, step: int) -> None:
        pass

    def close(self) -> None:
        self.client.finish()


class Trackio:
    """Send metrics where trackio's own settings say: a local database (TRACKIO_DIR) or a server; see `trackio show`."""

    def __init__(self, run: Path, settings: dict[str, Any], resumed_at: int | None) -> None:
        self.client = importlib.import_module("trackio")
        resume = "never" if resumed_at is None else "allow"  # by the run's name; a new run of an old name is another
        with muted():
            self.client.init(
                project=PROJECT, name=run.name, config=settings, resume=resume, embed=False, auto_log_cpu=False
            )

    def log(self, figures: Metrics, step: int) -> None:
        self.client.log(figures, step=step)

    def rolled_back(self, step: int) -> None:
        pass

    def close(self) -> None:
        with muted():
            self.client.finish()


@contextmanager
def muted() -> Iterator[None]:
    """Suppress what this thread prints, and nothing that other threads print."""
    stdout, me = sys.stdout, threading.get_ident()

    class Others(io.TextIOBase):
        def write(self, text: str) -> int:
            return len(text) if threading.get_ident() == me else stdout.write(text)

        def flush(self) -> None:
            stdout.flush()

        def isatty(self) -> bool:
            return stdout.isatty()

    with contextlib.redirect_stdout(Others()):
        yield


OpenTracker = Callable[[Path, dict[str, Any], int | None], Tracker]
TRACKERS: dict[str, tuple[str, OpenTracker]] = {  # by name: (package, how to open it)
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
    "trackio": ("trackio", Trackio),
}


class Trackers:
    """The trackers that `run.sinks` names, each on a thread of its own, so that training waits for none of them.

    An error in one is reported once; the others and the run continue.
    """

    def __init__(self, names: Sequence[str], warn: Callable[[str], None]) -> None:
        """Check that every tracker's package is installed; raises UserError if not."""
        self.names, self.warn = names, warn
        self.running: list[tuple[str, threading.Thread, SimpleQueue[Record | None]]] = []
        for name in names:
            package = TRACKERS[name][0]
            if not is_installed(package):
                raise UserError(f"run.sinks = '{name}': it is not installed", f"pip install 'regpt[{name}]'")

    def begin(
        self, run: Path, settings: dict[str, Any], batch_tokens: Callable[[int], int], resumed_at: int | None = None
    ) -> None:
        """Start the trackers. `batch_tokens` is the number of tokens in a step, counted from 0."""
        for name in self.names:
            records: SimpleQueue[Record | None] = SimpleQueue()
            work = (name, lambda name=name: TRACKERS[name][1](run, settings, resumed_at), records, batch_tokens)
            thread = threading.Thread(target=self.serve, args=work, name=f"tracker {name}", daemon=True)
            thread.start()
            self.running.append((name, thread, records))

    def serve(
        self,
        name: str,
        open_tracker: Callable[[], Tracker],
        records: "SimpleQueue[Record | None]",
        batch_tokens: Callable[[int], int],
    ) -> None:
        """Serve one tracker until it receives None or fails."""
        try:
            tracker = open_tracker()
            while (record := records.get()) is not None:
                if isinstance(record, EventRecord) and isinstance(record.detail, (Rollback, OutOfMemory)):
                    tracker.rolled_back(record.step)
                if figures := metrics_of(record, batch_tokens):
                    tracker.log(figures, record.step)
            tracker.close()
        except Exception as error:  # a tracker may raise anything
            self.warn(f"the sink '{name}' failed and is let go ({type(error).__name__}: {error})")

    def write(self, record: Record) -> None:
        for _, _, records in self.running:
            records.put(record)

    def close(self) -> None:
        """Wait until everything is written, at most FINISH_SECONDS."""
        for _, _, records in self.running:
            records.put(None)
        until = time.monotonic() + FINISH_SECONDS
        for name, thread, _ in self.running:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                self.warn(f"the sink '{name}' did not end within {duration(FINISH_SECONDS)} and is let go")
        self.running.clear()


def metrics_of(record: Record, batch_tokens: Callable[[int], int]) -> Metrics:
    """Return the metrics of a record that are worth a curve; empty for other records."""
    if isinstance(record, StepRecord):
        return {
            "train/loss": record.loss,
            "train/gradient_norm": record.gradient_norm,
            "train/learning_rate": record.learning_rate,
            "train/tokens": float(record.tokens),
            "train/tokens_per_second": batch_tokens(record.step - 1) / max(record.seconds, 1e-9),
        }
    if isinstance(record, ValidationRecord):
        known = {"validation/bits_per_byte": record.bits_per_byte} if record.bits_per_byte else {}
        averaged = {} if record.averaged_loss is None else {"validation/averaged_loss": record.averaged_loss}
        return {"validation/loss": record.loss, "validation/tokens": float(record.tokens), **known, **averaged}
    if isinstance(record, TaskRecord):
        shares = record.accuracy | {f"averaged_{rule}": one for rule, one in (record.averaged_accuracy or {}).items()}
        return {f"{record.task}/{rule}": share for rule, share in shares.items()}
    return {}
