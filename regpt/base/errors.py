"""What a user is told when something is wrong: the problem, the remedy, and an exit code."""

DONE = 0
USAGE = 2
DATA = 3
CHECKPOINT = 4
NUMERICS = 5
LOCKED = 6
RANKS = 7
HUNG_UP = 129  # 128 + SIGHUP
INTERRUPTED = 130  # 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM


class UserError(Exception):
    """Something a user can mend. Printed as one line without a traceback; the process exits with `code`."""

    code = USAGE
    # Of several ranks one tells. None: all have met the same, so the first does; else whether this one is to.
    reported_by_this_rank: bool | None = None

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem} — {self.fix}"


class RecipeError(UserError):
    """One or more settings cannot be used. `problems` holds a line for each."""

    def __init__(self, origin: str, problems: list[str]) -> None:
        super().__init__(f"{origin}: {'; '.join(problems)}", "change the recipe, or override it as section.key=value")
        self.origin = origin
        self.problems = problems

    def __str__(self) -> str:
        return "\n       ".join(f"{self.origin}: {problem}" for problem in self.problems)


class DataError(UserError):
    code = DATA


class CheckpointError(UserError):
    code = CHECKPOINT


class NumericsError(UserError):
    code = NUMERICS


class LockedError(UserError):
    code = LOCKED


class RanksError(UserError):
    """Another rank does not answer, or has gone."""

    code = RANKS


class OtherRankError(UserError):
    """Another rank has met an error and told it; this one ends with the same code."""

    tells = False

    def __init__(self, code: int, problem: str) -> None:
        super().__init__(problem, "see what that rank says")
        self.code = code
