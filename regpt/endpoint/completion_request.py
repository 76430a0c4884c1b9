"""What a request for completions asks for, with every field checked."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from regpt.evaluation.generation import Sampling
from regpt.interop.open_model import LoadedModel
from regpt.serve.errors import invalid_request

MOST_NEW_TOKENS = 4096  # of one completion
MOST_ROWS = 64  # completions of one request
MOST_STOP_WORDS = 4  # as OpenAI allows
MOST_ALTERNATIVES = 5
DEFAULT_NEW_TOKENS = 16  # as OpenAI's
# Settings that this server does not have, with the values that change nothing.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A checked request for completions."""

    prompts: list[list[int]]  # token ids
    n: int = 1  # completions of each prompt
    new_tokens: int = DEFAULT_NEW_TOKENS
    sampling: Sampling
    stop_words: list[str]
    alternatives: int | None = None  # log-probabilities of n other tokens too; None: of no token
    echo: bool = False  # whether the text begins with the prompt
    stream: bool = False
    stream_usage: bool = False  # whether the stream ends with the counts

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


def parse_completion(body: Any, loaded: LoadedModel) -> CompletionRequest:
    """Check the JSON of a request for a model. Raises ApiError that names the field and its value."""
    if not isinstance(body, dict):
        raise invalid_request("the body is not a JSON object", "body")
    for name, values in WITHOUT_EFFECT.items():
        if body.get(name) not in values:
            raise invalid_request(f"'{name}' is not supported", name, "unsupported_parameter")
    n = number(body, "n", int, 1, 1, MOST_ROWS)
    if number(body, "best_of", int, n, 1, MOST_ROWS) != n:
        raise invalid_request("'best_of' other than n is not supported", "best_of", "unsupported_parameter")
    prompts = [checked_prompt(one, loaded) for one in prompts_of(body)]
    if n * len(prompts) > MOST_ROWS:
        raise invalid_request(f"{n * len(prompts)} completions are asked for, at most {MOST_ROWS} are possible", "n")
    has_log = body.get("logprobs") is not None and body.get("logprobs") is not False
    return CompletionRequest(
        prompts=prompts,
        n=n,
        new_tokens=number(body, "max_tokens", int, DEFAULT_NEW_TOKENS, 0, MOST_NEW_TOKENS),
        sampling=sampling_of(body),
        stop_words=stop_words_of(body),
        alternatives=number(body, "logprobs", int, 0, 0, MOST_ALTERNATIVES) if has_log else None,
        echo=flag(body, "echo"),
        stream=flag(body, "stream"),
        stream_usage=isinstance(options := body.get("stream_options"), dict) and flag(options, "include_usage"),
    )


def sampling_of(body: Mapping[str, Any]) -> Sampling:
    seed = body.get("seed")
    return Sampling(
        temperature=number(body, "temperature", float, 1.0, 0.0, 100.0),
        top_p=number(body, "top_p", float, 1.0, 0.0, 1.0),
        top_k=number(body, "top_k", int, 0, 0, 1 << 31),  # not OpenAI's
        seed=secrets.randbits(62) if seed is None else number(body, "seed", int, 0, -(1 << 62), 1 << 62),
    )


def prompts_of(body: Mapping[str, Any]) -> list[str | list[int]]:
    """Return the prompts: one or several, each as text or as token ids."""
    prompt = body.get("prompt", "")
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
        raise invalid_request(f"token {wrong} does not exist; ids are below {vocabulary:,}", "prompt")
    if len(ids) > longest:
        text = f"the prompt has {len(ids):,} tokens; the model reads at most {longest:,}"
        raise invalid_request(text, "prompt", "context_length_exceeded")
    return ids


def stop_words_of(body: Mapping[str, Any]) -> list[str]:
    stop = body.get("stop")
    words = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or len(words) > MOST_STOP_WORDS:
        raise invalid_request(f"'stop' is not a text or a list of up to {MOST_STOP_WORDS} texts", "stop")
    return [word for word in words if word]


def flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid_request(f"'{name}' = {shown(value)} is neither true nor false", name)
    return bool(value)


def number(body: Mapping[str, Any], name: str, kind: type[T], default: T, least: float, most: float) -> T:
    """Return a number of the request. Raises ApiError for another type and for one outside the range."""
    value = body.get(name)
    if value is None:
        return default
    is_number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        what = "a whole number" if kind is int else "a number"
        raise invalid_request(f"'{name}' = {shown(value)} is not {what} from {least:,g} to {most:,g}", name)
    return kind(value)  # type: ignore[call-arg]


def shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    return repr(value)[:40]
