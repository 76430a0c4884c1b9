"""A tokenizer with the two special tokens that begin and end a message.

The folder `tokenizer` of a dataset or a run holds the files of the tokenizer below it, and `chat_tokens.json`, which
names the two tokens and their ids. A tokenizer that has them already keeps its ids; otherwise they follow its last one.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import sha256_of_json
from regpt.data.tokenizer import Tokenizer

CHAT_FILE = "chat_tokens.json"
CHAT_SUFFIX = "-chat"  # of the tokenizer's name
CHAT_TOKENS = 2
TURN_BEGINS, TURN_ENDS = "<|im_start|>", "<|im_end|>"

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
TEMPLATE_FILE = "chat_template.jinja"  # where transformers looks for it
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    f"{{{{ '{TURN_BEGINS}' + message['role'] + '\\n' + message['content'] | trim + '{TURN_ENDS}\\n' }}}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    f"{{{{ '{TURN_BEGINS}{ASSISTANT}\\n' }}}}"
    "{% endif %}\n"
)


class ChatTokenizer(Tokenizer):
    """The tokenizer of a model that answers: text as `base` encodes it, and the tokens around messages."""

    def __init__(self, base: Tokenizer, ids: Mapping[str, int] | None = None) -> None:
        """`ids` are those of the two tokens, by default the ones of `base`, or the next free ones."""
        self.base = base
        new = (name for name in (TURN_BEGINS, TURN_ENDS) if name not in base.special_tokens)
        free = {name: base.vocabulary + number for number, name in enumerate(new)}
        self.chat_ids = dict(ids) if ids is not None else {**free, **chat_ids_of(base)}
        self.turn_begins, self.turn_ends = self.chat_ids[TURN_BEGINS], self.chat_ids[TURN_ENDS]
        self.name = base.name + CHAT_SUFFIX
        self.digest = sha256_of_json([base.digest, self.chat_ids])
        self.vocabulary = max(base.vocabulary, self.turn_begins + 1, self.turn_ends + 1)
        self.end_of_text, self.bos, self.prefix = base.end_of_text, base.bos, base.prefix
        self.special_tokens: Mapping[str, int] = MappingProxyType({**base.special_tokens, **self.chat_ids})
        self.eos = base.eos | {self.turn_ends}
        self.encodes_alone = base.encodes_alone

    @property
    def new_tokens(self) -> int:
        """The number of tokens that `base` does not have."""
        return self.vocabulary - self.base.vocabulary

    def encode(self, text: str) -> NDArray[np.integer]:
        return self.base.encode(text)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        special = set(self.chat_ids.values())
        return self.base.decode([token for token in ids if token not in special])

    def bytes_of_tokens(self) -> NDArray[np.int64] | None:
        sizes = self.base.bytes_of_tokens()
        if sizes is None:
            return None
        of_chat = np.zeros(self.vocabulary + 1, dtype=np.int64)
        of_chat[: min(len(sizes), self.base.vocabulary)] = sizes[: self.base.vocabulary]
        return of_chat

    def files(self) -> dict[str, bytes]:
        about = {"base": self.base.name, "ids": self.chat_ids}
        return {
            **self.base.files(),
            CHAT_FILE: (json.dumps(about, indent=2) + "\n").encode(),
            TEMPLATE_FILE: CHAT_TEMPLATE.encode(),
        }


def with_chat_tokens(base: Tokenizer) -> ChatTokenizer:
    """Return a tokenizer with the tokens around messages: itself, if it is one."""
    return base if isinstance(base, ChatTokenizer) else ChatTokenizer(base)


def chat_ids_of(base: Tokenizer) -> dict[str, int]:
    """Return the ids of the two tokens that a tokenizer has already."""
    return {name: base.special_tokens[name] for name in (TURN_BEGINS, TURN_ENDS) if name in base.special_tokens}


def read_chat_file(folder: Path) -> tuple[str, dict[str, int]] | None:
    """Return the name of the tokenizer below and the ids in the folder's file; None if it has none.

    Raises DataError if the file is damaged.
    """
    path = folder / CHAT_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return str(values["base"]), {name: int(values["ids"][name]) for name in (TURN_BEGINS, TURN_ENDS)}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: damaged", "copy it from the dataset or from another run") from None
