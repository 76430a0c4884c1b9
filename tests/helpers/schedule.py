"""The order of the tests under pytest-xdist.

Tests that share a module fixture run in one worker, so that the fixture is built once. The longest groups and tests
run first, so that no worker is left with a long test at the end. Tests of 0.9 seconds or more are marked as slow.
The expected durations are in tests/durations.json; `make durations` measures them again.
"""

import json
from collections import defaultdict
from pathlib import Path

import pytest

TABLE = Path(__file__).parent.parent / "durations.json"
SHORT_SECONDS = 0.9  # shorter tests are not in the table and keep their order
SLOW_SECONDS = 0.9
SHARED_SCOPES = {"class", "module", "package"}


def group_of(item: pytest.Item) -> str | None:
    """Return the name of the worker group that `item` belongs to, or None if it may run anywhere."""
    for mark in item.iter_markers("xdist_group"):
        return str(mark.args[0] if mark.args else mark.kwargs["name"])
    info = getattr(item, "_fixtureinfo", None)  # private to pytest; no public interface tells a fixture's scope
    definitions = info.name2fixturedefs.values() if info else ()
    if any(definition.scope in SHARED_SCOPES for fixtures in definitions for definition in fixtures):
        return item.nodeid.partition("::")[0]
    return None


def expected_seconds() -> dict[str, float]:
    """Read the expected durations of the longer tests, by node id."""
    return dict(json.loads(TABLE.read_text(encoding="utf-8"))) if TABLE.exists() else {}


def mark_slow(items: list[pytest.Item]) -> None:
    """Mark tests as slow that have no such mark yet and are expected to take SLOW_SECONDS or more."""
    durations = expected_seconds()
    for item in items:
        if durations.get(item.nodeid, 0.0) >= SLOW_SECONDS and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.slow)


def guess(item: pytest.Item) -> float:
    """Return the assumed duration of a test that is not in the table, in seconds."""
    return 2 * SLOW_SECONDS if item.get_closest_marker("slow") else 0.0


def schedule(items: list[pytest.Item]) -> None:
    """Mark the groups of `items` for `--dist loadgroup`, and move the longest to the front."""
    durations = expected_seconds()
    members: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        group = group_of(item)
        if group is not None and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group))
        members[group or item.nodeid].append(item)
    seconds = {name: sum(durations.get(item.nodeid, guess(item)) for item in group) for name, group in members.items()}
    items[:] = [item for name in sorted(members, key=lambda name: -seconds[name]) for item in members[name]]


class DurationRecorder:
    """A pytest plugin that writes the durations of a whole run to tests/durations.json."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.partition("@")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        long = {name: round(value, 1) for name, value in sorted(self.seconds.items()) if value >= SHORT_SECONDS}
        TABLE.write_text(json.dumps(long, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
