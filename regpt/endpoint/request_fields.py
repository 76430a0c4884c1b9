"""The fields that requests for completions and for chat have in common, each checked."""

import difflib
import secrets
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from regpt.generation.drawing import Sampling
from regpt.serve.errors import ApiError, invalid_request

MOST_NEW_TOKENS = 4096  # of one completion
MOST_ROWS = 64  # completions of one request
MOST_STOP_WORDS = 16  # OpenAI allows 4, but tasks of lm-eval have more
SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "seed", "stop", "n", "max_tokens")
COMMON_FIELDS = ("model", *SAMPLING_FIELDS, "logprobs", "stream", "stream_options")
# Fields about OpenAI's service, which change no answer.
CACHE_FIELDS = ("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options")
ACCOUNT_FIELDS = ("user", "metadata", "safety_identifier", *CACHE_FIELDS)
# Fields that this server does not have, with the values that change nothing.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
T = TypeVar("T")


def check_fields(body: Any, own: Collection[str], without_effect: Mapping[str, tuple[Any, ...]]) -> None:
    """Check that a request has only fields that are used, or that change nothing.

    `own` are the fields of its route; `without_effect` those that the server does not have, with their harmless values.
    Raises ApiError that names the first other one.
    """
    if not isinstance(body, dict):
        raise invalid_request("the body is not a JSON object", "body")
    refused = {**WITHOUT_EFFECT, **without_effect}
    used = {*COMMON_FIELDS, *own}
    for name, value in body.items():
        if name in refused:
            if value not in refused[name]:
                raise unsupported(name)
        elif name not in used and name not in ACCOUNT_FIELDS:
            near = difflib.get_close_matches(name, used, n=1)
            advice = f"; did you mean '{near[0]}'?" if near else ""
            raise invalid_request(f"there is no field '{name[:40]}'{advice}", name[:40], "unknown_parameter")


def unsupported(name: str, why: str = "") -> ApiError:
    return invalid_request(f"'{name}' is not supported{why}", name, "unsupported_parameter")


def sampling_of(body: Mapping[str, Any]) -> Sampling:
    seed = body.get("seed")
    return Sampling(
        temperature=number(body, "temperature", float, 1.0, 0.0, 100.0),
        top_p=number(body, "top_p", float, 1.0, 0.0, 1.0),
        top_k=number(body, "top_k", int, 0, 0, 1 << 31),  # not OpenAI's
        seed=secrets.randbits(62) if seed is None else number(body, "seed", int, 0, -(1 << 63), (1 << 63) - 1),
    )


def stop_words_of(body: Mapping[str, Any]) -> list[str]:
    stop = body.get("stop")
    words = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or len(words) > MOST_STOP_WORDS:
        raise invalid_request(f"'stop' is not a text or a list of up to {MOST_STOP_WORDS} texts", "stop")
    return [word for word in words if word]


def asks_for_usage(body: Mapping[str, Any]) -> bool:
    """Return whether a stream ends with the counts of tokens."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise invalid_request(f"'stream_options' = {shown(options)} is not an object", "stream_options")
    if not flag(body, "stream"):
        raise invalid_request("'stream_options' needs 'stream': true", "stream_options")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise unsupported(f"stream_options.{name[:40]}")
    if flag(options, "include_obfuscation"):
        raise unsupported("stream_options.include_obfuscation")
    return flag(options, "include_usage")


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
