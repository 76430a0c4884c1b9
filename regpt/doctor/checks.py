"""The result of a check, and the exceptions with which a check fails or is skipped."""

from dataclasses import dataclass
from enum import Enum

from regpt.base.errors import UserError


class Status(Enum):
    """The outcome of a check."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"  # nothing to check, or an earlier check that it depends on has failed


class CheckFailed(UserError):
    """A check found a problem; carries the problem and its fix."""


class CheckSkipped(Exception):
    """There is nothing to check; carries the reason."""


@dataclass(frozen=True)
class CheckResult:
    """One check and its outcome."""

    name: str
    status: Status
    message: str
    fix: str  # empty unless the check failed
    seconds: float
    exit_code: int  # of the command if this check fails first
    depends_on: str = ""  # the failed check because of which this one was skipped
