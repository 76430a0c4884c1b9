"""Recipes: invalid settings, derived values, and the two runs of the seed record."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from regpt.base.errors import Problem, RecipeError, UserError
from regpt.recipe.differences import changes, differences, off_switches, on_resume, recipe_digest, run_settings
from regpt.recipe.optimization import OptimizerRecipe
from regpt.recipe.recipe import Recipe
from regpt.recipe.sections import EvaluationRecipe
from regpt.recipe.settings import as_tables, build_recipe, find_recipe, load_recipe, shipped_recipes, to_toml

CLASSIC, MODERN = "gpt2-classic", "gpt2-modern"


def problems(where: str, *overrides: str) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(where, overrides)
    return caught.value.problems


# Digests are stored in environment.json of runs, so a new version of regpt must compute the same ones.
DIGESTS = {
    "demo-classic": "7d2e06c8bde22c1f91106949c1c8b3716497a7d651444c8ce6a979add3bcab0a",
    "demo-modern": "676bb6dfa7e0f4412b7c815067db73efee18fd1fd723bc898d90e3bb5b32ca17",
    "gpt2-modern": "5191708d111d9b7fb62b589a9250e85608ddf90b27aaa6b3363a76e80aff37ab",
    "gpt2-classic": "34fdc62167c880e8ed7cfc278787ec5c5cb07501f3f0c3bfdb53bf40066caaf2",
}


# The settings of the miniatures in version 0.1; those of the full size have not changed.
EVERY = ["validation_every=40", "hellaswag_every=120", "sample_every=120"]
SETTINGS_OF_VERSION_0_1 = {
    "demo-classic": [
        "run.max_steps=120", "data.order=sequential", "data.micro_batch=2",
        "optimizer.max_lr=1e-3", "optimizer.min_lr=1e-4", "optimizer.warmup_steps=25",
        *(f"evaluation.{setting}" for setting in EVERY),
    ],
    "demo-modern": [
        "run.max_steps=240",
        "optimizer.max_lr=3e-3", "optimizer.min_lr=3e-4", "optimizer.warmup_steps=10",
        *(f"evaluation.{setting}" for setting in EVERY),
    ],
}  # fmt: skip


def test_recipe_digests_are_those_of_version_0_1() -> None:
    found = {name: recipe_digest(load_recipe(name, SETTINGS_OF_VERSION_0_1.get(name, []))) for name in DIGESTS}
    later = {"demo-next", "gpt2-next", "gpt2-finetune", "gpt2-chat"}
    assert found == DIGESTS and set(shipped_recipes()) - set(DIGESTS) == later


@pytest.mark.parametrize(
    ("overrides", "refused", "noted"),
    [
        (["data.path=elsewhere", "run.threads=3", "checkpoint.every=7"], {}, {}),
        (["published.hellaswag=0.5"], {}, {}),
        (["run.max_steps=300"], {}, {"run.max_steps": [180, 300]}),
        (["evaluation.sample_seed=1"], {}, {"evaluation.sample_seed": [42, 1]}),
        (["run.seed=1", "run.max_steps=300"], {"run.seed": [1337, 1]}, {"run.max_steps": [180, 300]}),
        (["model.bias=true"], {"model.bias": [False, True]}, {}),
    ],
)
def test_resume_policy_of_each_setting_decides_what_may_change(
    overrides: list[str], refused: dict[str, list[object]], noted: dict[str, list[object]]
) -> None:
    begun_with = as_tables(load_recipe("demo-modern"))
    assert changes(begun_with, load_recipe("demo-modern", overrides)) == (refused, noted)


def test_resume_policy_refuses_every_change_that_would_make_it_another_run() -> None:
    """A changed setting is refused, noted or free, and nothing else of the recipe is."""
    recipe = load_recipe("demo-modern")
    begun_with = as_tables(recipe)
    refused_names = set()
    for name, value in run_settings(recipe).items():
        section, key = name.split(".")
        other = value + "x" if isinstance(value, str) else value + 1
        changed = replace(recipe, **{section: replace(getattr(recipe, section), **{key: other})})
        refused, noted = changes(begun_with, changed)
        pair = {name: [value, other]}
        assert (refused, noted) == {"refused": (pair, {}), "noted": ({}, pair), "free": ({}, {})}[on_resume(name)], name
        refused_names |= refused.keys()
    whole_sections = {name for name in run_settings(recipe) if name.startswith(("model.", "optimizer.", "guard."))}
    keys = ("seed", "weights_seed", "init_from", "precision", "matmul_precision", "compile", "deterministic")
    of_run = {f"run.{key}" for key in keys}
    decided_later = {
        f"optimizer.{key}"
        for key in ("cooldown_steps", "cooldown_shape", "adam_cooldown_steps", "average_steps", "average_share")
    }
    of_data = {f"data.{key}" for key in ("order", "total_batch_tokens", "batch_ramp")}
    assert refused_names == (whole_sections | of_run | of_data) - decided_later


def test_resume_policy_keeps_free_settings_out_of_the_digest() -> None:
    recipe = load_recipe("demo-modern")
    for name, value in run_settings(recipe).items():
        section, key = name.split(".")
        other = value + "x" if isinstance(value, str) else value + 1
        changed = replace(recipe, **{section: replace(getattr(recipe, section), **{key: other})})
        assert (recipe_digest(changed) == recipe_digest(recipe)) == (on_resume(name) == "free"), name


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_writes_out_to_an_equal_one(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / f"{name}.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert build_recipe(name, as_tables(recipe)) == (recipe, [])


def test_full_size_recipes_hold_the_seed_record() -> None:
    """Each value that the record gives, in both columns."""
    classic, modern = as_tables(load_recipe(CLASSIC)), as_tables(load_recipe(MODERN))
    both = {
        "run": {"seed": 1337, "matmul_precision": "high"},
        "data": {"total_batch_tokens": 524_288},
        "model": {
            "n_layer": 12,
            "n_head": 12,
            "n_embd": 768,
            "block_size": 1024,
            "vocab_size": 50_304,
            "tied_head": True,
            "dropout": 0.0,
            "init_std": 0.02,
        },
        "optimizer": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0},
        "evaluation": {
            "validation_every": 250,
            "validation_batches": 20,
            "validation_batch_size": 32,
            "hellaswag_every": 250,
            "sample_count": 4,
            "sample_tokens": 32,
            "sample_top_k": 50,
            "sample_seed": 42,
            "sample_prompt": "Hello, I'm a language model,",
        },
        "checkpoint": {"every": 5000},
    }
    of_classic = {
        "run": {"max_steps": 19_073},
        "data": {"micro_batch": 16, "order": "sequential"},
        "model": {
            "positions": "learned",
            "activation": "gelu",
            "mlp_hidden": 3072,
            "normalization": "layernorm",
            "bias": True,
        },
        "optimizer": {"max_lr": 6e-4, "min_lr": 6e-5, "warmup_steps": 715},
        "published": {"validation_loss": 3.26, "hellaswag": 0.28, "hours": 11.0, "cost_usd": 7.0},
    }
    of_modern = {
        "run": {"max_steps": 38_146},
        "data": {"micro_batch": 32, "order": "shuffled"},
        "model": {
            "positions": "rope",
            "activation": "swiglu",
            "mlp_hidden": 2048,
            "normalization": "rmsnorm",
            "bias": False,
        },
        "optimizer": {"max_lr": 1.8e-3, "min_lr": 1.8e-4, "warmup_steps": 285},
        "published": {"validation_loss": 2.99, "hellaswag": 0.32, "hours": 22.0},
    }
    for tables, expected in ((classic, both), (modern, both), (classic, of_classic), (modern, of_modern)):
        for section, values in expected.items():
            assert {key: tables[section][key] for key in values} == values


def test_full_size_recipes_have_these_derived_values() -> None:
    classic, modern = load_recipe(CLASSIC), load_recipe(MODERN)
    assert (classic.model.parameters, modern.model.parameters) == (124_475_904, 123_587_328)
    assert (classic.accumulation_steps(4), modern.accumulation_steps()) == (8, 16)
    assert classic.total_tokens == 19_073 * 524_288
    assert modern.warmup_tokens == 149_422_080  # the record's "about 150M"
    assert 0.80e9 < modern.model.flops_per_token < 0.86e9


def test_miniature_models_differ_as_the_full_size_ones_do() -> None:
    """They differ in nothing else, so that a comparison of the two is fair."""
    full = {name for name, _, _ in differences(load_recipe(MODERN), load_recipe(CLASSIC))}
    mini = {name for name, _, _ in differences(load_recipe("demo-modern"), load_recipe("demo-classic"))}
    assert mini == {name for name in full if name.startswith("model.")}


def test_problems_are_all_reported_at_once() -> None:
    found = problems(
        "demo-modern",
        "optimizer.learnig_rate=1",
        "run.max_steps='ten'",
        "model.n_head=3",
        "data.micro_batch=3",
        "nonsense",
    )
    assert [problem.setting for problem in found] == [
        "nonsense",
        "run.max_steps",
        "optimizer.learnig_rate",
        "model.n_embd",
        "data.total_batch_tokens",
    ]
    assert found[3].depends_on == ("model.n_head", "model.head_dim")
    assert "128" in found[3].text and "3" in found[3].text


def test_head_counts_that_do_not_divide_name_those_that_do() -> None:
    (problem,) = problems("demo-modern", "model.n_head=4", "model.n_kv_head=3")
    assert problem.setting == "model.n_kv_head" and problem.depends_on == ("model.n_head",)
    assert "4" in problem.text and "3" in problem.text and "1, 2, 4" in problem.text
    (problem,) = problems("demo-modern", "model.n_kv_head=-1")
    assert problem.setting == "model.n_kv_head"


def test_scaled_rotary_wavelengths_need_rope_and_an_order() -> None:
    (problem,) = problems("demo-modern", "model.rope_scaling=llama3", "model.positions=learned")
    assert problem.setting == "model.rope_scaling"
    (problem,) = problems("demo-modern", "model.rope_scaling=llama3", "model.rope_high_frequency_factor=1")
    assert problem.setting == "model.rope_high_frequency_factor"
    load_recipe("demo-modern", ["model.rope_high_frequency_factor=1"])  # without rope_scaling it has no effect


def test_problems_caused_by_an_unusable_value_are_left_out() -> None:
    """Expect one problem for each: the default in place of the value would not fit the other settings."""
    (problem,) = problems("demo-modern", "model.n_embd=90", "model.n_head='3'", "model.positions=learned")
    assert problem.setting == "model.n_head"
    (problem,) = problems("demo-modern", "optimizer.min_lr=0.01", "optimizer.maxlr=0.1")
    assert problem.setting == "optimizer.maxlr"


def test_recipe_error_prints_one_line_for_each_problem(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[run]\nmax_steps = 0\n[optimizer]\nbeta1 = 2.0\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and all(str(path) in line for line in lines)
    assert "run.max_steps" in lines[0] and "optimizer.beta1" in lines[1]


@pytest.mark.parametrize(
    ("override", "guess"),
    [
        ("optimizer.warmup_step=3", "'optimizer.warmup_steps'"),
        ("run.micro_batch=4", "'data.micro_batch'"),
        ("modle.n_layer=2", "'model'"),
        ("max_steps.x=2", "'run.max_steps'"),
        ("model.positions=rop", "'rope'"),
    ],
)
def test_misspelt_setting_gets_the_right_name_suggested(override: str, guess: str) -> None:
    (problem,) = problems("demo-modern", override)
    assert guess in problem.text


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("optimizer.max_lr=-1", "optimizer.max_lr = -1.0"),
        ("optimizer.max_lr=nan", "optimizer.max_lr = nan"),
        ("optimizer.min_lr=1", "optimizer.min_lr = 1.0"),
        ("data.micro_batch=0", "data.micro_batch = 0"),
        ("model.dropout=1.0", "model.dropout = 1.0"),
        ("model.vocab_size=50000", "model.vocab_size = 50000"),
        ("model.tied_head=1", "model.tied_head = 1"),
        ("run.max_steps=1.5", "run.max_steps = 1.5"),
        ("run.max_steps=1e300", "run.max_steps = 1e+300"),
        ("run.max_steps=1,000", "run.max_steps = '1,000'"),
        ("run.deterministic=yes", "run.deterministic = 'yes'"),
        ("run.seed=true", "run.seed = True"),
        ("run.sinks=wandb,x", "run.sinks = 'wandb,x'"),
        ("run.time_limit=3:00", "run.time_limit = '3:00'"),
        ("guard.window=7", "guard.window = 7"),
        ("data.path=", "data.path"),
        ("evaluation.sample_prompt=", "evaluation.sample_prompt"),
    ],
)
def test_bad_value_is_refused_with_its_setting_and_value(override: str, names: str) -> None:
    found = {problem.setting: problem.text for problem in problems("demo-modern", override)}
    assert names in found[override.partition("=")[0]]


def test_batch_that_does_not_divide_gets_sizes_that_do() -> None:
    (problem,) = problems(MODERN, "data.micro_batch=33")
    assert problem.setting == "data.total_batch_tokens" and "524288" in problem.text and "33 x 1024" in problem.text
    suggested = [int(word) for word in problem.text.split("micro_batch = ")[1].split(" or ")]
    assert len(suggested) == 3
    for micro_batch in suggested:
        load_recipe(MODERN, [f"data.micro_batch={micro_batch}"])
    (problem,) = problems(MODERN, "data.total_batch_tokens=500000")
    load_recipe(MODERN, [f"data.total_batch_tokens={problem.text.split(' = ')[-1]}"])


def test_overrides_take_numbers_words_and_quoted_text() -> None:
    recipe = load_recipe(
        "demo-modern", ["run.max_steps=1_000", "data.path=my shards", 'data.source="a=b"', "optimizer.max_lr=1"]
    )
    assert (recipe.run.max_steps, recipe.data.path, recipe.data.source) == (1000, "my shards", "a=b")
    assert type(recipe.optimizer.max_lr) is float


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run.time_limit=11:55:00", "11:55:00"),  # a local time in TOML
        ("run.time_limit=47:55:00", "47:55:00"),
        ("data.path=123", "123"),
        ("data.path=2024-01-01", "2024-01-01"),
        ("data.path=true", "true"),
        ("data.revision=0123456789012345678901234567890123456789", "0123456789012345678901234567890123456789"),
        ("evaluation.sample_prompt=5 # five", "5 # five"),
        ('evaluation.sample_prompt=\'tis "it"', '\'tis "it"'),
        ("run.deterministic=True", True),
        ("run.deterministic=FALSE", False),
        ("run.max_steps=1e9", 1_000_000_000),
        ("run.max_steps=0x10", 16),
        ("run.max_steps=007", 7),
        ("optimizer.max_lr=.001", 0.001),
        ("optimizer.max_lr=1.e-3", 0.001),
        ("optimizer.weight_decay=0", 0.0),
    ],
)
def test_override_word_is_read_by_the_type_of_its_setting(word: str, value: object) -> None:
    section, key = word.partition("=")[0].split(".")
    found = as_tables(load_recipe("demo-modern", [word, "optimizer.min_lr=0", "optimizer.warmup_steps=1"]))[section][
        key
    ]
    assert found == value and type(found) is type(value)


def test_recipe_file_takes_times_and_dates_without_quotes(tmp_path: Path) -> None:
    path = tmp_path / "night.toml"
    path.write_text("[run]\ntime_limit = 12:00:00\nmax_steps = 1e9\n[data]\nrevision = 2024-01-01\n")
    recipe = load_recipe(path)
    assert (recipe.run.time_limit, recipe.run.time_limit_seconds) == ("12:00:00", 43_200)
    assert (recipe.run.max_steps, recipe.data.revision) == (10**9, "2024-01-01")
    path.write_text("[data]\nrevision = 123\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert "data.revision = 123" in caught.value.problems[0].text and "quotes" in caught.value.problems[0].text


def test_missing_recipe_gets_a_similar_name_suggested(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean demo-modern"):
        find_recipe("demo-moden")
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(UserError, match=r"broken\.toml: is not a TOML file"):
        load_recipe(broken)


@given(prompt=st.text(min_size=1), rate=st.floats(1e-30, 1e30))
def test_toml_round_trip_keeps_any_text_and_number(prompt: str, rate: float) -> None:
    recipe = replace(Recipe(name="x"), evaluation=EvaluationRecipe(sample_prompt=prompt))
    recipe = replace(recipe, optimizer=OptimizerRecipe(max_lr=rate, min_lr=0.0))
    assume(not any(0xD800 <= ord(c) < 0xE000 for c in prompt))
    assert build_recipe("x", tomllib.loads(to_toml(recipe))) == (recipe, [])


def test_published_figures_do_not_change_the_digest() -> None:
    recipe = load_recipe(MODERN)
    assert recipe_digest(recipe) == recipe_digest(load_recipe(MODERN, ["published.validation_loss=1.0"]))
    assert recipe_digest(recipe) != recipe_digest(load_recipe(MODERN, ["run.seed=1"]))


def test_recipe_is_immutable() -> None:
    with pytest.raises(AttributeError):
        Recipe(name="x").run.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "path",
    ["~nobody-of-that-name/x", "a\0b", "caf\udce9", "new/..", "/"],
    ids=["home", "nul", "surrogate", "up", "root"],
)
def test_invalid_path_is_refused_before_anything_is_done(path: str) -> None:
    _, problems = build_recipe("x", {"data": {"path": path}})
    assert "data.path" in {problem.setting for problem in problems}


@pytest.mark.parametrize(("old", "new"), [("gpt2-230126", "gpt2-classic"), ("recipes/gpt2-050226.toml", "gpt2-modern")])
def test_recipe_is_found_by_its_name_of_version_0_1(old: str, new: str) -> None:
    assert load_recipe(old) == load_recipe(new)


@pytest.mark.parametrize("setting", ["run.max_steps", "data.total_batch_tokens", "evaluation.sample_every", "run.seed"])
def test_whole_number_beyond_64_bits_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("demo-modern", [f"{setting}={10**400}"])
    assert [problem.setting for problem in caught.value.problems] == [setting]
    assert load_recipe("demo-modern", [f"run.max_steps={2**63 - 1}"]).run.max_steps == 2**63 - 1


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        ("optimizer.lr=1e-3", "optimizer.max_lr"),
        ("train.learning_rate=1e-3", "optimizer.max_lr"),
        ("data.batch_size=8", "data.micro_batch"),
        ("run.max_iters=8", "run.max_steps"),
    ],
)
def test_name_of_another_program_gets_our_setting_suggested(written: str, ours: str) -> None:
    with pytest.raises(RecipeError, match=f"did you mean '{ours}'"):
        load_recipe("demo-modern", [written])


def test_switch_that_an_old_run_does_not_know_was_off() -> None:
    """A resume that turns one on changes the run, even where the run's files do not name the switch."""
    recipe = load_recipe("demo-modern")
    off = {name: value for name, value in off_switches().items() if run_settings(recipe)[name] == value}
    before = as_tables(recipe)
    for name in off:
        section, _, key = name.partition(".")
        del before[section][key]
    assert changes(before, recipe) == ({}, {})
    turned_on = load_recipe("demo-modern", ["model.qk_norm=true"])
    assert changes(before, turned_on)[0] == {"model.qk_norm": [False, True]}
    assert recipe_digest(turned_on) != recipe_digest(recipe)
