"""A run as it goes on, in a terminal of any size: drawn anew in place; or once, as plain lines."""

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from rich.console import Console as Terminal
from rich.live import Live
from rich.text import Text

from regpt.base.errors import DONE, INTERRUPTED, UserError
from regpt.base.format import smoothed
from regpt.distributed.signals import ImmediateStop
from regpt.tracking.events import CheckpointFailed, Failed, Finished, OutOfMemory, Rollback, Started, Stopped
from regpt.tracking.journal import EventRecord
from regpt.tracking.run import find_run, primary_accuracy
from regpt.tracking.status import RunMonitor, RunStatus, duration
from regpt.watch.terminal_plot import Curve, draw_curves

TICK_SECONDS = 0.1  # within which a key, and another size of the terminal, are noticed
SMOOTHING_STEPS = 10  # of the training loss; more where a column of dots stands for more
LEAST_CURVE = 6  # lines
EVENT_LINES = 3  # at most
SAMPLE_LINES = 3
SOON = 20 * 3600  # seconds; a later time of day needs its day
STYLES = {
    "beginning": "cyan",
    "running": "green",
    "silent": "yellow",
    "killed": "red",
    "ended": "red",
    "stopped": "yellow",
    "failed": "red",
    "finished": "green",
}


def watch(path: Path, every: float, once: bool) -> int:
    """Show a run until it has finished, or until q or Ctrl-C; returns the exit code. Looks every so many seconds."""
    watched = RunMonitor(path)
    progress = watched.update()
    terminal = Terminal(highlight=False)
    if once or not sys.stdout.isatty() or terminal.is_dumb_terminal:
        print_plainly(progress)
        return DONE
    live = Live(console=terminal, screen=True, auto_refresh=False, vertical_overflow="crop")
    left = False
    with ImmediateStop() as stopping, keys() as pressed, live:  # nothing is raised amid a drawing
        while not (progress.over or left or stopping.stopped):
            size = terminal.size
            live.update(view(progress, size.width, size.height), refresh=True)
            until = time.monotonic() + every
            while time.monotonic() < until and terminal.size == size and not (left or stopping.stopped):
                left = pressed(TICK_SECONDS) in ("q", "Q")
            progress = watched.update()
    if stopping.stopped and stopping.stopped.code != INTERRUPTED:  # Ctrl-C is one more way to leave
        return stopping.stopped.code
    # the alternate screen is gone with all it showed
    width, height = terminal.size
    terminal.print(view(progress, width, height - 2) if progress.over else joined(head(progress, width, height), width))
    return DONE


def print_plainly(progress: RunStatus) -> None:
    """Without any escape code, for the terminal's size where there is one (or COLUMNS and LINES tell it)."""
    width, height = Terminal().size
    for line in view(progress, width, height - 1).plain.split("\n"):
        print(line.rstrip())


def wait_for(where: str, root: Path, every: float, say: Callable[[str], None]) -> Path:
    """The run of a name, as soon as there is one."""
    said = False
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    while True:
        try:
            return find_run(where, root)
        except UserError as error:
            if not said:
                say(f"{error.problem} yet; waiting for it, until Ctrl-C")
            said = True
            time.sleep(every)


# What is shown


def view(progress: RunStatus, width: int, height: int) -> Text:
    """As many lines as there is room for, none wider than the terminal; what matters most goes last."""
    top = head(progress, width, height)
    room = height - len(top)
    least = LEAST_CURVE + 1
    happened, sample = events(progress), latest_sample(progress, width)
    shown_events = happened[-min(EVENT_LINES, room - least) :] if room > least else []
    room -= len(shown_events)
    shown_sample = sample[: max(0, room - least - 2)]
    room -= len(shown_sample)
    curve = curves(progress, width, room) if room >= least else []
    return joined([*top, *curve, *shown_events, *shown_sample][:height], width)


def joined(lines: Sequence[Text], width: int) -> Text:
    """Lines as one text that nothing breaks anew; what is too long ends in an ellipsis."""
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def head(progress: RunStatus, width: int, height: int) -> list[Text]:
    """State and figures, by what matters most; in a low terminal fewer, so that there is a curve."""
    state = progress.state
    first = Text(printable(progress.name), "bold").append(f"  {state.word}", STYLES.get(state.word, ""))
    told = folded([part.strip() for part in printable(state.sentence).split(";")], width) if state.sentence else []
    if len(told) == 1 and first.cell_len + told[0].cell_len + 2 <= width:
        first.append("  ").append_text(told.pop())
    share = min(1.0, progress.step / progress.recipe.run.max_steps)
    steps = f"step {progress.step:,} of {progress.recipe.run.max_steps:,} · {share:.1%}"
    bar = max(0, min(40, width - len(steps) - 2))
    second = Text()
    if bar >= 10:
        second.append("━" * round(bar * share), "green").append("─" * (bar - round(bar * share)), "dim").append("  ")
    room = max(1, height - len(told) - 2 - LEAST_CURVE - 1)
    return [first, *told, second.append(steps), *folded(figures(progress), width)[:room]]


def figures(progress: RunStatus) -> list[str]:
    history = progress.history
    taken = f"{duration(sum(record.seconds for record in history.steps))} in training steps"
    left, *counted = [taken] if progress.over else time_left(progress)
    found = [left]
    if history.steps:
        last = history.steps[-1]
        mean = smoothed([record.loss for record in history.steps[-SMOOTHING_STEPS:]], SMOOTHING_STEPS)[-1]
        found.append(f"loss {last.loss:.4f} (mean of {min(SMOOTHING_STEPS, len(history.steps))}: {mean:.4f})")
    if history.validations:
        look = history.validations[-1]
        error = f" ± {look.standard_error:.4f}" if look.standard_error else ""
        found.append(f"validation {look.loss:.4f}{error} at step {look.step:,}")
    if progress.hellaswag:
        (share, share_error), at = primary_accuracy(progress.hellaswag[-1]), progress.hellaswag[-1].step
        found.append(f"HellaSwag {share:.3f} ± {share_error:.3f} at step {at:,}")
    if history.steps:
        peak = progress.share_of_peak
        found.append(f"{progress.tokens_per_second:,.0f} tokens/s" + (f", {peak:.1%} of peak" if peak else ""))
    if history.skipped:
        bad = history.skipped[-1]
        found.append(f"{len(history.skipped):,} passed over, the last at step {bad.step:,}: {printable(bad.reason)}")
    found += counted
    if history.steps:
        found.append(f"rate {last.learning_rate:.2e}")
        found.append(f"gradient norm {last.gradient_norm:.2f}")
    found.append(f"{progress.tokens:,} of {progress.recipe.total_tokens:,} tokens")
    if history.checkpoints:
        found.append(f"saved at step {history.checkpoints[-1].step:,}")
    return found


def time_left(progress: RunStatus) -> list[str]:
    """From now where it runs; and what is counted besides the steps."""
    seconds = progress.seconds_left
    if seconds is None:
        return ["time left not known before a step"]
    looks = [f"{count:,} x {name}" for name, count in progress.evaluations_left.items() if count]
    counted = [f"with {', '.join(looks)}, and saving as so far"] if looks else []
    if progress.state.word not in ("running", "silent"):
        return [f"{duration(seconds)} to go", *counted]
    ends_at = progress.written_at + seconds
    until = f"{datetime.fromtimestamp(ends_at):{'%H:%M' if ends_at - progress.now < SOON else '%a %d %b %H:%M'}}"
    return [f"{duration(max(0.0, ends_at - progress.now))} left, until {until}", *counted]


def curves(progress: RunStatus, width: int, height: int) -> list[Text]:
    """Losses over tokens: what was trained on as a line, validation as marks, below a line that names them."""
    history = progress.history
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


def events(progress: RunStatus) -> list[Text]:
    return [
        Text(f"{datetime.fromtimestamp(event.at):%H:%M:%S}  ", "dim").append(
            printable(describe_event(event)), "default"
        )
        for event in progress.history.events
    ]


def describe_event(event: EventRecord) -> str:
    """Word an event for one line."""
    at = f"at step {event.step:,}"
    match event.detail:
        case Started(device=device, ranks=ranks):
            on_ranks = f" on {ranks} ranks" if ranks != 1 else ""
            return f"{event.event} {at}{on_ranks}, {device or 'device not known'}"
        case Rollback(from_step=start, excluded_batches=excluded):
            return f"rolled back from step {start:,} to {event.step:,}; {len(excluded)} batches excluded"
        case OutOfMemory(micro_batch_before=before, micro_batch_after=after):
            return f"out of memory, micro-batch {before} halved to {after}; restarted {at}"
        case CheckpointFailed(problem=problem):
            return f"checkpoint {at} not written: {problem}"
        case Stopped(signal=signal):
            return f"stopped {at} by {signal or 'a signal'}"
        case Failed(reason=reason):
            return f"failed {at}: {reason}"
        case Finished():
            return f"finished {at}"


def latest_sample(progress: RunStatus, width: int) -> list[Text]:
    if not progress.history.samples or not progress.history.samples[-1].texts:
        return []
    record = progress.history.samples[-1]
    text = f"sample at step {record.step:,}: {printable(record.texts[0])}"
    lines: list[Text] = []
    while text and len(lines) < SAMPLE_LINES:
        line = set_cell_size(text, width).rstrip() if cell_len(text) > width else text
        if not line:  # not even one character fits
            break
        lines.append(Text(line, "dim"))
        text = text[len(line) :].lstrip()
    return lines


def folded(items: Sequence[str], width: int) -> list[Text]:
    """Items side by side as far as they fit, none cut in two unless it is wider than the terminal."""
    lines: list[str] = []
    for item in items:
        if lines and cell_len(lines[-1]) + cell_len(item) + 3 <= width:
            lines[-1] += f" · {item}"
        else:
            lines.append(item)
    return [Text(line) for line in lines]


def printable(text: str) -> str:
    """Text of a model or of a file, so that a terminal takes nothing in it for a command."""
    return "".join(one if one.isprintable() else {"\n": "⏎", "\t": " "}.get(one, f"\\x{ord(one):02x}") for one in text)


# The terminal


@contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """How to wait so many seconds for a key: its character, or nothing."""

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
            file = sys.stdin.fileno()  # not through sys.stdin, which would keep what came with the first key
            yield (
                lambda seconds: os.read(file, 1).decode("latin-1") if select.select([file], [], [], seconds)[0] else ""
            )
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
