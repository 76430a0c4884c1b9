"""The program as a user meets it: its help, its answers to bad input, and the way from text to report."""

import subprocess
import sys
from pathlib import Path

import pytest

from regpt.cli.main import main
from regpt.recipe.settings import to_toml
from tests.conftest import tiny_recipe


@pytest.fixture
def home(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the tiny recipe in it."""
    (tmp_path / "tiny.toml").write_text(to_toml(tiny_recipe(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        code = main(words)
    except SystemExit as left:  # argparse
        code = int(left.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["train", "--help"], ["recipe", "list"], ["recipe", "show", "gpt2-modern"]]
)
def test_help_and_recipes_do_not_wait_for_torch(words: list[str]) -> None:
    code = """
import sys
from regpt.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


def test_python_m_regpt_is_regpt() -> None:
    shown = subprocess.run([sys.executable, "-m", "regpt", "--version"], check=True, capture_output=True, text=True)
    assert shown.stdout.startswith("regpt 0.")


def test_from_text_to_report(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, "prepare", "tiny.toml")
    assert code == 0 and "regpt data show " in out.splitlines()[-1] and "--duplicates" in out.splitlines()[-1]
    assert answer(capsys, "train", "tiny.toml", "--name", "one")[0] == 0
    code, out, _ = answer(capsys, "sample", "one", "--prompt", "import", "--tokens", "5", "--count", "2")
    assert code == 0 and out.startswith("import") and out.count("import") >= 2
    code, out, _ = answer(capsys, "report", "one")
    assert code == 0 and Path(out.strip().removeprefix("report: ")).is_file()
    code, out, _ = answer(capsys, "runs")
    assert code == 0 and "finished" in out and "6/6" in out
    assert answer(capsys, "export", "one", "exported")[0] == 0
    assert (home / "exported" / "config.json").is_file()
    assert answer(capsys, "resume", "one")[0] == 0


def test_settings_may_stand_before_and_behind_an_option(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = answer(
        capsys, "train", "tiny.toml", "run.max_steps=1", "--name", "one", "run.seed=3", "data.micro_batch=4"
    )
    assert code == 0, err
    recipe = (home / "runs" / "one" / "recipe.toml").read_text()
    assert "max_steps = 1" in recipe and "seed = 3" in recipe and "micro_batch = 4" in recipe
    assert answer(capsys, "train", "tiny.toml", "--nmae", "x")[0] == 2
    assert answer(capsys, "runs", "surplus")[0] == 2


def test_a_path_that_cannot_be_written_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "file").touch()
    code, _, err = answer(capsys, "train", "tiny.toml", "--runs", "file", "--name", "a")
    assert code == 2 and err.startswith("error: ") and "file" in err and len(err.strip().splitlines()) == 1


def test_recipe_show_tells_what_follows_and_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, "recipe", "show", "gpt2-modern", "data.micro_batch=8", "--against", "gpt2-classic")
    assert code == 0
    for said in (
        "micro_batch = 8",
        "123,587,328",
        "64 micro-batches",
        "19,999,490,048",
        "149,422,080",
        "2.030 of 9,854,000,000",
        "model.positions",
    ):
        assert said in out
    assert "854,654,976" in out  # FLOPs per token


def test_recipe_show_prints_the_parameter_groups(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "model.tied_head=false",
        "optimizer.kind=muon",
        "optimizer.head_lr=0.004",
        "optimizer.muon_weight_decay=0.05",
    ]
    code, out, _ = answer(capsys, "recipe", "show", "gpt2-modern", *words)
    groups = out.split("# Parameter groups\n")[1].splitlines()
    assert code == 0
    for line, (name, method, rate, decay, size, tensors) in zip(
        groups,
        [
            ("hidden", "Muon", "0.02", "0.05", "84,934,656", 48),
            ("embedding", "AdamW", "0.0018", "0.1", "38,633,472", 1),
            ("head", "AdamW", "0.004", "0.1", "38,633,472", 1),
            ("vectors", "AdamW", "0.0018", "0", "19,200", 25),
        ],
        strict=True,
    ):
        assert all(said in line for said in (name, f"{method},", f"rate {rate},", f"decay {decay}:", f"{size} "))
        assert f"in {tensors} tensor" in line
    _, out, _ = answer(capsys, "recipe", "show", "gpt2-modern")
    matrices, vectors = out.split("# Parameter groups\n")[1].splitlines()
    assert all(said in matrices for said in ("matrices", "AdamW", "0.0018", "decay 0.1"))
    assert all(said in vectors for said in ("vectors", "AdamW", "0.0018", "decay 0"))


def test_recipe_show_notes_a_warmup_that_lasts_for_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = answer(capsys, "recipe", "show", "gpt2-classic", "run.max_steps=60")
    assert code == 0
    assert all(said in err for said in ("warmup_steps = 715", "max_steps = 60", "warmup_steps=3"))
    assert answer(capsys, "recipe", "show", "demo-modern")[2] == ""


def test_train_notes_a_warmup_that_lasts_for_the_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inherits = (
        to_toml(tiny_recipe(home)).replace("warmup_steps = 2\n", "").replace("max_steps = 6\n", "max_steps = 2\n")
    )
    (home / "tiny.toml").write_text(inherits)
    code, out, err = answer(capsys, "train", "tiny.toml")
    said = " ".join((out + err).split())
    assert code == 0 and all(f"{words} = {n}" in said for words, n in (("warmup_steps", 715), ("max_steps", 2)))
    assert "set optimizer.warmup_steps=" in said
    code, out, err = answer(capsys, "train", "tiny.toml", "optimizer.warmup_steps=1", "--name", "short")
    assert code == 0 and "warmup_steps" not in out + err


BAD = [
    (["train", "nowhere.toml"], 2, "nowhere.toml"),
    (["train", "tiny.toml", "optimizer.learnig_rate=1"], 2, "optimizer.learnig_rate"),
    (["train", "tiny.toml", "data.micro_batch=3"], 2, "data.micro_batch"),
    (["train", "tiny.toml", "data.source=nothing-here"], 3, "nothing-here"),
    (["train", "tiny.toml", "data.source=empty"], 3, "empty"),
    (["train", "tiny.toml", "data.total_batch_tokens=1048576"], 3, "a batch takes"),
    (["train", "gpt2-modern"], 3, "hub"),
    (["train", "tiny.toml", "run.device=cuda"], 2, "run.device"),
    (["resume", "unknown"], 2, "unknown"),
    (["report", "unknown"], 2, "unknown"),
    (["sample", "unknown"], 2, "unknown"),
    (["recipe", "show", "tiny.toml", "--against", "tinny"], 2, "tinny"),
]


@pytest.mark.parametrize(("words", "code", "names"), BAD, ids=[" ".join(words) for words, _, _ in BAD])
def test_bad_input_gets_a_line_with_the_remedy_and_leaves_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, names: str
) -> None:
    (home / "empty").mkdir()
    before = sorted(home.rglob("*"))
    found, _, err = answer(capsys, *words)
    assert found == code
    assert err.startswith("error: ") and len(err.strip().splitlines()) == 1 and names in err
    assert "Traceback" not in err
    assert sorted(home.rglob("*")) == before


def test_a_run_that_exists_already_is_refused_with_what_to_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "train", "tiny.toml")
    code, _, err = answer(capsys, "train", "tiny.toml")
    assert code == 2 and "exists already" in err and "regpt resume tiny" in err and "--name" in err


@pytest.mark.parametrize("words", [[], ["fly"], ["sample", "x", "--tokens", "0"], ["train"]])
def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert answer(capsys, *words)[0] == 2


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m regpt recipe help | head -1"
    shown = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert shown.stdout.strip() == "[run]" and shown.stderr == "" and shown.returncode == 0
