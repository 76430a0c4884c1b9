"""The chat template: messages as tokens, and which of them count in the loss.

It is ChatML (OpenAI 2023, https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md; also of Qwen and
SmolLM), behind the token that begins every document:

    <|endoftext|><|im_start|>user
    How are you?<|im_end|>
    <|im_start|>assistant
    Fine.<|im_end|>

The assistant's text and its <|im_end|> count in the loss, everything else does not. `chat_tokens.CHAT_TEMPLATE`
is the same for `apply_chat_template` of transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regpt.tokenization.chat_tokens import ASSISTANT, ChatTokenizer


class Message(NamedTuple):
    """One message of a conversation."""

    role: str  # SYSTEM, USER or ASSISTANT
    content: str  # without white space at both ends


@dataclass(frozen=True)
class EncodedConversation:
    """The tokens of a conversation."""

    tokens: NDArray[np.int64]  # (n)
    counted: NDArray[np.bool_]  # (n), whether a token counts in the loss when it is predicted

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, tokens: int) -> "EncodedConversation":
        """Return the first tokens."""
        return EncodedConversation(self.tokens[:tokens], self.counted[:tokens])


def encode_conversation(messages: Sequence[Message], tokenizer: ChatTokenizer) -> EncodedConversation:
    """Return the tokens of messages; those that the assistant would write count.

    What looks like a special token in a message is encoded as ordinary characters.
    """
    tokens, counted = [tokenizer.bos], [False]
    line_break = tokenizer.encode("\n").tolist()
    for message in messages:
        # Role and text are encoded together, as apply_chat_template does between two special tokens.
        role = len(tokenizer.encode(f"{message.role}\n"))
        text = tokenizer.encode(f"{message.role}\n{message.content}").tolist()
        is_answer = message.role == ASSISTANT
        tokens += [tokenizer.turn_begins, *text, tokenizer.turn_ends, *line_break]
        counted += [False] * (1 + role) + [is_answer] * (len(text) - role + 1) + [False] * len(line_break)
    return EncodedConversation(np.array(tokens, dtype=np.int64), np.array(counted, dtype=np.bool_))


def prompt_tokens(messages: Sequence[Message], tokenizer: ChatTokenizer) -> NDArray[np.int64]:
    """Return the tokens before the assistant's next answer."""
    answer_begins = [tokenizer.turn_begins, *tokenizer.encode(f"{ASSISTANT}\n").tolist()]
    return np.concatenate([encode_conversation(messages, tokenizer).tokens, np.array(answer_begins, dtype=np.int64)])
