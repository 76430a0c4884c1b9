"""What a check says: a line of what it saw, that there is nothing to check, or what is wrong and the remedy."""

from dataclasses import dataclass
from typing import Literal

from regpt.base.errors import UserError

Color = Literal["green", "red", "grey"]  # grey: nothing to check, or what it needs has failed before


class CheckFailed(UserError):
    """What a check found wrong, and the remedy."""


class CheckSkipped(Exception):
    """There is nothing to check here, and why."""


@dataclass(frozen=True)
class Finding:
    """One check, and how it went."""

    name: str
    color: Color
    said: str
    remedy: str
    seconds: float
    code: int  # exit code, if it is red
