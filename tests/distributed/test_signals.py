"""Signals that end the work, and when."""

import signal

import pytest

from regpt.distributed.signals import GracefulStop, ImmediateStop, StopRequested


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no terminals that close")
@pytest.mark.parametrize("handler", [GracefulStop, ImmediateStop])
def test_closed_terminal_does_not_end_work_under_nohup(handler: type[GracefulStop] | type[ImmediateStop]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with handler() as stopping:
            signal.raise_signal(signal.SIGHUP)
            stopping.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with handler() as stopping:
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(StopRequested):
                stopping.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signal_before_the_work_starts_ends_it_at_once() -> None:
    with ImmediateStop() as stopping:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopRequested), stopping.now():
            raise AssertionError("the work must not begin")
