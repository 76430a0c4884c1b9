"""The meter of other programs' work sees a busy neighbour, and does not count this process's own work."""

import multiprocessing
import sys
import time

import psutil
import pytest

from regpt.machine.load import LoadMeter, process_seconds


def work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_load_of_another_process_is_counted() -> None:
    meter = LoadMeter(local_ranks=1)
    other = multiprocessing.get_context("spawn").Process(target=work, args=(0.6,))
    other.start()
    other.join()
    now = meter.read()
    assert meter.start is not None and now is not None
    assert meter.other_share() * (now[1] - meter.start[1]) > 0.5  # seconds of a processor


def test_load_of_this_process_is_its_own() -> None:
    """Next to any other load of this machine, half a second of own work is not counted as another's."""
    meter = LoadMeter(local_ranks=1)
    work(0.5)
    now = meter.read()
    assert meter.start is not None and now is not None
    busy, total, own = (after - before for before, after in zip(meter.start, now, strict=True))
    assert own > 0.45
    assert meter.other_share() * total == pytest.approx(max(0.0, busy - own), abs=0.1)


def test_load_of_several_ranks_is_their_own() -> None:
    meter = LoadMeter(local_ranks=2)
    meter.start = (10.0, 100.0, 5.0)
    meter.read = lambda: (20.0, 120.0, 9.0)  # type: ignore[method-assign]
    assert meter.other_share() == pytest.approx((10 - 2 * 4) / 20)


def test_load_is_unknown_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(percpu: bool) -> None:
        raise OSError("no /proc")

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    assert LoadMeter(local_ranks=1).other_share() == -1.0


def test_load_is_unknown_without_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert LoadMeter(local_ranks=1).other_share() == -1.0


def test_seconds_of_this_process_are_those_since_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started_at = psutil.Process().create_time()
    monkeypatch.setattr(time, "time", lambda: started_at + 7.5)
    assert process_seconds() == pytest.approx(7.5)
    monkeypatch.setattr(time, "time", lambda: started_at - 3600.0)  # a clock that was set back
    assert process_seconds() == 0.0
