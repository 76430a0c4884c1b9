"""What a request for a chat's next message asks for, with every field and message checked."""

from collections.abc import Mapping
from typing import Any

from regpt.endpoint.completion_request import CompletionRequest
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
from regpt.interop.open_model import LoadedModel
from regpt.serve.errors import ApiError, invalid_request, not_found
from regpt.tokenization.chat_template import Message, prompt_tokens
from regpt.tokenization.chat_tokens import ASSISTANT, SYSTEM, USER, ChatTokenizer

MOST_ALTERNATIVES = 20  # as OpenAI's
OWN_FIELDS = ("messages", "max_completion_tokens", "top_logprobs")
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, [], ["text"]),
    "moderation": (None,),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
ROLES = (SYSTEM, USER, ASSISTANT)
# Fields that clients send back with an answer. The server has none of them, so they hold nothing.
EMPTY_FIELDS = ("name", "refusal", "annotations", "audio", "function_call", "tool_calls")


def parse_chat(body: Any, loaded: LoadedModel, name: str) -> CompletionRequest:
    """Check the JSON of a request for a chat with the model that is served as `name`.

    Raises ApiError that names the field and its value.
    """
    tokenizer = loaded.tokenizer
    if not isinstance(tokenizer, ChatTokenizer):
        text = f"'{name}' has no chat template: use /v1/completions, or serve a model trained on conversations"
        raise not_found(text, "chat_not_supported")
    check_fields(body, OWN_FIELDS, WITHOUT_EFFECT)
    prompt = checked_conversation(messages_of(body), tokenizer, loaded.model.recipe.block_size)
    room = loaded.model.recipe.block_size - len(prompt)
    return CompletionRequest(
        prompts=[prompt],
        n=number(body, "n", int, 1, 1, MOST_ROWS),
        new_tokens=min(new_tokens_of(body) or room, room),
        ends=tokenizer.eos | {tokenizer.turn_begins},
        sampling=sampling_of(body),
        stop_words=stop_words_of(body),
        alternatives=alternatives_of(body),
        continues_text=False,
        stream=flag(body, "stream"),
        stream_usage=asks_for_usage(body),
    )


def new_tokens_of(body: Mapping[str, Any]) -> int | None:
    """Return the most tokens of an answer, by either name; None: until the context is full."""
    names = [name for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    found = {number(body, name, int, 0, 1, MOST_NEW_TOKENS) for name in names}
    if len(found) > 1:
        raise invalid_request("'max_tokens' and 'max_completion_tokens' differ; give one of them", "max_tokens")
    return next(iter(found), None)


def alternatives_of(body: Mapping[str, Any]) -> int | None:
    """Return how many other tokens are reported; None: no log-probabilities at all."""
    others = number(body, "top_logprobs", int, 0, 0, MOST_ALTERNATIVES)
    if flag(body, "logprobs"):
        return others
    if others:
        raise invalid_request(f"'top_logprobs' = {others} needs 'logprobs': true", "top_logprobs")
    return None


def messages_of(body: Mapping[str, Any]) -> list[Message]:
    """Return the conversation: user and assistant in turn, as in training, perhaps behind a system message."""
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise invalid_request("'messages' is not a list of at least one message", "messages")
    messages = [message_of(one, f"messages[{place}]") for place, one in enumerate(given)]
    first = int(messages[0].role == SYSTEM)
    for place, message in enumerate(messages[first:], start=first):
        if message.role != (USER, ASSISTANT)[(place - first) % 2]:
            rule = "user and assistant alternate, beginning with the user, behind at most one system message"
            raise invalid_request(f"messages[{place}].role = '{message.role}': {rule}", f"messages[{place}].role")
    if messages[-1].role != USER:
        text = f"the last message is of '{messages[-1].role}'; the model answers messages of the user"
        raise invalid_request(text, "messages")
    return [message for message in messages if message.role != SYSTEM or message.content]


def message_of(given: Any, where: str) -> Message:
    """Return one message, without white space at both ends."""
    if not isinstance(given, Mapping):
        raise invalid_request(f"{where} = {shown(given)} is not an object with role and content", where)
    role = given.get("role")
    if role not in ROLES:
        raise invalid_request(f"{where}.role = {shown(role)} is not one of {', '.join(ROLES)}", f"{where}.role")
    for name, value in given.items():
        if name in ("role", "content") or (name in EMPTY_FIELDS and value in (None, [], "")):
            continue
        raise unsupported(f"{where}.{name[:40]}")
    content = text_of(given.get("content"), f"{where}.content")
    if role == USER and not content:
        raise invalid_request(f"{where}.content is empty", f"{where}.content")
    return Message(role, content)


def text_of(content: Any, where: str) -> str:
    """Return the text of a message's content: a text, or a list of parts with texts."""
    if isinstance(content, str):
        return content.strip()
    if not isinstance(content, list):
        raise invalid_request(f"{where} = {shown(content)} is not a text", where)
    texts = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            text = f"{where}[{place}] of type {shown(kind)} is not supported; the model reads text"
            raise invalid_request(text, f"{where}[{place}]", "unsupported_content")
        if not isinstance(part.get("text"), str):
            raise invalid_request(f"{where}[{place}].text is not a text", f"{where}[{place}].text")
        texts.append(part["text"])
    return "".join(texts).strip()


def checked_conversation(messages: list[Message], tokenizer: ChatTokenizer, longest: int) -> list[int]:
    """Return the tokens before the answer. Raises ApiError where the context has no room for an answer."""
    prompt: list[int] = prompt_tokens(messages, tokenizer).tolist()
    if len(prompt) >= longest:
        raise too_long(len(prompt), longest)
    return prompt


def too_long(tokens: int, longest: int) -> ApiError:
    text = f"the messages have {tokens:,} tokens with the template; the model's context is {longest:,}, with the answer"
    return invalid_request(text, "messages", "context_length_exceeded")
