"""Generate tokens one after another, for rows that share forward passes: under samples, chat and the server.

B rows, P tokens of a prompt, V padded vocabulary.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regpt.generation.drawing import Drawn, Request, choose, describe, describe_rows
from regpt.generation.recorded_pass import RecordedPass, can_record
from regpt.model.cache import KeyValueCache
from regpt.model.evaluation_mode import evaluation_mode
from regpt.model.gpt import GPT

PART = 128  # tokens of a prompt in one pass: other rows wait that long for their next token


@dataclass(eq=False)
class Row:
    """A text that grows by a token in each pass."""

    request: Request
    tokens: list[int]  # the prompt and what is drawn
    generator: torch.Generator
    left: int  # tokens that it may still draw


@dataclass(eq=False)
class Prompt:
    """Tokens that are read in parts, and the rows that continue them."""

    tokens: Sequence[int]
    rows: list[Row]
    cache: KeyValueCache
    alternatives: int | None = None  # score each token, with this many other tokens; None: do not
    scored: list[Drawn] = field(default_factory=list)  # the first token has no log-probability
    read: int = 0  # tokens

    @property
    def is_read(self) -> bool:
        return self.read == len(self.tokens)


class Decoder:
    """Continuous batching (Yu et al. 2022, Orca): rows join and leave while others decode.

    A prompt is read in a cache of its own, one part at a time, several prompts in turn. Then its rows join the batch
    and get one token in each pass. Each row has its own length, rule and random generator, so it draws the tokens that
    it draws alone. Only the last digits of its logits depend on the number of rows, because a matrix product adds in
    another order; `drawing.choose` says why this hardly ever changes a token.
    When a row fills the block, the second half of it is read again as a prompt, and the row continues.
    """

    def __init__(self, model: GPT, vocabulary: int, scorer: GPT | None = None) -> None:
        """Tokens from `vocabulary` on are padding and never drawn. The model keeps its mode.

        `scorer` reads the prompts that are scored: the same model with exact weights, where those of `model` are
        rounded.
        """
        self.model, self.scorer, self.vocabulary, self.part = model, scorer or model, vocabulary, PART
        self.device, self.dtype = model.head_weight.device, model.head_weight.dtype
        self.prompts: deque[Prompt] = deque()  # not yet read
        self.rows: list[Row] = []  # in the order of the cache
        self.cache = KeyValueCache(model.recipe, 0, self.dtype, self.device)
        self.recorded = RecordedPass(model, self.cache) if can_record(model) else None

    @property
    def is_busy(self) -> bool:
        return bool(self.prompts or self.rows)

    def add(self, tokens: Sequence[int], requests: Sequence[Request], alternatives: int | None = None) -> Prompt:
        """Add rows that continue one prompt; of a long prompt they read the end.

        With `alternatives`, the prompt's tokens are scored too.
        """
        rows = [
            Row(request, list(tokens), torch.Generator().manual_seed(request.sampling.seed), request.new_tokens)
            for request in requests
        ]
        return self.add_prompt(tokens[-self.model.recipe.block_size :], rows, alternatives)

    def add_prompt(self, tokens: Sequence[int], rows: list[Row], alternatives: int | None = None) -> Prompt:
        cache = KeyValueCache(self.model.recipe, 1, self.dtype, self.device)
        prompt = Prompt(tokens, rows, cache, alternatives, [Drawn(tokens[0])])
        self.prompts.append(prompt)
        return prompt

    def draw_tokens(self) -> list[tuple[Row, Drawn]]:
        """Draw the next token of each row of the batch."""
        if not self.rows:
            return []
        last = [row.tokens[-1] for row in self.rows]
        if self.recorded is not None:
            return self.draw(self.of_vocabulary(self.recorded.next_logits(last)), self.rows)
        return self.draw(self.next_logits([[token] for token in last], self.cache), self.rows)

    def read_part(self) -> list[tuple[Row, Drawn]]:
        """Read the next part of a prompt; behind its end, its rows draw their first token and join the batch."""
        if not self.prompts:
            return []
        prompt = self.prompts.popleft()
        part = prompt.tokens[prompt.read : prompt.read + self.part]
        is_scored = prompt.alternatives is not None
        logits = self.score(prompt, part) if is_scored else self.next_logits([part], prompt.cache)
        prompt.read += len(part)
        if not prompt.is_read:
            self.prompts.append(prompt)
        if not prompt.is_read or not prompt.rows:
            return []
        self.cache.join(prompt.cache, len(prompt.rows))
        self.rows += prompt.rows
        return self.draw(logits.expand(len(prompt.rows), -1), prompt.rows)

    def draw(self, logits: Tensor, rows: Sequence[Row]) -> list[tuple[Row, Drawn]]:
        """Draw a token for each of the rows. Those that end leave the batch.  (B, V)"""
        chosen = choose(logits, [row.request.sampling for row in rows], [row.generator for row in rows])
        drawn = list(zip(rows, describe_rows(logits, chosen, [row.request for row in rows]), strict=True))
        for row, one in drawn:
            row.tokens.append(one.token)
            row.left = 0 if one.token in row.request.ends else row.left - 1
            if not row.left:
                self.leave(row)
            elif self.cache.lengths[self.rows.index(row)] == self.model.recipe.block_size:
                self.leave(row)
                self.add_prompt(row.tokens[-max(1, self.model.recipe.block_size // 2) :], [row])
        return drawn

    def leave(self, row: Row) -> None:
        """Remove a row, wherever it is."""
        if row in self.rows:
            place = self.rows.index(row)
            self.cache.leave(place)
            self.rows[place] = self.rows[-1]
            self.rows.pop()
        for prompt in [prompt for prompt in self.prompts if row in prompt.rows]:
            prompt.rows.remove(row)
            if not prompt.rows and prompt.alternatives is None:
                self.forget(prompt)

    def forget(self, prompt: Prompt) -> None:
        """Stop reading a prompt."""
        if prompt in self.prompts:
            self.prompts.remove(prompt)

    @torch.no_grad()
    def next_logits(self, tokens: Sequence[Sequence[int]], cache: KeyValueCache) -> Tensor:
        """Return the logits behind new tokens of each row of a cache.  -> (B, V)"""
        with evaluation_mode(self.model):
            return self.of_vocabulary(self.model.next_logits(torch.tensor(tokens, device=self.device), cache))

    def of_vocabulary(self, logits: Tensor) -> Tensor:
        """Return the logits of the tokens that may be drawn.  (..., V) -> (..., vocabulary)"""
        return logits[..., : self.vocabulary].float()

    @torch.no_grad()
    def score(self, prompt: Prompt, part: Sequence[int]) -> Tensor:
        """Read a part of a prompt and score the tokens behind each of its tokens; return the last logits.  -> (1, V)"""
        assert prompt.alternatives is not None
        with evaluation_mode(self.scorer):
            logits = self.scorer.all_logits(torch.tensor([part], device=self.device), prompt.cache)
        logits = self.of_vocabulary(logits[0])
        following = prompt.tokens[prompt.read + 1 : prompt.read + len(part) + 1]
        for row, token in zip(logits, following, strict=False):
            prompt.scored.append(describe(row, token, prompt.alternatives))
        return logits[-1:]


def generate_tokens(
    model: GPT,
    prompts: Tensor,
    requests: Sequence[Request],
    vocabulary: int,
    check_stop: Callable[[], None] = lambda: None,
) -> Generator[list[Drawn | None], None, None]:
    """Yield the next token of each row as soon as they are drawn; None for rows without one in this pass.

    Args:
        model: the model; it keeps its mode
        prompts: prompts of one length; rows with the same one share its pass  (B, P)
        requests: what each row asks for
        vocabulary: tokens from this one on are padding and never drawn
        check_stop: called before each pass; may raise to stop

    Ends when all rows have ended; a reader may leave earlier. Random numbers are a CPU's, so a seed gives the same
    tokens alone, in a batch, on every device that computes the same logits, and for any number of ranks.
    """
    decoder = Decoder(model, vocabulary)
    places: dict[Row, int] = {}
    texts = [tuple(text) for text in prompts.tolist()]
    for text in dict.fromkeys(texts):
        numbers = [n for n, other in enumerate(texts) if other == text and requests[n].new_tokens]
        if numbers:
            places |= dict(zip(decoder.add(text, [requests[n] for n in numbers]).rows, numbers, strict=True))
    while decoder.is_busy:
        check_stop()
        for pairs in (decoder.draw_tokens(), decoder.read_part()):
            by_place = {places[row]: one for row, one in pairs}
            if by_place:
                yield [by_place.get(place) for place in range(len(texts))]
