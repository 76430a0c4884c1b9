"""A dataset that exists keeps the settings it was made with: others are refused, and files that changed are named."""

import os
import shutil
from pathlib import Path

import pytest

from regpt.base.errors import DATA, DONE, USAGE, UserError
from regpt.cli.main import main
from regpt.corpus.corpora import open_corpus
from regpt.data.shards import read_manifest
from regpt.preparation import changed_files, existing
from regpt.preparation.dataset import open_or_prepare
from regpt.recipe.settings import load_recipe, load_resolved_recipe
from tests.conftest import TINY, tiny_recipe

OLD_DATASET = Path(__file__).parent.parent / "fixtures" / "version_0_1" / "data" / "texts"
# What training needs besides the dataset, on the command line.
SMALL = [
    "data.micro_batch=2",
    "data.total_batch_tokens=128",
    "run.max_steps=1",
    *(f"model.{key}={value}" for key, value in TINY["model"].items()),
    *(f"run.{key}={value}" for key, value in TINY["run"].items() if key != "max_steps"),
    *(f"evaluation.{key}=0" for key in ("hellaswag_every", "validation_every", "sample_every", "sample_count")),
    "evaluation.validation_batches=1",
    "evaluation.validation_batch_size=2",
    "optimizer.warmup_steps=0",
]
MADE = ["data.source=texts", "data.validation_tokens=2000", "data.shard_tokens=9000"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """Prepare data/mine from the files in texts, by the command."""
    folder = tmp_path_factory.mktemp("existing")
    (folder / "texts").mkdir()
    for number in range(30):
        text = real_text[3_000 * number : 3_000 * (number + 1)]
        (folder / "texts" / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert main(["prepare", "demo-classic", "data.path=data/mine", *MADE, *SMALL]) == DONE
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of the texts and the dataset. Times of change are kept."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own_recipe(home: Path, text: str) -> str:
    (home / "own.toml").write_text(text, encoding="utf-8")
    return "own.toml"


# Settings

OTHERS = [
    ("source", "elsewhere", "texts"),
    ("revision", "main", ""),
    ("text_column", "body", "text"),
    ("document_separator", "<|endoftext|>", ""),
    ("validation", "first_tokens", "documents"),
    ("validation_tokens", 3_000, 2_000),
    ("shard_tokens", 5_000, 9_000),
]


@pytest.mark.parametrize(("key", "asked", "fixed"), OTHERS)
@pytest.mark.parametrize("place", ["command line", "recipe"])
def test_other_value_of_a_fixed_setting_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], place: str, key: str, asked: object, fixed: object
) -> None:
    setting, where = f"data.{key}={asked}", ["demo-classic", "data.path=data/mine"]
    if place == "recipe":
        where = [own_recipe(home, f"[data]\npath = 'data/mine'\n{key} = {asked!r}\n")]
    words = [*where, *([setting] if place == "command line" else []), *SMALL]
    assert main(["train", *words, "--name", "a"]) == USAGE
    said = capsys.readouterr().err
    assert f"data.{key} = {fixed!r}" in said and f"data.{key} = {asked!r}" in said
    assert f"set data.{key}={fixed}" in said and "another data.path" in said and said.count("\n") == 1
    assert not (home / "runs").exists()
    remedied = load_recipe(where[0], [*where[1:], f"data.{key}={fixed}"])
    assert open_or_prepare(remedied) == read_manifest(Path("data/mine"))


def test_settings_that_nobody_gave_follow_the_dataset(home: Path) -> None:
    assert main(["train", "demo-classic", "data.path=data/mine", *SMALL, "--name", "a"]) == DONE
    data = load_resolved_recipe(Path("runs/a/recipe.toml")).data
    assert (data.source, data.validation_tokens, data.shard_tokens) == ("texts", 2_000, 9_000)
    own = own_recipe(home, "[data]\npath = 'data/mine'\n")
    assert main(["train", own, *SMALL, "--name", "b"]) == DONE
    assert load_resolved_recipe(Path("runs/b/recipe.toml")).data == data
    again = ["train", "runs/a/recipe.toml", "--name", "c"]  # a run's recipe has only values that were used
    assert main(again) == DONE


def test_path_on_the_command_line_outranks_the_recipe(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = own_recipe(home, "[data]\npath = 'data/other'\nsource = 'elsewhere'\nvalidation_tokens = 3_000\n")
    given = load_recipe(own, ["data.path=data/mine", "data.shard_tokens=9000"]).given
    assert given is not None and given.about_dataset == {"data.path", "data.shard_tokens"}
    assert main(["train", own, "data.path=data/mine", *SMALL, "--name", "a"]) == DONE
    assert main(["train", own, "data.path=data/mine", "data.validation_tokens=3000", *SMALL, "--name", "b"]) == USAGE
    assert "3000" in capsys.readouterr().err


def test_source_may_be_relative_or_absolute(home: Path) -> None:
    words = ["train", "demo-classic", "data.path=data/mine", f"data.source={home / 'texts'}", *SMALL, "--name", "a"]
    assert main(words) == DONE
    assert not existing.is_same_place("stdlib", "./stdlib")


def test_shipped_recipe_notes_another_text_at_its_own_path(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "data" / "mine").rename(home / "data" / "stdlib")
    assert main(["train", "demo-classic", *SMALL, "--name", "a"]) == DONE
    said = " ".join("".join(capsys.readouterr()).split())
    assert "data.path = 'data/stdlib'" in said and "'texts'" in said and "data.source = 'stdlib'" in said
    assert load_resolved_recipe(Path("runs/a/recipe.toml")).data.source == "texts"


def test_recipe_built_by_a_program_counts_as_given(home: Path) -> None:
    data = {"path": "data/mine", "source": "texts", "validation": "auto", "validation_tokens": 2_000}
    with pytest.raises(UserError, match=r"data\.shard_tokens = 9000.*data\.shard_tokens = 5000"):
        open_or_prepare(tiny_recipe(home, data=data))


def test_resume_counts_words_of_the_command_line_only(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "demo-classic", "data.path=data/mine", *SMALL, "--name", "a"]) == DONE
    recipe = home / "runs" / "a" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("validation_tokens = 2000", "validation_tokens = 7000"))
    assert main(["resume", "a", "run.max_steps=2", "data.validation_tokens=7000"]) == USAGE
    said = capsys.readouterr().err
    assert "data.validation_tokens = 2000" in said and "data.validation_tokens = 7000" in said
    assert main(["resume", "a", "run.max_steps=2"]) == DONE
    assert load_resolved_recipe(recipe).data.validation_tokens == 2_000  # what was used


def test_missing_path_without_a_source_names_both(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "demo-classic", "data.path=data/mien", *SMALL, "--name", "a"]) == DATA
    said = capsys.readouterr().err
    assert "data.path = 'data/mien'" in said and "data.source=stdlib" in said
    (home / "data" / "mien").mkdir()
    assert main(["train", "demo-classic", "data.path=data/mien", *SMALL, "--name", "a"]) == DATA
    said = capsys.readouterr().err
    assert "data/mien" in said and "data.source=" in said and "data.path=" in said
    assert not list((home / "data" / "mien").iterdir())


@pytest.mark.parametrize("place", ["recipe", "command line"])
def test_missing_path_with_a_source_is_prepared(home: Path, place: str) -> None:
    source = "[data]\nsource = 'texts'\n" if place == "recipe" else ""
    words = ["data.source=texts"] if place == "command line" else []
    recipe = load_recipe(own_recipe(home, source), ["data.path=data/new", *words, *MADE[1:], *SMALL])
    assert open_or_prepare(recipe).source["asked"] == "texts"


# The command prepare


@pytest.mark.parametrize("executor", [[], ["--executor", "local", "--option", "workers=1"]])
def test_prepare_of_a_finished_dataset_says_so(
    home: Path, capsys: pytest.CaptureFixture[str], executor: list[str]
) -> None:
    command = ["prepare", "demo-classic", "data.path=data/mine", *MADE, *SMALL, *executor]
    before = {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*")}
    assert main(command) == DONE
    out, err = capsys.readouterr()
    assert "already" in err + out and "data/mine" in err + out
    assert f"digest {read_manifest(home / 'data' / 'mine').digest}" in out
    assert main([*command, "data.shard_tokens=5000"]) == USAGE
    said = capsys.readouterr().err
    assert "data.shard_tokens = 9000" in said and "data.shard_tokens = 5000" in said
    assert {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*")} == before


def test_prepare_counts_the_settings_of_the_recipe(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "demo-classic", "data.path=data/mine", *SMALL]) == USAGE
    said = capsys.readouterr().err
    assert "data.source = 'texts'" in said and "data.source = 'stdlib'" in said


@pytest.mark.slow
def test_dataset_made_by_an_executor_is_finished_too(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", "demo-classic", "data.path=data/many", *MADE, *SMALL]
    assert main([*command, "--executor", "local", "--option", "workers=1"]) == DONE
    (home / "texts" / "new.txt").write_text("new")
    capsys.readouterr()
    assert main(command) == DONE
    said = "".join(capsys.readouterr())
    assert "already" in said and "1 new file (new.txt)" in said
    assert main([*command, "data.validation_tokens=1000"]) == USAGE


# Imported and old datasets


@pytest.fixture
def imported(home: Path) -> Path:
    folder = home / "shards"
    folder.mkdir()
    for path in (home / "data" / "mine").glob("*.npy"):
        shutil.copy(path, folder / path.name)
    assert main(["data", "import", "shards"]) == DONE
    return home


@pytest.mark.parametrize(
    ("word", "both"),
    [
        ("data.validation_tokens=900", ("data.validation_tokens = 2000", "data.validation_tokens = 900")),
        ("data.validation=documents", ("data.validation = 'auto'", "data.validation = 'documents'")),
        ("data.source=texts", ("data.source = 'shards'", "data.source = 'texts'")),
    ],
)
def test_imported_dataset_refuses_other_values(
    imported: Path, capsys: pytest.CaptureFixture[str], word: str, both: tuple[str, str]
) -> None:
    words = ["demo-classic", "data.path=data/shards", *SMALL]
    assert main(["train", *words, word, "--name", "a"]) == USAGE
    said = capsys.readouterr().err
    assert all(value in said for value in both)
    assert main(["train", *words, "data.validation_tokens=2000", "--name", "a"]) == DONE
    assert main(["prepare", *words]) == USAGE
    assert "data/shards" in capsys.readouterr().err


def test_recipe_may_name_the_text_of_imported_shards(imported: Path) -> None:
    own = own_recipe(imported, "[data]\npath = 'data/shards'\nsource = 'hub:HuggingFaceFW/fineweb-edu'\n")
    assert main(["train", own, *SMALL, "--name", "a"]) == DONE


def test_dataset_of_version_0_1_keeps_its_settings(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(OLD_DATASET, home / "data" / "old")
    words = ["demo-classic", "data.path=data/old", *SMALL, "data.total_batch_tokens=64"]
    assert main(["train", *words, "--name", "a"]) == DONE
    data = load_resolved_recipe(Path("runs/a/recipe.toml")).data
    assert (data.source, data.validation_tokens, data.shard_tokens) == ("texts", 1_200, 2_500)
    assert "note" not in "".join(capsys.readouterr())  # it has no record of its files
    same = ["data.source=texts", "data.validation_tokens=1200", "data.shard_tokens=2500"]
    assert main(["prepare", *words, *same]) == DONE
    assert main(["train", *words, "data.document_separator=###", "--name", "b"]) == USAGE
    (home / "data" / "old" / "preparation.json").unlink()
    assert main(["train", *words, "data.validation_tokens=1201", "--name", "b"]) == USAGE


# Files that changed


def test_changed_files_are_named_at_train_and_prepare(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c", "d"):
        (home / "texts" / f"{name}.txt").write_text("new")
    (home / "texts" / "00.txt").unlink()
    stamp = (home / "texts" / "01.txt").stat()
    os.utime(home / "texts" / "01.txt", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1_000_000_000))
    (home / "texts" / ".hidden.txt").write_text("not read")
    (home / "texts" / "table.csv").write_text("not read")
    for command in (["train", "--name", "a"], ["prepare", *MADE]):
        assert main([command[0], "demo-classic", "data.path=data/mine", *SMALL, *command[1:]]) == DONE
        said = " ".join("".join(capsys.readouterr()).split())
        assert "4 new files (a.txt, b.txt, c.txt, …)" in said
        assert "1 file of another size or date (01.txt)" in said and "1 missing file (00.txt)" in said
        assert "data.source = 'texts'" in said and "data.path = 'data/mine'" in said


def test_text_that_is_gone_is_not_mentioned(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["prepare", "demo-classic", "data.path=data/mine", *MADE, *SMALL]) == DONE
        said = "".join(capsys.readouterr())
        assert "already" in said and "since" not in said
        shutil.rmtree(home / "texts", ignore_errors=True)


def test_very_many_files_are_recorded_by_a_digest(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed_files, "MOST_NAMES", 29)
    record = changed_files.record_of_files("texts")
    assert record.keys() == {"count", "digest"} and record["count"] == 30
    assert changed_files.note_about_changes("texts", "data/mine", record) == ""
    (home / "texts" / "new.txt").write_text("new")
    note = changed_files.note_about_changes("texts", "data/mine", record)
    assert "30 files then, 31 now" in note and "data.source = 'texts'" in note
    monkeypatch.setattr(changed_files, "LONGEST_CHECK", -1.0)
    assert changed_files.note_about_changes("texts", "data/mine", record) == ""  # a slow disk


@pytest.mark.parametrize("with_table", [False, True])
def test_recorded_files_are_those_that_are_read(home: Path, with_table: bool) -> None:
    texts = home / "texts"
    (texts / "deep" / ".git").mkdir(parents=True)
    for name in ("deep/a.md", "deep/.git/b.txt", "deep/c.txt.gz", "image.png", ".d.txt", "e"):
        (texts / name).write_text("x")
    (home / "beyond").mkdir()
    (home / "beyond" / "linked.py").write_text("x")
    (texts / "link").symlink_to(home / "beyond")
    (texts / "loop").symlink_to(texts)
    if with_table:
        (texts / "deep" / "rows.jsonl").write_text('{"text": "x"}\n')
    parts = {Path(part.name).relative_to("texts").as_posix() for part in open_corpus("texts", "text").parts}
    assert changed_files.list_stamps(Path("texts")).keys() == parts
    assert ("deep/rows.jsonl" in parts) is with_table and ("link/linked.py" in parts) is not with_table
    assert list(changed_files.list_stamps(Path("texts/deep/a.md"))) == ["a.md"]
