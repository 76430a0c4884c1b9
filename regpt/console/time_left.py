"""How long a piece of long work still takes, at the speed so far."""

import time

from regpt.base.format import duration, percent

MEASURED_SECONDS = 5.0  # after which a first estimate is worth a line
LONG_SECONDS = 60.0  # work that takes longer is announced


def time_left(started_at: float, done: int, total: int) -> str:
    """Describe the time left at the speed so far, as ' · 3 min 5 s left'; empty before anything is done."""
    return f" · {duration(seconds_left(started_at, done, total))} left" if done else ""


def seconds_left(started_at: float, done: int, total: int) -> float:
    return (time.perf_counter() - started_at) / done * (total - done)


class LongWork:
    """A piece of work that may be long, such as an evaluation. It begins when this is made."""

    def __init__(self) -> None:
        self.started_at = time.perf_counter()
        self.is_announced = False

    def status(self, done: int, total: int) -> str:
        """Describe the part that is done and the time left: '12 % · 3 min 5 s left'."""
        return f"{percent(round(done / max(1, total), 2))}{time_left(self.started_at, done, total)}"

    def must_be_announced(self, done: int, total: int) -> bool:
        """Return whether to print a first line now, where no bar shows the progress: once, if the work is long."""
        if self.is_announced or not done or time.perf_counter() - self.started_at < MEASURED_SECONDS:
            return False
        self.is_announced = seconds_left(self.started_at, done, total) > LONG_SECONDS
        return self.is_announced
