"""What a request for completions asks for, with every field checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regpt.endpoint.request_fields import (
    MOST_NEW_TOKENS,
    MOST_ROWS,
    asks_for_usage,
    check_fields,
    flag,
    number,
    sampling_of,
    shown,
    stop_words_of,
    unsupported,
)
from regpt.generation.drawing import Sampling
from regpt.interop.open_model import LoadedModel
from regpt.serve.errors import invalid_request

MOST_ALTERNATIVES = 5
DEFAULT_NEW_TOKENS = 16  # as OpenAI's
OWN_FIELDS = ("prompt", "echo", "best_of")
WITHOUT_EFFECT = {"suffix": (None, "")}


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A checked request for completions, of texts or of conversations."""

    prompts: list[list[int]]  # token ids
    n: int = 1  # completions of each prompt
    new_tokens: int = DEFAULT_NEW_TOKENS
    ends: frozenset[int]  # a completion ends before one of these tokens
    sampling: Sampling
    stop_words: list[str]
    alternatives: int | None = None  # log-probabilities of n other tokens too; None: of no token
    echo: bool = False  # whether the text begins with the prompt
    continues_text: bool = True  # whether the text continues the prompt's; a message begins a text of its own
    stream: bool = False
    stream_usage: bool = False  # whether the stream ends with the counts

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


def parse_completion(body: Any, loaded: LoadedModel) -> CompletionRequest:
    """Check the JSON of a request for completions. Raises ApiError that names the field and its value."""
    check_fields(body, OWN_FIELDS, WITHOUT_EFFECT)
    n = number(body, "n", int, 1, 1, MOST_ROWS)
    if number(body, "best_of", int, n, 1, MOST_ROWS) != n:
        raise unsupported("best_of", " unless it is n")
    prompts = [checked_prompt(one, loaded) for one in prompts_of(body)]
    if n * len(prompts) > MOST_ROWS:
        raise invalid_request(f"{n * len(prompts)} completions are asked for, at most {MOST_ROWS} are possible", "n")
    has_log = body.get("logprobs") is not None and body.get("logprobs") is not False
    return CompletionRequest(
        prompts=prompts,
        n=n,
        new_tokens=number(body, "max_tokens", int, DEFAULT_NEW_TOKENS, 0, MOST_NEW_TOKENS),
        ends=loaded.tokenizer.eos,
        sampling=sampling_of(body),
        stop_words=stop_words_of(body),
        alternatives=number(body, "logprobs", int, 0, 0, MOST_ALTERNATIVES) if has_log else None,
        echo=flag(body, "echo"),
        stream=flag(body, "stream"),
        stream_usage=asks_for_usage(body),
    )


def prompts_of(body: Mapping[str, Any]) -> list[str | list[int]]:
    """Return the prompts: one or several, each as text or as token ids."""
    prompt = body.get("prompt", "")
    if prompt is None:
        return [""]
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(one, int) and not isinstance(one, bool) for one in prompt):
            return [prompt]
        are_ids = (isinstance(one, list) and one and all(type(i) is int for i in one) for one in prompt)
        if all(isinstance(one, str) for one in prompt) or all(are_ids):
            return prompt
    raise invalid_request("'prompt' is neither text nor token ids, nor a list of either", "prompt")


def checked_prompt(prompt: str | list[int], loaded: LoadedModel) -> list[int]:
    """Return the token ids of a prompt. Raises ApiError where it is too long or has ids that do not exist."""
    longest, vocabulary = loaded.model.recipe.block_size, loaded.tokenizer.vocabulary
    ids = loaded.tokenizer.context(prompt).tolist() if isinstance(prompt, str) else prompt
    if wrong := next((i for i in ids if not 0 <= i < vocabulary), None):
        raise invalid_request(f"token {shown(wrong)} does not exist; ids are below {vocabulary:,}", "prompt")
    if len(ids) > longest:
        text = f"the prompt has {len(ids):,} tokens; the model reads at most {longest:,}"
        raise invalid_request(text, "prompt", "context_length_exceeded")
    return ids
