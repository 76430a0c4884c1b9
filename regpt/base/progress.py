"""The protocols with which long work reports its progress and is asked to stop."""

from typing import Protocol


class StopCheck(Protocol):
    """Decides whether long work must stop early."""

    def raise_if_stopped(self) -> None:
        """Raise the exception that ends the work, if it must stop.

        The work calls this a few times a second, at points where nothing is lost.
        """


class Progress(StopCheck, Protocol):
    """Receives the progress of one piece of long work, and may stop it."""

    def update(self, done: int, total: int) -> None:
        """Report that `done` of `total` units are finished. The caller of the work defines the unit."""


class NoProgress:
    """Ignores progress and never stops the work."""

    def raise_if_stopped(self) -> None:
        pass

    def update(self, done: int, total: int) -> None:
        pass
