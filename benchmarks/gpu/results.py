"""What a section measured, what was expected, and how it ended; as records, as JSON, and in words."""

import enum
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regpt.base.files import write_text

Value = float | int | bool | str | None


class Outcome(enum.Enum):
    """How a section ended."""

    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"  # a measured value is outside its bound
    ERROR = "error"  # an exception
    NEEDS_CUDA = "needs CUDA"
    ABSENT = "absent"  # a package or file of others
    NO_TIME = "no time"  # not enough of the budget was left, at the start or for the rest of the section

    @property
    def is_bad(self) -> bool:
        return self in (Outcome.FAILED, Outcome.ERROR)


@dataclass(frozen=True)
class Bound:
    """What a value should be. A value that is NaN or missing is outside every bound."""

    least: float | None = None
    most: float | None = None
    equal: Value = None

    def holds(self, value: Value) -> bool:
        if self.equal is not None:
            return value == self.equal
        if value is None or isinstance(value, str) or math.isnan(value):
            return False
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class Measured:
    """One measured value. Without a bound it is only reported."""

    name: str
    value: Value
    unit: str = ""
    expected: Bound | None = None

    @property
    def passed(self) -> bool | None:
        """Return whether the value is as expected; None if nothing was expected."""
        return None if self.expected is None else self.expected.holds(self.value)


class AbsentError(Exception):
    """Raised by a section that needs a package or file that this machine does not have."""


@dataclass
class Result:
    """A section's values and its end."""

    name: str
    title: str
    outcome: Outcome = Outcome.RUNNING
    error: str = ""
    seconds: float = 0.0
    measured: list[Measured] = field(default_factory=list)

    def end(self) -> Outcome:
        """Return the outcome of a section that came to its end."""
        return Outcome.FAILED if any(one.passed is False for one in self.measured) else Outcome.PASSED

    def to_json(self) -> dict[str, Any]:
        values = [{**asdict(one), "passed": one.passed} for one in self.measured]
        return {**vars(self), "outcome": self.outcome.value, "measured": values}


@dataclass
class Report:
    """All results, and the machine that they hold for."""

    machine: dict[str, Value]
    results: list[Result] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write gpu.json and gpu.md."""
        values = {"machine": self.machine, "sections": [result.to_json() for result in self.results]}
        write_text(folder / "gpu.json", json.dumps(values, indent=1) + "\n")
        write_text(folder / "gpu.md", "\n".join(self.page()) + "\n")

    def page(self) -> list[str]:
        """Return the readable page: the machine, and a table for each section."""
        lines = ["# regpt on this machine", "", "Written by `python -m benchmarks.gpu`.", ""]
        lines += [f"- {name}: {shown(value)}" for name, value in self.machine.items()]
        lines += ["", "| section | result | seconds |", "|---|---|---|"]
        lines += [f"| {one.name} | {one.outcome.value} | {one.seconds:.1f} |" for one in self.results]
        for result in self.results:
            lines += ["", f"## {result.name}: {result.title}", "", ending(result), ""]
            if result.measured:
                lines += ["| measured | value | expected | passed? |", "|---|---|---|---|"]
                lines += [row(one) for one in result.measured]
        return lines


def ending(result: Result) -> str:
    about = f"{result.outcome.value.capitalize()} after {result.seconds:.1f} s."
    return f"{about} {' '.join(result.error.split())}" if result.error else about


def row(one: Measured) -> str:
    passed = {None: "", True: "yes", False: "**no**"}[one.passed]
    expected = "" if one.expected is None else bound_text(one.expected, one.unit)
    return f"| {one.name} | {with_unit(one.value, one.unit)} | {expected} | {passed} |"


def bound_text(bound: Bound, unit: str) -> str:
    if bound.equal is not None:
        return with_unit(bound.equal, unit)
    parts = [
        f"{sign} {with_unit(end, unit)}" for sign, end in (("≥", bound.least), ("≤", bound.most)) if end is not None
    ]
    return " and ".join(parts)


def with_unit(value: Value, unit: str) -> str:
    return f"{shown(value)} {unit}".strip()


def shown(value: Value) -> str:
    """Return a value with four significant digits; whole numbers from 1,000 on."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
