"""Conversations for tests: sums of small numbers, whose answers a tiny model can learn by heart."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from regpt.recipe.recipe import Recipe
from regpt.training.start import train
from tests.conftest import tiny_recipe

Turns = list[dict[str, str]]


def chat(*texts: str, system: str = "") -> Turns:
    """Return messages in OpenAI's form: the texts of user and assistant in turn."""
    first = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return first + [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


def sums(count: int) -> list[Turns]:
    """Return conversations about different sums."""
    return [chat(f"What is {n % 15} plus {n // 15}?", f"It is {n % 15 + n // 15}.") for n in range(count)]


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chat_recipe(folder: Path, **sections: dict[str, Any]) -> Recipe:
    """Return a tiny recipe that trains on 200 sums, in rows of 64 tokens; the settings given are changed."""
    source = folder / "chats.jsonl"
    if not source.exists():
        write_lines(source, ({"messages": turns} for turns in sums(200)))
    data = {"source": str(source), "format": "conversations", "validation": "auto", "validation_tokens": 400}
    defaults: dict[str, dict[str, Any]] = {"data": data, "model": {"block_size": 64}, "evaluation": {"sample_every": 0}}
    tables = {name: {**defaults.get(name, {}), **sections.get(name, {})} for name in {*defaults, *sections}}
    return tiny_recipe(folder, **tables)


COLOURS = {"the sky": "Blue.", "grass": "Green.", "snow": "White.", "coal": "Black.", "a lemon": "Yellow."}
GREETINGS = [f"{word}{mark}" for word in ("Hi", "Hey", "Yo", "Oh", "So", "Now", "Ah", "OK") for mark in ",!.;:"]


def colours() -> list[Turns]:
    """Return 200 conversations about five things, which begin differently."""
    return [chat(f"{word} {thing}?", colour) for word in GREETINGS for thing, colour in COLOURS.items()]


def byte_tokenizer(folder: Path) -> Path:
    """Write a tokenizer.json whose tokens are the 256 bytes and the end of a text; return its path."""
    import tokenizers
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), Decoder()
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def train_on_colours(folder: Path, steps: int = 120) -> Path:
    """Train a small model on the colours until it knows them; return the run."""
    source = write_lines(folder / "colours.jsonl", ({"messages": turns} for turns in colours()))
    recipe = chat_recipe(
        folder,
        run={"max_steps": steps},
        data={
            "source": str(source),
            "tokenizer": str(byte_tokenizer(folder)),
            "validation_tokens": 800,
            "micro_batch": 8,
            "total_batch_tokens": 1024,
        },
        model={"block_size": 64, "vocab_size": 320, "n_embd": 32, "mlp_hidden": 64},
        optimizer={"max_lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 10},
        evaluation={"sample_count": 0, "validation_every": 40, "validation_batches": 2, "validation_batch_size": 8},
        checkpoint={"every": 0},
    )
    train(recipe, folder / "run")
    return folder / "run"
