"""What every benchmark found, kept in history.json: the page and its plots are written from it.

A part is one benchmark. An entry is one run of a part: its date, its machine, the measures, and its text for the page.
"""

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).parent / "history.json"
FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Goal:
    """The bound that a measure should keep: at least or at most `value`."""

    value: float
    at_most: bool = False

    def is_kept(self, value: float) -> bool:
        return value <= self.value if self.at_most else value >= self.value

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.value:g}"


@dataclass(frozen=True)
class Measure:
    """A figure of several rounds: a ratio unless it has a unit. `low` and `high` are the least and largest round."""

    name: str
    value: float  # the median
    low: float
    high: float
    rounds: int
    unit: str = ""
    goal: Goal | None = None

    @property
    def shown(self) -> str:
        """Return the value with its range."""
        unit = f" {self.unit}" if self.unit else ""
        if self.rounds == 1:
            return f"{self.value:.3g}{unit}"
        return f"{self.value:.3g}{unit} ({self.low:.3g} to {self.high:.3g}, {self.rounds} rounds)"


def measure_of(name: str, rounds: Sequence[float], goal: Goal | None = None, unit: str = "") -> Measure:
    """Summarize the figures of several rounds."""
    return Measure(name, statistics.median(rounds), min(rounds), max(rounds), len(rounds), unit, goal)


@dataclass(frozen=True)
class Section:
    """What one run of a part found: the text of the page below `title`, and the measures that are kept."""

    title: str
    text: str
    measures: tuple[Measure, ...] = ()


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran."""

    cpu: str
    threads: int
    python: str
    torch: str
    system: str

    def __str__(self) -> str:
        return f"{self.cpu}, {self.threads} threads, Python {self.python}, torch {self.torch}, {self.system}"


def this_machine() -> Machine:
    has = torch.cpu.get_capabilities()
    features = ", ".join(name for name in FEATURES if has.get(name))
    cpu = f"{has.get('cpu_name', platform.processor())} ({features})"
    return Machine(cpu, torch.get_num_threads(), platform.python_version(), torch.__version__, platform.system())


@dataclass(frozen=True)
class Entry:
    """One run of a part."""

    part: str
    date: str  # YYYY-MM-DD
    machine: Machine
    section: Section


def read_history(path: Path = FILE) -> list[Entry]:
    """Return all entries, oldest first."""
    if not path.exists():
        return []
    return [entry_of(stored) for stored in json.loads(path.read_text(encoding="utf-8"))]


def entry_of(stored: dict[str, Any]) -> Entry:
    section = stored["section"]
    measures = tuple(
        Measure(**{**one, "goal": Goal(**one["goal"]) if one["goal"] else None}) for one in section["measures"]
    )
    machine = Machine(**stored["machine"])
    return Entry(stored["part"], stored["date"], machine, Section(section["title"], section["text"], measures))


def record(part: str, section: Section, path: Path = FILE) -> list[Entry]:
    """Add a run of a part to the history, write it, and return it. Only the newest entry of a part keeps its text."""
    entry = Entry(part, f"{datetime.now(UTC):%Y-%m-%d}", this_machine(), section)
    earlier = [without_text(one) if one.part == part else one for one in read_history(path)]
    write_history([*earlier, entry], path)
    return [*earlier, entry]


def without_text(entry: Entry) -> Entry:
    return replace(entry, section=replace(entry.section, text=""))


def write_history(entries: Sequence[Entry], path: Path = FILE) -> None:
    text = json.dumps([asdict(entry) for entry in entries], indent=1, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def newest(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Return the last entry of each part, in the order in which the parts first ran."""
    return {entry.part: entry for entry in entries}
