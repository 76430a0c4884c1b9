"""The number of tokens in each step: constant, or a ramp over the tokens seen, as in '131072 until 50M'."""

import bisect
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

STAGE = re.compile(r"([\d_]*\.?\d+)\s*([kmb]?)\s+until\s+([\d_]*\.?\d+)\s*([kmb]?)", re.IGNORECASE)
PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Stage:
    """Steps of one size."""

    batch_tokens: int
    first_step: int = 0  # completed steps at its beginning
    first_token: int = 0  # tokens seen at its beginning


@dataclass(frozen=True)
class BatchSizes:
    """The tokens of each step and of all steps before it. Steps count from 0."""

    stages: tuple[Stage, ...]  # at least one; the last one has no end

    def stage_of(self, step: int) -> Stage:
        return self.stages[bisect.bisect([stage.first_step for stage in self.stages], step) - 1]

    def batch_tokens(self, step: int) -> int:
        """Return the number of tokens in a step."""
        return self.stage_of(step).batch_tokens

    def tokens_after(self, step: int) -> int:
        """Return the number of tokens in the first `step` steps."""
        stage = self.stage_of(step)
        return stage.first_token + (step - stage.first_step) * stage.batch_tokens

    def steps_for(self, tokens: int) -> int:
        """Return the least number of steps with at least `tokens` tokens."""
        stage = self.stages[max(0, bisect.bisect_left([stage.first_token for stage in self.stages], tokens) - 1)]
        return stage.first_step - (stage.first_token - tokens) // stage.batch_tokens


def parse_ramp(text: str) -> list[tuple[int, int]]:
    """Return (tokens in a step, tokens seen at the end of the stage) of each stage of a ramp; none for empty text.

    Raises ValueError with the part that is not of the form '131072 until 50M'.
    """
    stages = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = STAGE.fullmatch(part)
        if found is None:
            raise ValueError(part)
        batch, until = (
            round(float(number.replace("_", "")) * PREFIXES[prefix.lower()])
            for number, prefix in (found.groups()[:2], found.groups()[2:])
        )
        stages.append((batch, until))
    return stages


@lru_cache(maxsize=64)
def batch_sizes(ramp: str, total_batch_tokens: int) -> BatchSizes:
    """Return the sizes of a ramp's steps; after it, steps have `total_batch_tokens`. A stage ends with a whole step."""
    stages, step, token = [], 0, 0
    try:
        asked = parse_ramp(ramp)
    except ValueError:  # the recipe's check reports it
        asked = []
    for batch, until in asked:
        if batch > 0 and until > token:
            stages.append(Stage(batch, step, token))
            steps = -(-(until - token) // batch)
            step, token = step + steps, token + steps * batch
    return BatchSizes((*stages, Stage(total_batch_tokens, step, token)))


def ramp_problem(ramp: str, total_batch_tokens: int) -> str:
    """Describe why a ramp cannot be used; empty if it can."""
    try:
        stages = parse_ramp(ramp)
    except ValueError as error:
        return f"'{error}' is not a stage; write stages as '131072 until 50M', separated by commas"
    if not stages:
        return ""
    sizes, ends = [0, *(batch for batch, _ in stages), total_batch_tokens], [0, *(until for _, until in stages)]
    for size, larger in pairwise(sizes):
        if not size < larger:
            return f"the size of a step must grow, also to data.total_batch_tokens; {larger} follows {size}"
    for end, later in pairwise(ends):
        if not end < later:
            return f"stages must end one after another; until {later:,} follows {end:,} tokens"
    return ""
