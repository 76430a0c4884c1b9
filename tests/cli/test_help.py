"""The help of every command is a golden file; a misspelled command or run gets a suggestion."""

import re
from pathlib import Path

import pytest

from regpt.base.errors import USAGE
from regpt.cli.main import main, parser
from tests.helpers.golden import assert_golden


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    return capsys.readouterr().out


def test_help_of_all_commands_is_that_of_the_golden_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    names = next(action.choices for action in parser()._subparsers._group_actions if action.choices)  # type: ignore[union-attr]
    parts = [help_of(capsys)]
    parts += [help_of(capsys, name) for name in names]
    parts += [help_of(capsys, "recipe", name) for name in ("show", "new", "list", "help")]
    parts += [help_of(capsys, "data", name) for name in ("import", "verify", "show")]
    assert_golden("help.txt", f"\n{'=' * 80}\n\n".join(parts))


def test_help_of_settings_is_that_of_the_golden_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "help"]) == 0
    assert_golden("recipe-help.txt", capsys.readouterr().out)


@pytest.mark.parametrize(("word", "meant"), [("resum", "resume"), ("compair", "compare"), ("eval", "evaluate")])
def test_misspelled_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str], word: str, meant: str) -> None:
    with pytest.raises(SystemExit) as left:
        main([word, "x"])
    assert left.value.code == USAGE
    printed = capsys.readouterr().err
    assert f"'{word}'" in printed and f"'{meant}'" in printed and printed.count("\n") == 1


def test_misspelled_subcommand_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["recipe", "shwo", "demo-modern"])
    assert left.value.code == USAGE
    printed = capsys.readouterr().err
    assert "'recipe shwo'" in printed and "'recipe show'" in printed and printed.count("\n") == 1


def test_help_of_settings_is_searched_by_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "help", "LR"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^\[?\s*(\w+)[\]=\s]", printed.replace("\n      ", " · "), re.MULTILINE) == [
        "optimizer",
        "max_lr",
        "min_lr",
        "warmup_steps",
        "schedule",
        "cooldown_steps",
        "embedding_lr",
        "head_lr",
        "vector_lr",
        "weight_decay_schedule",
        "muon_lr",
    ]
    assert main(["recipe", "help", "batch", "size"]) == 0  # a name in other programs
    assert "micro_batch = 32" in capsys.readouterr().out
    assert main(["recipe", "help", "flux"]) == USAGE
    assert "'flux'" in capsys.readouterr().err


def test_misspelled_run_gets_a_suggestion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "modern").mkdir(parents=True)
    (tmp_path / "runs" / "modern" / "recipe.toml").write_text("")
    assert main(["report", "modren", "--runs", str(tmp_path / "runs")]) == USAGE
    printed = capsys.readouterr().err
    assert "'modren'" in printed and "'modern'" in printed
