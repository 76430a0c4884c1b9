"""Which signals end what goes on, and when."""

import signal

import pytest

from regpt.distributed.signals import GracefulStop, ImmediateStop, StopRequested


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no terminals that close")
@pytest.mark.parametrize("heeding", [GracefulStop, ImmediateStop])
def test_a_closed_terminal_ends_nothing_that_nohup_started(heeding: type[GracefulStop] | type[ImmediateStop]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with heeding() as stopping:
            signal.raise_signal(signal.SIGHUP)
            stopping.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with heeding() as stopping:
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(StopRequested):
                stopping.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_before_the_work_ends_it_at_its_beginning() -> None:
    with ImmediateStop() as stopping:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopRequested), stopping.now():
            raise AssertionError("the work must not begin")
