"""Errors of one rank among several, and which of the ranks prints an error: exactly one."""

from regpt.base.errors import UserError
from regpt.machine.env import current_launch


class OtherRankError(UserError):
    """Another rank failed and published it; this one ends with the same code."""

    def __init__(self, code: int, problem: str) -> None:
        super().__init__(problem, "see what that rank says")
        self.code = code


class RankFailure(UserError):
    """The error that ends this rank, with the exit code that all ranks share."""

    def __init__(self, error: UserError, code: int, *, is_printed_here: bool) -> None:
        super().__init__(error.problem, error.fix)
        self.error, self.code = error, code
        self.is_printed_here = is_printed_here  # else by another rank

    def __str__(self) -> str:
        return str(self.error)


def is_printed_here(error: UserError) -> bool:
    """Return whether this process prints an error.

    Ranks that are not connected yet meet the same errors, so the first rank of each machine prints them.
    """
    return error.is_printed_here if isinstance(error, RankFailure) else current_launch().local_rank == 0
