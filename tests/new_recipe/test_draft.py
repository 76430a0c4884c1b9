"""A new recipe inherits from another one, and has a warm-up, intervals and items that suit its length and size."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regpt.base.errors import DATA, DONE, USAGE, RecipeError, UserError
from regpt.cli.main import main
from regpt.new_recipe.draft import Size, size_values
from regpt.new_recipe.intervals import (
    FEWEST_VALIDATIONS,
    MOST_VALIDATIONS,
    Value,
    evaluation_steps,
    with_intervals,
    with_steps,
    with_values,
)
from regpt.new_recipe.length import Length, Unit, parse_length
from regpt.plan.warnings import ADVISED_EVALUATION
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe, shipped_recipes
from regpt.tracking.run import open_run
from tests.conftest import TINY
from tests.helpers.golden import assert_golden
from tests.helpers.tokenizers import write_bytes_tokenizer

SMALL = [
    *(f"model.{key}={value}" for key, value in TINY["model"].items()),
    *(f"run.{key}={value}" for key, value in TINY["run"].items() if key != "max_steps"),
    "data.micro_batch=2",
    "data.total_batch_tokens=128",
    "evaluation.sample_count=0",
    "evaluation.hellaswag_every=0",
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a text of 42,000 bytes in 50 files: about 10,000 tokens."""
    (tmp_path / "texts").mkdir()
    for number in range(50):
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(f"{number:03d} little words.\n" * 42)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def answer_in_terminal(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{answer}\n" for answer in answers)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


# The command


def test_new_recipe_is_that_of_the_golden_file(home: Path) -> None:
    options = ["--like", "demo-modern", "--text", "texts", "--steps", "600", "--size", "larger"]
    assert main(["recipe", "new", "my.toml", *options]) == DONE
    assert_golden("new-recipe.toml", Path("my.toml").read_text(encoding="utf-8"))


def test_new_recipe_is_planned_and_trained(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "new", "my.toml", "--text", "texts", "--steps", "4"]) == DONE
    assert main(["recipe", "show", "my.toml", "--against", "demo-modern"]) == DONE
    assert main(["plan", "my.toml", "--gpu", "T4"]) == DONE
    assert "leaves no step" not in "".join(capsys.readouterr())
    assert main(["train", "my.toml", *SMALL]) == DONE
    recipe = open_run(Path("runs/my")).recipe
    assert (recipe.data.path, recipe.data.source, recipe.run.max_steps) == ("data/my", "texts", 4)
    assert recipe.data.validation_tokens == 900  # a tenth of the text, as estimated from its bytes
    assert recipe.optimizer.max_lr == load_recipe("demo-modern").optimizer.max_lr


def test_new_recipe_asks_four_questions_in_a_terminal(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_in_terminal(monkeypatch, "textz", "texts", "gpt5", "cl100k", "a while", "20k tokens", "smaller")
    assert main(["recipe", "new", "my.toml"]) == DONE
    asked = capsys.readouterr().out
    assert asked.count("[Enter: stdlib]") == 2 and "'textz'" in asked  # asked again
    assert asked.count("[Enter: gpt2]") == 2 and "'gpt5'" in asked
    assert asked.count("[Enter: 180 steps]") == 2 and "'a while'" in asked
    assert asked.count("[Enter: same]") == 1
    recipe = load_recipe("my.toml")
    assert (recipe.data.source, recipe.run.max_steps) == ("texts", 20)
    assert (recipe.data.tokenizer, recipe.model.vocab_size) == ("cl100k", 100_288)
    assert recipe.model.n_layer < load_recipe("demo-modern").model.n_layer


def test_enter_keeps_everything(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_in_terminal(monkeypatch, "", "", "", "")
    assert main(["recipe", "new", "my.toml", "--like", "demo-classic"]) == DONE
    assert load_recipe("my.toml") == replace(load_recipe("demo-classic"), name="my")
    answer_in_terminal(monkeypatch, "", "")  # only what the options leave open
    assert main(["recipe", "new", "b.toml", "--text", "texts", "--steps", "9"]) == DONE
    assert load_recipe("b.toml").run.max_steps == 9


def test_new_recipe_of_a_prepared_dataset_names_its_path_only(home: Path) -> None:
    assert main(["recipe", "new", "my.toml", "--text", "texts", "--steps", "2"]) == DONE
    assert main(["prepare", "my.toml", *SMALL]) == DONE
    assert main(["recipe", "new", "b.toml", "--text", "data/my", "--steps", "2"]) == DONE
    assert main(["train", "b.toml", *SMALL]) == DONE
    assert open_run(Path("runs/b")).recipe.data.source == "texts"


def test_new_recipe_has_rows_for_the_tokens_of_a_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bytes_tokenizer(home / "mine" / "tokenizer.json")
    assert main(["recipe", "new", "my.toml", "--text", "texts", "--steps", "2", "--tokenizer", "mine"]) == DONE
    recipe = load_recipe("my.toml")
    assert (recipe.data.tokenizer, recipe.model.vocab_size) == ("mine", 320)
    assert main(["prepare", "my.toml", *SMALL, "model.vocab_size=320"]) == DONE
    assert main(["recipe", "new", "b.toml", "--text", "data/my", "--steps", "2"]) == DONE
    assert load_recipe("b.toml").data.tokenizer == "data/my/tokenizer" and load_recipe("b.toml").model.vocab_size == 320
    for words, said in ((["--text", "data/my"], "'o200k'"), (["--like", "gpt2-finetune"], "hub:openai-community/gpt2")):
        assert main(["recipe", "new", "c.toml", *words, "--tokenizer", "o200k"]) == USAGE
        assert said in capsys.readouterr().err and not Path("c.toml").exists()


def test_new_recipe_for_the_hub_leaves_the_revision_open(home: Path) -> None:
    options = ["--like", "gpt2-modern", "--text", "hub:someone/stories", "--steps", "2G tokens"]
    assert main(["recipe", "new", "my.toml", *options]) == DONE
    recipe = load_recipe("my.toml")
    assert (recipe.data.source, recipe.data.revision, recipe.data.validation) == ("hub:someone/stories", "", "auto")
    assert recipe.run.max_steps == 3_815 and recipe.published.hours == 0.0


def test_time_becomes_steps_of_this_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(recipe: Recipe) -> float:
        return 0.5 * (recipe.run.max_steps + evaluation_steps(recipe))

    monkeypatch.setattr("regpt.new_recipe.length.run_timer", lambda recipe: seconds)
    assert main(["recipe", "new", "my.toml", "--steps", "about 10 minutes"]) == DONE
    assert seconds(load_recipe("my.toml")) == pytest.approx(600, rel=0.02)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["my.toml", "--steps", "0"], USAGE, "'0'"),
        (["my.toml", "--steps", "10m"], USAGE, "'10m'"),
        (["my.toml", "--steps", "1e300"], USAGE, "run.max_steps"),
        (["my.toml", "--size", "huge"], USAGE, "'huge'"),
        (["my.toml", "--text", "nowhere"], DATA, "'nowhere'"),
        (["my.toml", "--like", "demo-modrn"], USAGE, "demo-modern"),
        (["my.json"], USAGE, "my.json"),
        (["nowhere/my.toml"], USAGE, "nowhere"),
        (["old.toml"], USAGE, "old.toml"),
    ],
)
def test_wrong_option_writes_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    Path("old.toml").write_text("old")
    assert main(["recipe", "new", *words]) == code
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in home.iterdir()) == ["old.toml", "texts"]
    assert Path("old.toml").read_text() == "old"


# Lengths, sizes, intervals


@pytest.mark.parametrize(
    ("answer", "amount", "unit"),
    [
        ("600", 600, Unit.STEPS),
        ("1_000 steps", 1_000, Unit.STEPS),
        ("2M tokens", 2e6, Unit.TOKENS),
        ("1.5e6 tokens", 1.5e6, Unit.TOKENS),
        ("10B tokens", 1e10, Unit.TOKENS),
        ("About 10 minutes", 600, Unit.SECONDS),
        ("10 min", 600, Unit.SECONDS),
        ("1.5h", 5_400, Unit.SECONDS),
    ],
)
def test_length_is_read_as_people_write_it(answer: str, amount: float, unit: Unit) -> None:
    assert parse_length(answer) == Length(amount, unit)


@pytest.mark.parametrize("answer", ["", "long", "-5", "2M", "5 s", "ten minutes", "1e999", "nan"])
def test_length_that_is_none_is_refused(answer: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_length(answer)
    assert f"'{answer}'" in caught.value.problem and "10 minutes" in caught.value.fix


@given(name=st.sampled_from(sorted(shipped_recipes())), steps=st.integers(1, 10**6), size=st.sampled_from(Size))
def test_intervals_suit_any_length_and_size(name: str, steps: int, size: Size) -> None:
    base = load_recipe(name)
    recipe = with_intervals(with_steps(with_values(base, size_values(base, size)), steps), base)
    assert not list(recipe.problems()) and not recipe.is_warmup_too_long
    assert recipe.optimizer.warmup_steps <= base.optimizer.warmup_steps
    validations = recipe.times_due(0, recipe.evaluation.validation_every)
    assert min(steps, FEWEST_VALIDATIONS) - 1 <= validations <= MOST_VALIDATIONS
    assert recipe.checkpoint.every % recipe.evaluation.validation_every == 0
    assert recipe.times_due(0, recipe.checkpoint.every) <= 5
    without = with_values(recipe, [Value("evaluation.hellaswag_every", 0)])
    assert evaluation_steps(recipe) - evaluation_steps(without) <= ADVISED_EVALUATION * steps


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_sizes_differ_by_about_the_same_factor(name: str) -> None:
    base = load_recipe(name)
    blocks = {}
    for size in Size:
        model = with_values(base, size_values(base, size)).model
        blocks[size] = model.matmul_parameters - model.vocab_size * model.n_embd
        assert model.n_embd // model.n_head == base.model.n_embd // base.model.n_head
    assert 2.5 < blocks[Size.LARGER] / blocks[Size.SAME] < 4 and 2 < blocks[Size.SAME] / blocks[Size.SMALLER] < 4


# Inheritance


def test_recipe_inherits_what_it_does_not_say(home: Path) -> None:
    (home / "deep").mkdir()
    Path("deep/a.toml").write_text("like = 'gpt2-modern'\n[run]\nmax_steps = 7\n[data]\nmicro_batch = 16\n")
    Path("deep/b.toml").write_text("like = 'a.toml'\n[run]\nseed = 5\n[data]\npath = 'data/b'\n")
    recipe, base = load_recipe("deep/b.toml"), load_recipe("gpt2-modern")
    assert (recipe.name, recipe.run.max_steps, recipe.run.seed, recipe.data.micro_batch) == ("b", 7, 5, 16)
    assert recipe.model == base.model and recipe.optimizer == base.optimizer
    assert base.published.hours and not recipe.published.hours
    assert recipe.given is not None
    assert recipe.given.in_file == {"run.seed", "data.path", "run.max_steps", "data.micro_batch"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("like = 'it.toml'", "it.toml"),
        ("like = 3", "like = 3"),
        ("like = 'demo-modrn'", "demo-modern"),
        ("like = 'demo-modern'\n[run]\nmax_stepz = 3", "max_stepz"),
    ],
)
def test_recipe_that_cannot_inherit_is_refused(home: Path, text: str, said: str) -> None:
    Path("it.toml").write_text(text)
    with pytest.raises((UserError, RecipeError), match=said):
        load_recipe("it.toml")
