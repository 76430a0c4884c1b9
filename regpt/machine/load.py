"""Measure how much of the machine's processors other programs use while this one trains, and how long it runs."""

import time
from typing import Any

IDLE = ("idle", "iowait")  # where a system has them


class LoadMeter:
    """Compare the work of the processors that this process may use with the work of the process itself.

    `local_ranks` processes of the run share the machine and are assumed to work alike. What a hypervisor takes away
    (steal) counts as the work of others.
    """

    def __init__(self, local_ranks: int) -> None:
        self.local_ranks = local_ranks
        self.start = self.read()

    def other_share(self) -> float:
        """Return the share (0 to 1) of the processors that others used since the start; -1 if it cannot be measured."""
        before, now = self.start, self.read()
        if before is None or now is None or now[1] <= before[1]:
            return -1.0
        busy, total, own = (after - earlier for earlier, after in zip(before, now, strict=True))
        return min(1.0, max(0.0, busy - own * self.local_ranks) / total)

    def read(self) -> tuple[float, float, float] | None:
        """Return seconds of work, of work and idleness, and of this process; None if the system does not say.

        None also without psutil, which a machine with a card can train without.
        """
        try:
            import psutil
        except ImportError:
            return None
        try:
            process = psutil.Process()
            processors = psutil.cpu_times(percpu=True)
            allowed = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(len(processors))
            times = [processors[number] for number in allowed if number < len(processors)]
            own = process.cpu_times()
        except (psutil.Error, OSError, NotImplementedError):
            return None
        total = sum(sum(of(processor).values()) for processor in times)
        idle = sum(of(processor).get(name, 0.0) for processor in times for name in IDLE)
        return total - idle, total, own.user + own.system


def of(processor: Any) -> dict[str, float]:
    """Return a processor's seconds by kind. The time of guests is part of the user's."""
    return {name: seconds for name, seconds in processor._asdict().items() if not name.startswith("guest")}


def process_seconds() -> float:
    """Return the seconds since this process started; 0 if the system does not say, or its clock was set back."""
    import psutil

    try:
        return max(0.0, time.time() - psutil.Process().create_time())
    except (psutil.Error, OSError, NotImplementedError):
        return 0.0
