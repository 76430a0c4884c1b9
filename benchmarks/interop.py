"""Open exported models in other programs: greedy tokens, logits, the tokenizer and the chat template on hostile text.

    python -m benchmarks.interop classic modern next --python transformers=PYTHON --python mlx-lm=PYTHON

The names are runs. `--python PROGRAM=PYTHON` names the interpreter that has a program; without it, this one is asked.
A program may be named several times, such as transformers 4 and 5. Nothing is installed here.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.interop_probes import PROBES
from regpt.data.tokenizer import Tokenizer
from regpt.evaluation.chat import Chat
from regpt.export.directory import ExportOptions
from regpt.export.opened import export_directory, export_file
from regpt.export.precision import Precision
from regpt.generation.drawing import Sampling
from regpt.interop.form import ModelType, form_of
from regpt.interop.open_model import LoadedModel, open_model
from regpt.tokenization.chat_template import Message, prompt_tokens
from regpt.tokenization.chat_tokens import ASSISTANT, SYSTEM, USER, ChatTokenizer

PROMPTS = ["def main(", "import os\n", "class Parser:\n    def", "    return self."]
NEW_TOKENS = 20
HOSTILE = [
    "a  b\n\n  c é 😀",
    "Übergrößenträger äöüß e\u0301 ﬁ",
    "👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪 \u202eabc\u202c \ufeff",
    "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029",
    "\ud800 lone \udfff".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    " " * 40 + "\n" * 9 + "\t" * 9 + "'S 'LL 'ſ 12345678 ½ Ⅷ",
    "a<|endoftext|>b <|endoftext |>",
    "日本語 ١٢٣ \u00a0\u200b \r\n",
]
QUESTIONS = ["Now, the sky?", "Hi, snow?", "So; coal?", "Oh, a lemon?"]  # of docs/chat.md
PROGRAMS_WITH_GGUF = {"llama.cpp": list(Precision)}


@dataclass(frozen=True)
class Model:
    """An exported run, and what regpt computes from it."""

    name: str
    opened: LoadedModel
    tokens: list[list[int]]  # greedy, of each prompt
    logits: np.ndarray[Any, Any]  # after each prompt
    answers: list[str]  # of a chat model, greedy

    @property
    def is_own(self) -> bool:
        return form_of(self.opened.recipe.model).type is ModelType.OWN


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.interop", description=__doc__)
    options.add_argument("models", nargs="+", metavar="RUN")
    options.add_argument("--runs", type=Path, default=Path("runs"))
    options.add_argument("--python", action="append", default=[], metavar="PROGRAM=PYTHON")
    options.add_argument("--only", default="", metavar="PROGRAM")
    arguments = options.parse_args()
    named = [tuple(word.split("=", 1)) for word in arguments.python]
    interpreters = named + [(name, sys.executable) for name in PROBES if name not in dict(named)]
    interpreters = [pair for pair in interpreters if arguments.only in ("", pair[0])]
    with tempfile.TemporaryDirectory() as folder:
        models = [exported(name, arguments.runs, Path(folder)) for name in arguments.models]
        rows = []
        for name, python in interpreters:
            for precision in PROGRAMS_WITH_GGUF.get(name, [Precision.FLOAT32]):
                rows.append(row_of(name, python, precision, models, Path(folder)))
                print(rows[-1], file=sys.stderr)
    print("\n".join(["", f"{datetime.now(UTC):%Y-%m-%d}", "", *table(models, rows)]))
    return 0


def exported(name: str, runs: Path, folder: Path) -> Model:
    """Export a run as a directory; return regpt's own results."""
    opened = open_model(name, runs)
    export_directory(opened, folder / name, ExportOptions())
    return Model(name, opened, *own_results(opened), own_answers(opened))


@torch.no_grad()
def own_results(opened: LoadedModel) -> tuple[list[list[int]], np.ndarray[Any, Any]]:
    """Return the greedy tokens of each prompt, as `regpt sample --temperature 0`, and the logits after it."""
    found, logits, rows = [], [], opened.tokenizer.vocabulary
    for prompt in PROMPTS:
        tokens = opened.tokenizer.tokens(prompt).tolist()
        for number in range(NEW_TOKENS):
            last = opened([tokens])[0, -1, :rows]
            if number == 0:
                logits.append(last.numpy())
            tokens.append(int(last.argmax()))
        found.append(tokens[-NEW_TOKENS:])
    return found, np.stack(logits)


def own_answers(opened: LoadedModel) -> list[str]:
    """Return the answers of `regpt chat --temperature 0` to the questions; none of a model without a template."""
    if not isinstance(opened.tokenizer, ChatTokenizer):
        return []
    return ["".join(Chat(opened, Sampling(temperature=0.0), NEW_TOKENS).ask(question)) for question in QUESTIONS]


def conversations(opened: LoadedModel) -> list[list[Message]]:
    """Return conversations with hostile text in every role; none for a model without a template.

    Texts that name a special token are left out: programs that render the template read it as that token, we do not.
    """
    tokenizer = opened.tokenizer
    if not isinstance(tokenizer, ChatTokenizer):
        return []
    texts = [text.strip() for text in HOSTILE if not any(name in text for name in tokenizer.special_tokens)]
    pairs = zip(texts, texts[1:] + texts[:1], strict=True)
    return [
        [Message(SYSTEM, one), Message(USER, other), Message(ASSISTANT, one), Message(USER, other)]
        for one, other in pairs
    ]


def row_of(name: str, python: str, precision: Precision, models: list[Model], folder: Path) -> list[str]:
    """Return a row of the table: the program with its version, then a cell for each model."""
    cells, versions = [], ""
    for model in models:
        answer = ask(name, python, precision, model, folder)
        versions = answer.get("version", versions)
        cells.append(cell(answer, model))
    form = f", GGUF {precision}" if name in PROGRAMS_WITH_GGUF else ""
    return [f"{name} {versions}{form}".replace("  ", " "), *cells]


def ask(name: str, python: str, precision: Precision, model: Model, folder: Path) -> dict[str, Any]:
    """Run the probe of a program; return its answer, or {"error": its last line}."""
    gguf = folder / f"{model.name}-{precision}.gguf"
    if name in PROGRAMS_WITH_GGUF and model.is_own:
        return {"error": "no such architecture"}
    if name in PROGRAMS_WITH_GGUF and not gguf.exists():
        export_file(model.opened, gguf, ExportOptions(precision=precision))
    question, answer, logits = folder / "question.json", folder / "answer.json", folder / "logits.npy"
    for path in (answer, logits):
        path.unlink(missing_ok=True)
    prompts = [model.opened.tokenizer.tokens(prompt).tolist() for prompt in PROMPTS]
    asked: dict[str, Any] = {"folder": str(folder / model.name), "prompts": prompts, "prompt_texts": PROMPTS}
    asked |= {"gguf": str(gguf), "texts": HOSTILE, "new": NEW_TOKENS, "logits": str(logits)}
    asked["conversations"] = [[one._asdict() for one in messages] for messages in conversations(model.opened)]
    asked["questions"] = [Message(USER, question)._asdict() for question in QUESTIONS if model.answers]
    question.write_text(json.dumps(asked), encoding="utf-8")
    script = Path(__file__).with_name("interop_probes.py")
    command = [python, str(script), name, str(question), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=900)
    if not answer.exists():
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:160]}
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found | ({"logits": np.load(logits)} if logits.exists() else {})


def cell(answer: dict[str, Any], model: Model) -> str:
    """Say how many greedy continuations are equal, how far logits differ, and whether the tokenizer agrees."""
    if "error" in answer:
        return str(answer["error"])
    parts, tokenizer = [], model.opened.tokenizer
    if "tokens" in answer:
        parts.append(f"greedy {number_equal(answer['tokens'], model.tokens)} of {len(PROMPTS)}")
    elif not isinstance(tokenizer, ChatTokenizer):  # llama.cpp is asked for no end of a text, which a chat draws soon
        texts = [tokenizer.decode(tokens) for tokens in model.tokens]
        parts.append(f"greedy {number_equal(answer['continuations'], texts)} of {len(PROMPTS)}")
    if "logits" in answer:
        parts.append(f"Δ {np.abs(answer['logits'] - model.logits).max():.1e}")
    if "ids" in answer:
        ids = [ids_of(text, tokenizer) for text in HOSTILE]
        back = number_equal(answer["texts"], HOSTILE)
        parts.append(f"ids {number_equal(answer['ids'], ids)}, texts {back} of {len(HOSTILE)}")
    if isinstance(tokenizer, ChatTokenizer):
        if answer.get("chat_ids"):
            expected = [prompt_tokens(one, tokenizer).tolist() for one in conversations(model.opened)]
            same = number_equal(answer["chat_ids"], expected)
            parts.append(f"apply_chat_template {same} of {len(expected)}")
        if "answers" in answer:
            same = number_equal([one.strip() for one in answer["answers"]], [one.strip() for one in model.answers])
            parts.append(f"answers {same} of {len(QUESTIONS)}")
    return ", ".join(parts)


def number_equal(found: Sequence[object], expected: Sequence[object]) -> int:
    return sum(one == other for one, other in zip(found, expected, strict=True))


def ids_of(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a text in which names of special tokens stand for these tokens, as programs read prompts."""
    found: list[int] = []
    for piece in re.split("|".join(f"({re.escape(name)})" for name in tokenizer.special_tokens), text):
        special = tokenizer.special_tokens.get(piece or "")
        found += [special] if special is not None else tokenizer.encode(piece or "").tolist()
    return found


def table(models: list[Model], rows: list[list[str]]) -> list[str]:
    head = ["program", *(model.name for model in models)]
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(word.replace('|', ' ') for word in line)} |" for line in lines]


if __name__ == "__main__":
    sys.exit(main())
