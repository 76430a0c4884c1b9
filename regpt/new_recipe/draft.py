"""Make a recipe that is like another one, with values that suit its text, its length and its size."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path

from regpt.base.errors import RecipeError, UserError
from regpt.base.format import short_count
from regpt.corpus.corpora import open_corpus
from regpt.data.shards import MANIFEST_FILE, read_manifest
from regpt.new_recipe.intervals import Value, interval_values, round_down, with_steps, with_values
from regpt.preparation.existing import fixed_tokenizer
from regpt.preparation.hub import PREFIX
from regpt.recipe.recipe import SECTIONS, Recipe
from regpt.recipe.settings import LIKE, find_recipe, shipped_recipes, toml_value
from regpt.recipe.vocabulary import SIZES, padded_size
from regpt.tokenization.chat_tokens import with_chat_tokens
from regpt.tokenization.opening import open_tokenizer

BYTES_PER_TOKEN = 4.2  # of English text in GPT-2's encoding
VALIDATION_SHARE = 10  # a tenth of the text at most
SIZE_FACTOR = 1.5  # of layers and width: about one step in GPT-2's family, from 124M to 355M
COMMENT_COLUMN = 28


class Size(StrEnum):
    """The size of the model next to that of the recipe that it is like."""

    SAME = "same"
    SMALLER = "smaller"
    LARGER = "larger"


def parse_size(answer: str) -> Size:
    """Return the size that an answer names, empty for the same. Raise UserError for other words."""
    answer = answer.strip().lower() or Size.SAME
    if answer not in list(Size):
        raise UserError(f"'{answer}' is not a size", f"write {', '.join(Size)}")
    return Size(answer)


@dataclass(frozen=True)
class Text:
    """The text of a new recipe: the settings that name it, and about how many tokens of GPT-2 it has; 0: unknown."""

    values: tuple[Value, ...] = ()
    tokens: int = 0
    tokenizer: str = ""  # of a prepared dataset


def text_of(answer: str, base: Recipe, name: str) -> Text:
    """Return the text that an answer names: a file, a folder, 'stdlib', the hub, or a prepared dataset.

    An empty answer is the text of the base. Raise DataError if there is nothing to read.
    """
    if not answer:
        return Text()
    if (Path(answer).expanduser() / MANIFEST_FILE).is_file():
        return prepared_text(answer, base)
    values = [Value("data.path", f"data/{name}", "prepared at the first run"), Value("data.source", answer)]
    for key, value in (("revision", ""), ("validation", "auto")):  # those of the base are about its own text
        if getattr(base.data, key) != value:
            values.append(Value(f"data.{key}", value))
    if answer.startswith(PREFIX):
        return Text(tuple(values))
    corpus = open_corpus(answer, base.data.text_column, base.data.document_separator)
    tokens = max(1, round(corpus.likely_text_bytes / BYTES_PER_TOKEN))
    wanted = max(base.model.block_size + 1, min(base.data.validation_tokens, round_down(tokens // VALIDATION_SHARE)))
    values.append(Value("data.validation_tokens", wanted, f"of about {short_count(tokens)}"))
    return Text(tuple(values), tokens)


def prepared_text(answer: str, base: Recipe) -> Text:
    """Return the text of a prepared dataset, which decides the tokenizer. Raise DataError for an unusable manifest."""
    directory = Path(answer).expanduser()
    manifest = read_manifest(directory)
    choice = fixed_tokenizer(directory, manifest)
    ours = () if choice == base.data.tokenizer else vocabulary_values(choice, manifest.vocabulary.size)
    return Text((Value("data.path", answer, "prepared already"), *ours), tokenizer=choice)


def tokenizer_values(answer: str, base: Recipe, text: Text) -> tuple[Value, ...]:
    """Return the settings of the tokenizer that an answer names: gpt2, cl100k, o200k, or a tokenizer.json.

    An empty answer is the tokenizer of the text, or else of the base. Raise UserError if there is no such tokenizer,
    and where the text or the weights of the base have another one.
    """
    choice = answer or text.tokenizer or base.data.tokenizer
    if text.tokenizer:
        if choice != text.tokenizer:
            raise UserError(
                f"the dataset has the tokenizer {text.tokenizer}, not '{choice}'", "name the text, to prepare it again"
            )
        return ()
    if choice == base.data.tokenizer:
        return ()
    if base.run.init_from:
        raise UserError(
            f"{base.name} starts from {base.run.init_from}, whose tokenizer stays with the run",
            f"leave '{choice}' out, or take a recipe that starts from random weights",
        )
    return vocabulary_values(choice, size_of_vocabulary(choice, base.data.format))


def size_of_vocabulary(choice: str, form: str) -> int:
    """Return the number of ids of a tokenizer, with those around messages for conversations."""
    if form == "text":
        return SIZES[choice] if choice in SIZES else open_tokenizer(choice).vocabulary
    return with_chat_tokens(open_tokenizer(choice)).vocabulary


def vocabulary_values(choice: str, tokens: int) -> tuple[Value, ...]:
    rows = Value("model.vocab_size", padded_size(tokens), f"{tokens:,} tokens, and padding")
    return Value("data.tokenizer", choice), rows


def size_values(base: Recipe, size: Size) -> Iterator[Value]:
    """Yield the settings of the model for a size. Heads keep their width.

    Learning rates go with the inverse square root of the width, as between the shipped recipes of width 128 and 768.
    """
    if size is Size.SAME:
        return
    model, factor = base.model, SIZE_FACTOR if size is Size.LARGER else 1 / SIZE_FACTOR
    heads = max(1, round(model.n_head * factor))
    width = heads * model.n_embd // model.n_head
    rate = (model.n_embd / width) ** 0.5
    yield Value("model.n_layer", max(1, round(model.n_layer * factor)), f"{model.n_layer} in {base.name}")
    yield Value("model.n_head", heads, f"{model.n_head} in {base.name}")
    yield Value("model.n_embd", width, f"{model.n_embd} in {base.name}")
    yield Value("model.mlp_hidden", max(8, round(model.mlp_hidden * width / model.n_embd / 8) * 8))
    yield Value("optimizer.max_lr", two_digits(base.optimizer.max_lr * rate), "scaled with the width, not tuned")
    yield Value("optimizer.min_lr", two_digits(base.optimizer.min_lr * rate))


def two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def values_of(base: Recipe, text: Text, tokenizer: Sequence[Value], size: Size, steps: int) -> list[Value]:
    """Return the settings of a recipe like `base`. Intervals are those of the base where length and size are."""
    values = [*text.values, *tokenizer, *size_values(base, size)]
    if steps == base.run.max_steps and size is Size.SAME:
        return values
    recipe = with_steps(with_values(base, values), steps)
    tokens = f"{short_count(recipe.total_tokens)} tokens"
    epochs = f", {recipe.total_tokens / text.tokens:.2g} times the text" if text.tokens else ""
    return [Value("run.max_steps", steps, tokens + epochs), *values, *interval_values(recipe, base)]


def check_name(path: Path) -> None:
    """Raise UserError if a recipe cannot be written to `path`."""
    if path.suffix != ".toml" or not path.stem:
        raise UserError(f"{path}: is not the name of a recipe", f"name it {path.name or 'my'}.toml")
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already", "choose another name, or delete it")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}", "create it first")


def write_recipe(path: Path, like: str, base: Recipe, values: list[Value]) -> None:
    """Write a recipe to `path`. Raise RecipeError with all problems, and write nothing, if it cannot be used."""
    if problems := list(with_values(base, values).problems()):
        raise RecipeError(str(path), problems)
    with path.open("x", encoding="utf-8") as file:
        file.write(recipe_text(path, like, values))


def recipe_text(path: Path, like: str, values: list[Value]) -> str:
    """Return the text of a recipe: a comment, the recipe that it is like, and its own values by section."""
    base = find_recipe(like)
    shipped = base in shipped_recipes().values()
    name = base.stem if shipped else Path(os.path.relpath(base, path.parent)).as_posix()
    lines = [
        f"# {path.stem}: like {base.stem}, with the settings below.",
        "#",
        f"#   all values  regpt recipe show {path} --against {base.stem if shipped else base}",
        f"#   plan        regpt plan {path}",
        f"#   run         regpt train {path}",
        "",
        f"{LIKE} = {toml_value(name)}",
    ]
    ordered = sorted(values, key=lambda found: SECTIONS.index(found.setting.partition(".")[0]))
    for section, group in groupby(ordered, key=lambda found: found.setting.partition(".")[0]):
        lines += ["", f"[{section}]"]
        for found in group:
            line = f"{found.setting.partition('.')[2]} = {number(found.value)}"
            lines.append(f"{line:<{COMMENT_COLUMN}}# {found.why}" if found.why else line)
    return "\n".join(lines) + "\n"


def number(value: object) -> str:
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else toml_value(value)
