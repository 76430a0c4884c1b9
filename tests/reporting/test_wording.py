"""Short texts of a report, also of runs whose clock was wrong."""

from pathlib import Path

import pytest

from regpt.recipe.recipe import Recipe
from regpt.reporting.wording import durations, event_line
from regpt.tracking.environment import Environment
from regpt.tracking.events import Finished, Started
from regpt.tracking.journal import EventRecord, History
from regpt.tracking.run import Run


def run_of(*moments: float) -> Run:
    events = [EventRecord(step=0, detail=Started(), at=moments[0])]
    events += [EventRecord(step=1, detail=Finished(), at=at) for at in moments[1:]]
    return Run(Path("runs/a"), Recipe(name="a"), Environment(), History(events=events))


@pytest.mark.parametrize(
    ("moments", "text"),
    [
        ((0.0, 90.0), "0 s in training steps; 1 min 30 s from first start to last event"),
        ((90.0, 0.0), "0 s in training steps"),  # the clock was set back
        ((90.0,), "0 s in training steps"),
    ],
)
def test_durations_leave_out_a_negative_time(moments: tuple[float, ...], text: str) -> None:
    assert durations(run_of(*moments)) == text


@pytest.mark.parametrize(("at", "begins"), [(0.0, "1970-01-01 00:00:00 UTC: "), (1e18, "—: ")])
def test_event_line_begins_with_its_moment_or_a_dash(at: float, begins: str) -> None:
    assert event_line(run_of(at).history.events[0]).startswith(begins)
