"""A conversation with a model: its history, and answers in pieces of text as they are drawn."""

from collections.abc import Generator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from regpt.base.errors import UserError
from regpt.evaluation.text_stream import TextStream
from regpt.generation.decoder import generate_tokens
from regpt.generation.drawing import Request, Sampling
from regpt.interop.open_model import LoadedModel
from regpt.tokenization.chat_template import Message, prompt_tokens
from regpt.tokenization.chat_tokens import ASSISTANT, SYSTEM, USER, ChatTokenizer


class LongQuestionError(Exception):
    """A question does not fit the model's context."""

    def __init__(self, tokens: int, most: int) -> None:
        super().__init__(tokens, most)
        self.tokens, self.most = tokens, most  # of the prompt, and what the context leaves for it


@dataclass
class Chat:
    """A conversation. It may be continued after an answer that was stopped."""

    loaded: LoadedModel
    sampling: Sampling
    new_tokens: int  # of an answer, at most
    system: str = ""
    turns: list[Message] = field(default_factory=list)  # user and assistant in turn
    forgotten: int = 0  # oldest messages that the context had no room for, of the last question
    answers: int = 0

    def __post_init__(self) -> None:
        """Raise UserError if the model has no chat template."""
        self.tokenizer = chat_tokenizer(self.loaded)

    def ask(self, question: str) -> Generator[str, None, None]:
        """Yield the answer in pieces. A reader may leave; what it has read stays in the history.

        The oldest turns are forgotten where the context has no room for them and an answer. Raises LongQuestionError
        if the question alone has none; the history stays as it was.
        """
        block_size = self.loaded.model.recipe.block_size
        question = question.strip()
        kept, prompt = self.fit([*self.turns, Message(USER, question)], block_size)
        self.forgotten, self.turns = len(self.turns) + 1 - len(kept), kept
        request = Request(
            sampling=replace(self.sampling, seed=self.sampling.seed + self.answers),
            new_tokens=min(self.new_tokens, block_size - len(prompt)),
            ends=self.tokenizer.eos | {self.tokenizer.turn_begins},
        )
        ids = torch.from_numpy(prompt)[None].to(self.loaded.model.head_weight.device)
        stream = TextStream(self.tokenizer.decode)
        answer = ""
        try:
            for (drawn,) in generate_tokens(self.loaded.model, ids, [request], self.tokenizer.vocabulary):
                if drawn is not None and drawn.token not in request.ends and (piece := stream.add(drawn.token)):
                    answer += piece
                    yield piece
            if piece := stream.finish():
                answer += piece
                yield piece
        finally:
            self.turns = [*kept, Message(ASSISTANT, answer.strip())]
            self.answers += 1

    def fit(self, turns: list[Message], block_size: int) -> tuple[list[Message], NDArray[np.int64]]:
        """Return the newest turns whose prompt leaves room for an answer, and that prompt."""
        most = block_size - min(self.new_tokens, block_size // 2)
        first = [Message(SYSTEM, self.system.strip())] if self.system.strip() else []
        for begin in range(0, len(turns), 2):
            prompt = prompt_tokens([*first, *turns[begin:]], self.tokenizer)
            if len(prompt) <= most:
                return turns[begin:], prompt
        raise LongQuestionError(len(prompt), most)

    def forget(self) -> None:
        """Begin a new conversation."""
        self.turns = []


def chat_tokenizer(loaded: LoadedModel) -> ChatTokenizer:
    """Return the tokenizer of a model that was trained on conversations. Raises UserError for any other model."""
    if not isinstance(loaded.tokenizer, ChatTokenizer):
        raise UserError(
            f"{loaded.name}: has no chat template; it continues texts and answers no questions",
            "let it continue one with `regpt sample`, or train it on conversations (docs/chat.md)",
        )
    return loaded.tokenizer
