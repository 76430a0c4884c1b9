"""Train a byte-level BPE tokenizer on text, by the package `tokenizers`, and write it as a tokenizer.json."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from regpt.base.errors import UserError
from regpt.base.files import write_bytes
from regpt.base.packages import is_installed
from regpt.data.tokenizer import END_OF_TEXT_NAME, without_surrogates
from regpt.tokenization.openai import PATTERNS_OF_TOKENIZERS
from regpt.tokenization.tokenizer_file import CONFIG_FILE, TOKENIZER_FILE, FileTokenizer

SplitLike = Literal["gpt2", "cl100k"]  # where the pieces of text end that are encoded by themselves
SMALLEST = 257  # a token for each byte, and the one that ends a text
SAMPLE_CHARACTERS = 1_000_000  # of the text, on which the result is measured


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer that was written, and how it encodes the beginning of its text."""

    path: Path
    tokens: int
    bytes_per_token: float


def train_tokenizer(texts: Iterable[str], vocab_size: int, into: Path, split: SplitLike = "gpt2") -> TrainedTokenizer:
    """Train on texts and write the file: `into`, or tokenizer.json in the folder `into`.

    The vocabulary has `vocab_size` tokens: the 256 bytes, the merges, and <|endoftext|> as the last one; fewer if the
    texts give no more merges. The same texts give the same file. Raises UserError if the file exists, or if the texts
    are empty.
    """
    path = target_of(into)
    if not is_installed("tokenizers"):
        raise UserError("training a tokenizer needs the package tokenizers", "pip install 'regpt[hf]'")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer(split)
    made.decoder, made.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample: list[str] = []
    made.train_from_iterator(sampled(texts, sample), trainer)
    if not sample:
        raise UserError("there is no text to train a tokenizer on", "name a file or folder with text")
    made.add_special_tokens([END_OF_TEXT_NAME])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, made.to_str(pretty=True).encode())
    found = FileTokenizer(path)
    if path.name == TOKENIZER_FILE and not (path.parent / CONFIG_FILE).exists():
        write_bytes(path.parent / CONFIG_FILE, found.config())
    text_bytes, tokens = sum(len(text.encode()) for text in sample), sum(len(found.encode(text)) for text in sample)
    return TrainedTokenizer(path, found.vocabulary, text_bytes / tokens)


def target_of(into: Path) -> Path:
    """Return the file to write. Raises UserError if it exists."""
    path = into if into.suffix == ".json" else into / TOKENIZER_FILE
    if path.exists():
        raise UserError(f"{path}: exists already", "name another file, or delete it")
    return path


def pre_tokenizer(split: SplitLike) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if split == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = pre_tokenizers.Split(Regex(PATTERNS_OF_TOKENIZERS[split]), "isolated")
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sampled(texts: Iterable[str], sample: list[str]) -> Iterator[str]:
    """Yield all texts, and keep the first ones in `sample`."""
    characters = 0
    for text in texts:
        clean = without_surrogates(text)
        if characters < SAMPLE_CHARACTERS:
            sample.append(clean[: SAMPLE_CHARACTERS - characters])
            characters += len(clean)
        yield clean
