"""`regpt watch`: a live view of a run in a terminal of any size, or one plain snapshot."""

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from rich.console import Console as Terminal
from rich.live import Live
from rich.text import Text

from regpt.base.errors import DONE, INTERRUPTED, UserError
from regpt.base.format import (
    CENTURY,
    NO_VALUE,
    clock_time,
    duration,
    in_bits_per_byte,
    percent,
    scientific,
    smoothed,
    with_error,
)
from regpt.distributed.signals import ImmediateStop
from regpt.tracking.run import averaged_accuracy, find_run, primary_accuracy
from regpt.tracking.status import RunMonitor, RunStatus, State
from regpt.watch.describe import describe_event, describe_state
from regpt.watch.terminal_plot import Curve, draw_curves

TICK_SECONDS = 0.1  # between two checks for a key and for a new size of the terminal
SMOOTHING_STEPS = 10  # of the training loss; more where one column of dots covers more steps
MIN_CURVE_LINES = 6
EVENT_LINES = 3  # at most
SAMPLE_LINES = 3
SOON = 20 * 3600  # seconds; the end of a longer run is printed with its day
A_YEAR = 365 * 86_400  # seconds; the end of a longer run is printed with its year
STYLES = {
    State.STARTING: "cyan",
    State.RUNNING: "green",
    State.IDLE: "yellow",
    State.KILLED: "red",
    State.EXITED: "red",
    State.STOPPED: "yellow",
    State.FAILED: "red",
    State.FINISHED: "green",
}


def watch(path: Path, every: float, once: bool) -> int:
    """Show a run until it finishes or the user presses q or Ctrl-C; returns the exit code. Reads every `every` s."""
    watched = RunMonitor(path)
    status = watched.update()
    terminal = Terminal(highlight=False)
    if once or not sys.stdout.isatty() or terminal.is_dumb_terminal:
        print_once(status)
        return DONE
    live = Live(console=terminal, screen=True, auto_refresh=False, vertical_overflow="crop")
    left = False
    with ImmediateStop() as stopping, keys() as pressed, live:  # no exception interrupts a drawing
        while not (status.is_over or left or stopping.stopped):
            size = terminal.size
            live.update(view(status, size.width, size.height), refresh=True)
            until = time.monotonic() + every
            while time.monotonic() < until and terminal.size == size and not (left or stopping.stopped):
                left = pressed(TICK_SECONDS) in ("q", "Q")
            status = watched.update()
    if stopping.stopped and stopping.stopped.code != INTERRUPTED:  # Ctrl-C closes the view, as q does
        return stopping.stopped.code
    # The alternate screen is gone, so the last view is printed below the prompt.
    width, height = terminal.size
    last = view(status, width, height - 2)
    terminal.print(last if status.is_over else join_lines(status_lines(status, width, height), width))
    return DONE


def print_once(status: RunStatus) -> None:
    """Print one view without escape codes, in the size of the terminal or of COLUMNS and LINES."""
    width, height = Terminal().size
    for line in view(status, width, height - 1).plain.split("\n"):
        print(line.rstrip())


def wait_for(where: str, root: Path, every: float, say: Callable[[str], None]) -> Path:
    """Return the directory of the named run; waits until it exists."""
    announced = False
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
    while True:
        try:
            return find_run(where, root)
        except UserError as error:
            if not announced:
                say(f"{error.problem} yet; waiting for it (Ctrl-C to cancel)")
            announced = True
            time.sleep(every)


# The view


def view(status: RunStatus, width: int, height: int) -> Text:
    """Return the lines that fit into the terminal; the most important ones are dropped last."""
    top = status_lines(status, width, height)
    room = height - len(top)
    least = MIN_CURVE_LINES + 1
    happened, sample = event_lines(status), latest_sample(status, width)
    shown_events = happened[-min(EVENT_LINES, room - least) :] if room > least else []
    room -= len(shown_events)
    shown_sample = sample[: max(0, room - least - 2)]
    room -= len(shown_sample)
    curve = loss_curves(status, width, room) if room >= least else []
    return join_lines([*top, *curve, *shown_events, *shown_sample][:height], width)


def join_lines(lines: Sequence[Text], width: int) -> Text:
    """Join lines into one text without wrapping; longer lines end in an ellipsis."""
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def status_lines(status: RunStatus, width: int, height: int) -> list[Text]:
    """Return state and metrics, the most important first; fewer in a low terminal, which leaves room for a curve."""
    first = Text(printable(status.name), "bold").append(f"  {status.state}", STYLES[status.state])
    details = fold([printable(part) for part in describe_state(status)], width)
    if len(details) == 1 and first.cell_len + details[0].cell_len + 2 <= width:
        first.append("  ").append_text(details.pop())
    share = min(1.0, status.step / status.recipe.run.max_steps)
    steps = f"step {status.step:,} of {status.recipe.run.max_steps:,} · {percent(share)}"
    bar = max(0, min(40, width - len(steps) - 2))
    second = Text()
    if bar >= 10:
        second.append("━" * round(bar * share), "green").append("─" * (bar - round(bar * share)), "dim").append("  ")
    room = max(1, height - len(details) - 2 - MIN_CURVE_LINES - 1)
    return [first, *details, second.append(steps), *fold(status_items(status), width)[:room]]


def status_items(status: RunStatus) -> list[str]:
    """Return the metrics, the most important first."""
    history = status.history
    taken = f"{duration(sum(record.seconds for record in history.steps))} in training steps"
    left, *counted = [taken] if status.is_over else time_left(status)
    found = [left]
    if history.steps:
        last = history.steps[-1]
        mean = smoothed([record.loss for record in history.steps[-SMOOTHING_STEPS:]], SMOOTHING_STEPS)[-1]
        found.append(f"loss {last.loss:.4f} (mean of {min(SMOOTHING_STEPS, len(history.steps))}: {mean:.4f})")
    if history.validations:
        look = history.validations[-1]
        of_average = "" if look.averaged_loss is None else f", averaged weights {look.averaged_loss:.4f}"
        loss = f"{with_error(look.loss, look.standard_error)}{in_bits_per_byte(look.bits_per_byte)}"
        found.append(f"validation {loss}{of_average} at step {look.step:,}")
    if status.hellaswag:
        scored = status.hellaswag[-1]
        average = averaged_accuracy(scored)
        of_average = "" if average is None else f", averaged weights {average:.4f}"
        found.append(f"HellaSwag {with_error(*primary_accuracy(scored))}{of_average} at step {scored.step:,}")
    if history.steps:
        peak = status.share_of_peak
        found.append(f"{status.tokens_per_second:,.0f} tokens/s" + (f", {percent(peak)} of peak" if peak else ""))
    if history.skipped:
        bad = history.skipped[-1]
        found.append(f"skipped {len(history.skipped):,}, the last at step {bad.step:,}: {bad.reason}")
    found += counted
    if history.steps:
        found.append(f"rate {scientific(last.learning_rate, 3)}")
        found.append(f"gradient norm {last.gradient_norm:.2f}")
    found.append(f"{status.tokens:,} of {status.recipe.total_tokens:,} tokens")
    if history.checkpoints:
        found.append(f"saved at step {history.checkpoints[-1].step:,}")
    return found


def time_left(status: RunStatus) -> list[str]:
    """Word the time left, counted from now while the run is running, and which evaluations it includes."""
    seconds = status.seconds_left
    if seconds is None:
        return ["time left unknown before the first step"]
    looks = [f"{count:,} x {name}" for name, count in status.evaluations_left.items() if count]
    counted = [f"with {', '.join(looks)}, and saving as before"] if looks else []
    if status.state not in (State.RUNNING, State.IDLE):
        return [f"{duration(seconds)} to go", *counted]
    left = max(0.0, seconds - status.idle_seconds)
    if left >= CENTURY:
        return [f"time left: {NO_VALUE}", *counted]
    pattern = "%H:%M" if left < SOON else "%a %d %b %H:%M" if left < A_YEAR else "%Y-%m-%d"
    return [f"{duration(left)} left, until {clock_time(status.now + left, pattern)}", *counted]


def loss_curves(status: RunStatus, width: int, height: int) -> list[Text]:
    """Return a plot of the losses over tokens, training as a line and validation as marks, below its legend."""
    history = status.history
    of_column = 1 + len(history.steps) // (2 * width)
    window = max(SMOOTHING_STEPS, of_column)
    losses = smoothed([record.loss for record in history.steps], window)
    training = [(step.tokens, loss) for step, loss in zip(history.steps, losses, strict=True)][::-1][::of_column][::-1]
    lines = draw_curves(
        [
            Curve(training, "cyan"),
            Curve([(v.tokens, v.loss) for v in history.validations], "bold yellow", "o"),
        ],
        width,
        height - 1,
    )
    legend = Text("⠤", "cyan").append(f" training, mean of {window} steps  ", "dim").append("o", "bold yellow")
    return [legend.append(" validation", "dim").append("  loss over tokens", "dim"), *lines]


def event_lines(status: RunStatus) -> list[Text]:
    return [
        Text(f"{clock_time(event.at, '%H:%M:%S')}  ", "dim").append(printable(describe_event(event)), "default")
        for event in status.history.events
    ]


def latest_sample(status: RunStatus, width: int) -> list[Text]:
    if not status.history.samples or not status.history.samples[-1].texts:
        return []
    record = status.history.samples[-1]
    text = f"sample at step {record.step:,}: {printable(record.texts[0])}"
    lines: list[Text] = []
    while text and len(lines) < SAMPLE_LINES:
        line = set_cell_size(text, width).rstrip() if cell_len(text) > width else text
        if not line:  # not even one character fits
            break
        lines.append(Text(line, "dim"))
        text = text[len(line) :].lstrip()
    return lines


def fold(items: Sequence[str], width: int) -> list[Text]:
    """Put items next to each other while they fit; an item is broken only if it is wider than the terminal."""
    lines: list[str] = []
    for item in items:
        if lines and cell_len(lines[-1]) + cell_len(item) + 3 <= width:
            lines[-1] += f" · {item}"
        else:
            lines.append(item)
    return [Text(line) for line in lines]


def printable(text: str) -> str:
    """Escape control characters in text of a model or a file, so that it cannot control the terminal."""
    return "".join(one if one.isprintable() else {"\n": "⏎", "\t": " "}.get(one, f"\\x{ord(one):02x}") for one in text)


# The terminal


@contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits a number of seconds for a key and returns its character, or an empty string."""

    def nothing(seconds: float) -> str:
        time.sleep(seconds)
        return ""

    if not sys.stdin.isatty():
        yield nothing
    elif sys.platform == "win32":
        import msvcrt

        def pressed(seconds: float) -> str:
            time.sleep(seconds)
            return msvcrt.getwch() if msvcrt.kbhit() else ""

        yield pressed
    else:
        import termios
        import tty

        before = termios.tcgetattr(sys.stdin)
        try:
            tty.setcbreak(sys.stdin)
            file = sys.stdin.fileno()  # not sys.stdin, whose buffer would keep further keys
            yield (
                lambda seconds: os.read(file, 1).decode("latin-1") if select.select([file], [], [], seconds)[0] else ""
            )
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
