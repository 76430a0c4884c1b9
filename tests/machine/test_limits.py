"""The limits of control groups, version 1 and 2, as containers and batch systems set them."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from regpt.machine import limits
from regpt.machine.limits import GroupLimits, free_memory, group_limits, memory_limit, usable_cores, usable_processors

V2_MOUNT = "31 23 0:28 {} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 {} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 23 0:29 {} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def system(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write what Linux shows in /proc and /sys/fs/cgroup to a folder."""
    written = {"proc/self/cgroup": groups, "proc/self/mountinfo": "22 1 0:2 / /proc rw - proc proc rw\n" + mounts}
    for name, content in {**written, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_group_limits_of_version_2_are_the_smallest_of_all_levels(tmp_path: Path) -> None:
    files = {
        "pods/cpu.max": "250000 100000\n",
        "pods/memory.max": "4000000000\n",
        "pods/memory.current": "3900000000\n",
        "pods/memory.stat": "anon 1000000000\ninactive_file 2900000000\n",
        "pods/one/cpu.max": "max 100000\n",
        "pods/one/memory.max": "max\n",
    }
    root = system(tmp_path, "0::/pods/one\n", V2_MOUNT.format("/"), files)
    assert group_limits(root) == GroupLimits(processors=2.5, memory=4e9, free_memory=3e9)


@pytest.mark.parametrize("shown", ["/", "/docker/abc"], ids=["host", "container"])
def test_group_limits_of_version_1_are_read_below_the_mounted_group(tmp_path: Path, shown: str) -> None:
    folder = "docker/abc/" if shown == "/" else ""
    files = {
        f"cpu,cpuacct/{folder}cpu.cfs_quota_us": "150000\n",
        f"cpu,cpuacct/{folder}cpu.cfs_period_us": "100000\n",
        f"memory/{folder}memory.limit_in_bytes": "1500000000\n",
        f"memory/{folder}memory.usage_in_bytes": "1200000000\n",
        f"memory/{folder}memory.stat": "inactive_file 5\ntotal_inactive_file 200000000\n",
    }
    groups = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"
    root = system(tmp_path, groups, V1_MOUNTS.replace("{}", shown), files)
    assert group_limits(root) == GroupLimits(processors=1.5, memory=1.5e9, free_memory=0.5e9)


@pytest.mark.parametrize(
    ("groups", "mounts", "files"),
    [
        ("0::/\n", V2_MOUNT.format("/"), {"cpu.max": "max 100000", "memory.max": "max", "memory.current": "5"}),
        ("4:cpu,cpuacct:/\n5:memory:/\n", V1_MOUNTS.replace("{}", "/"),
         {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000",
          "memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "7"}),
        ("0::/../../elsewhere\n", V2_MOUNT.format("/"), {}),
        ("junk\n", "junk\n", {}),
        ("", "", {}),
    ],
    ids=["v2", "v1", "outside", "junk", "none"],
)  # fmt: skip
def test_group_limits_are_infinite_where_none_is_set(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str]
) -> None:
    assert group_limits(system(tmp_path, groups, mounts, files)) == GroupLimits(math.inf, math.inf, math.inf)
    assert group_limits(tmp_path / "not linux") == GroupLimits(math.inf, math.inf, math.inf)


@pytest.mark.parametrize(
    ("quota", "processors", "cores", "for_each_of_two"),
    [(math.inf, 8, 4, 2), (2.5, 3, 3, 1), (0.1, 1, 1, 1), (16.0, 8, 4, 2)],
)
def test_processors_and_cores_follow_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float, processors: int, cores: int, for_each_of_two: int
) -> None:
    """Of a machine with 64 processors this process may use 8, which are 4 cores with two threads each."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(limits, "read", lambda path: f"{int(path.parts[-3][3:]) // 2}-siblings")
    monkeypatch.setattr(limits, "group_limits", lambda: GroupLimits(processors=quota))
    assert usable_processors() == processors
    assert (usable_cores(), usable_cores(2), usable_cores(100)) == (cores, for_each_of_two, 1)


def test_free_memory_is_the_smaller_of_machine_and_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=60e9, total=64e9))
    for group, free, limit in [
        (GroupLimits(memory=4e9, free_memory=3e9), 3e9, 4e9),
        (GroupLimits(memory=100e9, free_memory=99e9), 60e9, math.inf),
        (GroupLimits(), 60e9, math.inf),
    ]:
        monkeypatch.setattr(limits, "group_limits", lambda group=group: group)
        assert (free_memory(), memory_limit()) == (free, limit)
