"""Messages between ranks through torchrun's store, for work that is slow or runs in a thread."""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from regpt.base.errors import CheckpointError, DataError, LockedError, NumericsError, RanksError, UserError
from regpt.distributed.failures import FAILURE_KEY, POLL_SECONDS, RankConnections

Result = TypeVar("Result")
ERROR_TYPES = {
    kind.__name__: kind for kind in (UserError, CheckpointError, DataError, LockedError, NumericsError, RanksError)
}


class Messages(RankConnections):
    """Named messages. One rank posts or publishes a message, other ranks wait for it. Values must be valid JSON."""

    def post(self, name: str, value: Any) -> None:
        """Write a message for all ranks."""
        assert self.store is not None
        with self.connection_errors():
            self.store.set(name, json.dumps(value))

    def publish(self, name: str, make: Callable[[], Result]) -> Result:
        """Call `make`, post its result or its UserError under `name`, and return or raise the same here."""
        if self.size == 1:
            return make()
        try:
            result = make()
        except UserError as error:
            self.post(name, {"problem": error.problem, "fix": error.fix, "type": type(error).__name__})
            self.common_error = error
            raise
        self.post(name, {"result": result})
        return result

    def receive(self, name: str, while_waiting: Callable[[], None] = lambda: None, timeout: float | None = None) -> Any:
        """Wait for the message `name`; return its result, or raise the UserError that it carries.

        See `wait_for` for the other arguments and errors.
        """
        assert self.store is not None
        self.wait_for(name, while_waiting=while_waiting, timeout=timeout)
        with self.connection_errors():
            message = json.loads(self.store.get(name))
        if "problem" not in message:
            return message["result"]
        self.common_error = ERROR_TYPES.get(message["type"], UserError)(message["problem"], message["fix"])
        raise self.common_error

    def wait_for(
        self, *names: str, while_waiting: Callable[[], None] = lambda: None, timeout: float | None = None
    ) -> str:
        """Wait until a message with one of the names exists; return that name.

        `while_waiting` is called after each poll. Raises RanksError after `timeout` seconds (None: the ranks'
        timeout), OtherRankError if a rank has failed.
        """
        assert self.store is not None
        seconds = self.timeout if timeout is None else timeout
        until = time.monotonic() + seconds
        pause, longest_pause = POLL_SECONDS
        while True:
            with self.connection_errors():
                for name in names:
                    if self.store.check([name]):
                        return name
                if self.store.check([FAILURE_KEY]):
                    raise self.other_rank_error()
            while_waiting()
            if time.monotonic() > until:
                raise self.timeout_error(waited=seconds)
            time.sleep(pause)
            pause = min(longest_pause, 1.5 * pause)
