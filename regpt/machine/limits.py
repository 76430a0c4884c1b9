"""The processors and the memory that this process may use: those of the machine, or fewer in a container or a job.

Linux limits a group of processes by control groups, version 1 or 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html).
Docker, Kubernetes and Slurm set them. Python and psutil report the machine's own figures.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED = 2**60  # bytes: version 1 writes a number near 2^63 where there is no limit
CONTROLLERS = ("", "cpu", "memory")  # of version 2, which has one tree, and of version 1


@dataclass(frozen=True)
class GroupLimits:
    """The limits of this process's control groups; infinity without a limit."""

    processors: float = math.inf  # processor seconds per second
    memory: float = math.inf  # bytes
    free_memory: float = math.inf  # bytes left below the limit; files in the page cache count as free


def group_limits(root: Path = Path("/")) -> GroupLimits:
    """Read the limits of this process's groups and of all groups that contain them; the smallest count."""
    found = [limits_of_group(folder) for folder in dict.fromkeys(group_folders(root))]
    return GroupLimits(
        min((one.processors for one in found), default=math.inf),
        min((one.memory for one in found), default=math.inf),
        min((one.free_memory for one in found), default=math.inf),
    )


def group_folders(root: Path) -> Iterator[Path]:
    """Yield the folder of each group that this process is in, from the innermost to the outermost that is visible."""
    lines = [line.split(":", 2) for line in read(root / "proc/self/cgroup").splitlines()]
    groups = {name: PurePosixPath(line[2]) for line in lines if len(line) == 3 for name in line[1].split(",")}
    for line in read(root / "proc/self/mountinfo").splitlines():
        place, _, about = line.partition(" - ")
        words, (kind, _, options) = place.split(), [*about.split(), "", "", ""][:3]
        if kind not in ("cgroup", "cgroup2"):
            continue
        mount = root / words[4].lstrip("/")
        for name in [""] if kind == "cgroup2" else options.split(","):
            if name in CONTROLLERS and name in groups:
                group, shown = groups[name], PurePosixPath(words[3])  # a container may see a part of the tree only
                is_visible = group.is_relative_to(shown) and ".." not in group.parts
                inner = mount / (group.relative_to(shown) if is_visible else "")
                yield inner
                yield from (folder for folder in inner.parents if folder.is_relative_to(mount))


def limits_of_group(folder: Path) -> GroupLimits:
    """Read the limits of one group."""
    processors, limit = math.inf, math.inf
    quota, period = [*read(folder / "cpu.max").split(), "", ""][:2]
    quota = quota or read(folder / "cpu.cfs_quota_us")
    period = period or read(folder / "cpu.cfs_period_us")
    if number(quota) > 0 and number(period) > 0:
        processors = number(quota) / number(period)
    maximum = number(read(folder / "memory.max") or read(folder / "memory.limit_in_bytes"))
    if 0 <= maximum < UNLIMITED:
        limit = maximum
    used = number(read(folder / "memory.current") or read(folder / "memory.usage_in_bytes"))
    statistics = [line.split() for line in read(folder / "memory.stat").splitlines()]
    cached = {words[0]: number(words[1]) for words in statistics if len(words) == 2}
    droppable = cached.get("total_inactive_file", cached.get("inactive_file", 0))
    return GroupLimits(processors, limit, max(0.0, limit - max(0, used - droppable)))


def read(path: Path) -> str:
    """Return a small file's text; empty if there is no such file or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(text: str) -> int:
    """Return a whole number; -1 for any other text, such as 'max'."""
    return int(text) if text.isdecimal() else -1


def usable_processors() -> int:
    """Return the number of logical processors that this process may use at a time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(count, ceiling(group_limits().processors)))


def usable_cores(processes: int = 1) -> int:
    """Return the number of physical cores for each of `processes` that share those of this process; at least 1."""
    return max(1, min(physical_cores(), ceiling(group_limits().processors)) // processes)


def physical_cores() -> int:
    """Return the number of physical cores with a logical processor that this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        import psutil

        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    topology = Path("/sys/devices/system/cpu")
    return len({read(topology / f"cpu{n}/topology/thread_siblings_list") or n for n in os.sched_getaffinity(0)})


def ceiling(processors: float) -> int:
    """Round up: of 2.5 processors, three threads use all and two use two."""
    return math.ceil(min(processors, 1e6))


def free_memory() -> float:
    """Return the bytes that this process may still allocate: those free in the machine, or in its control groups."""
    import psutil

    return min(float(psutil.virtual_memory().available), group_limits().free_memory)


def memory_limit() -> float:
    """Return the limit of this process's control groups in bytes; infinity if the machine has less."""
    import psutil

    limit = group_limits().memory
    return limit if limit < math.inf and limit < psutil.virtual_memory().total else math.inf
