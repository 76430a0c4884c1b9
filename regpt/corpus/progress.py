"""Progress of a preparation: the events that it reports, in the order in which they happen."""

from typing import Protocol

from regpt.base.progress import NoProgress, StopCheck
from regpt.data.shards import Manifest


class PreparationProgress(StopCheck, Protocol):
    """Receives the events of a preparation, and may stop it."""

    def started(self, description: str, size: int, workers: int) -> None:
        """Encoding starts: a corpus of `size` bytes on the disk, read by `workers` processes."""

    def resumed(self, done: int, tokens: int) -> None:
        """An earlier attempt has finished `done` bytes of the corpus, `tokens` tokens."""

    def fetching(self, name: str, done: int, size: int) -> None:
        """The work waits for a download, of which `done` of `size` bytes have arrived."""

    def advanced(self, size: int, tokens: int, text_bytes: int) -> None:
        """One more chunk is written: `size` bytes of the corpus, with this many tokens and bytes of text."""

    def splitting(self, done: int, total: int) -> None:
        """The encoded text is being divided into validation and training: `done` of `total` tokens.

        The total is twice that of the text, whose tokens are read once to choose and once to be written.
        """

    def finished(self, path: str, manifest: Manifest, seconds: float) -> None:
        """The dataset is complete at `path`. `seconds` is the time of all attempts together."""

    def note(self, text: str) -> None:
        """Report something that the user should know."""


class NoPreparationProgress(NoProgress):
    """Ignores all events and never stops the preparation."""

    def started(self, description: str, size: int, workers: int) -> None:
        pass

    def resumed(self, done: int, tokens: int) -> None:
        pass

    def fetching(self, name: str, done: int, size: int) -> None:
        pass

    def advanced(self, size: int, tokens: int, text_bytes: int) -> None:
        pass

    def splitting(self, done: int, total: int) -> None:
        pass

    def finished(self, path: str, manifest: Manifest, seconds: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass
