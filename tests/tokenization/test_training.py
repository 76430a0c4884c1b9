"""Training a tokenizer: its size, its pieces, that it loses nothing, and that the same text gives the same file."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from regpt.base.errors import DONE, USAGE, UserError
from regpt.cli.main import main
from regpt.tokenization.opening import open_tokenizer
from regpt.tokenization.training import train_tokenizer

pytest.importorskip("tokenizers")

TEXTS = ["the cat sat on the mat. " * 20, "12345 67890 12345 \n\n", "Füße, the dog \U0001f600"]


@pytest.mark.parametrize("split", ["gpt2", "cl100k"])
def test_trained_tokenizer_has_its_size_and_loses_nothing(tmp_path: Path, split: str) -> None:
    made = train_tokenizer(TEXTS, 270, tmp_path / "mine", split)  # type: ignore[arg-type]
    found = open_tokenizer(str(tmp_path / "mine"))
    assert made.tokens == found.vocabulary == 270 and found.end_of_text == 269
    for text in [*TEXTS, "never seen: \u4f60\u597d \x00\x7f", "<|endoftext|>"]:
        assert found.decode(found.encode(text)) == text and max(found.encode(text)) < 269
    assert made.bytes_per_token > 2
    assert json.loads((tmp_path / "mine" / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"


def test_pieces_follow_the_split(tmp_path: Path) -> None:
    text = ["12345. 12345. 12345.\n" * 50]
    longest = {}
    for split in ("gpt2", "cl100k"):
        train_tokenizer(text, 300, tmp_path / split, split)  # type: ignore[arg-type]
        found = open_tokenizer(str(tmp_path / split))
        longest[split] = max((found.decode([token]) for token in range(299)), key=len)
    assert longest == {"gpt2": " 12345", "cl100k": "123"}


def test_same_text_gives_the_same_file(tmp_path: Path, real_text: str) -> None:
    files = []
    for name in ("one.json", "two.json"):
        assert train_tokenizer([real_text], 512, tmp_path / name).tokens == 512
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "two.json"]


def test_command_trains_on_a_folder_of_text(tmp_path: Path, real_text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(real_text[:50_000])
    command = ["tokenizer", "train", str(tmp_path / "texts"), "--vocab-size", "320", "--into", str(tmp_path / "mine")]
    assert main(command) == DONE
    assert "320 tokens" in capsys.readouterr().out
    assert open_tokenizer(str(tmp_path / "mine")).vocabulary == 320
    assert main(command) == USAGE
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command[:4], "256", *command[5:]])


def test_text_that_is_too_small_gives_fewer_tokens(tmp_path: Path) -> None:
    assert train_tokenizer(["ab ab"], 1_000, tmp_path / "t.json").tokens < 300


def test_nothing_is_written_without_text_or_after_an_error(tmp_path: Path) -> None:
    def stopped() -> Iterator[str]:
        yield "text"
        raise KeyboardInterrupt

    with pytest.raises(UserError, match="no text"):
        train_tokenizer([], 300, tmp_path / "t.json")
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(stopped(), 300, tmp_path / "t.json")
    assert not list(tmp_path.iterdir())
