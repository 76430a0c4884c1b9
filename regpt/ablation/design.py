"""The design of an ablation: arms, seeds and values to tune, which determine every run."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regpt.ablation.equality import Cost, Equal, Speed, equal_steps, flops, parameter_words, step_words
from regpt.base.errors import UserError
from regpt.base.files import write_json
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe
from regpt.tracking.layout import ABLATION_FILE

RUNS_DIR = "runs"
BASE, AA, STACK = "base", "a-a", "all"
ALL_RATES = "rates"  # to tune: every learning rate of an arm, by one factor
LEARNING_RATES = ("max_lr", "min_lr", "embedding_lr", "head_lr", "vector_lr", "muon_lr")
OTHER_WEIGHTS = 1_000_000  # added to the seed of the weights in the first A/A arm, twice that in the second


@dataclass(frozen=True)
class Arm:
    """A recipe of the ablation: the base with settings changed."""

    name: str
    settings: tuple[str, ...] = ()

    @property
    def is_null(self) -> bool:
        """Whether this is an A/A arm: the base with other initial weights."""
        return not self.settings and self.name != BASE


@dataclass(frozen=True)
class Trial:
    """One run: an arm with a seed and, for tuning, the value that it tries; empty: none."""

    arm: str
    seed: int
    value: str = ""

    @property
    def run_name(self) -> str:
        return f"{self.arm}-tune-{self.value}" if self.value else f"{self.arm}-{self.seed}"


@dataclass(frozen=True)
class Tuning:
    """A setting and the values of it that every arm tries."""

    setting: str  # 'optimizer.max_lr', or `ALL_RATES`
    values: tuple[str, ...]


@dataclass(frozen=True)
class Design:
    """All that decides which runs an ablation consists of."""

    recipe: str  # name or path of the base
    settings: tuple[str, ...]  # of every arm
    arms: tuple[Arm, ...]  # the base first
    seeds: tuple[int, ...]
    tuning: Tuning | None
    threads: int  # of each run on a CPU; 0: as the recipe says
    equal: Equal = Equal.TOKENS
    speeds: Mapping[str, Speed] = field(default_factory=dict, compare=False)  # by arm, once measured; not stored

    def arm(self, name: str) -> Arm:
        (found,) = (arm for arm in self.arms if arm.name == name)
        return found

    def tuned_arm(self, name: str) -> str:
        """Return the arm whose tuned value and time an arm uses; an A/A arm uses those of the base."""
        return BASE if self.arm(name).is_null else name

    def recipe_of(self, trial: Trial, best: str = "") -> Recipe:
        """Return the recipe of a trial; `best` is the tuned value of its arm, where the trial tries none itself."""
        return load_recipe(self.recipe, self.words_of(trial, best))

    def words_of(self, trial: Trial, best: str = "") -> list[str]:
        """Return the settings of a trial as words of a command line.

        Raises UserError for an arm that cannot have the base's number of parameters.
        """
        arm = self.arm(trial.arm)
        words = [*self.settings, *arm.settings, f"run.seed={trial.seed}"]
        if self.threads:
            words.append(f"run.threads={self.threads}")
        if arm.is_null:
            number = 1 + [one for one in self.arms if one.is_null].index(arm)
            words.append(f"run.weights_seed={trial.seed + number * OTHER_WEIGHTS}")
        if value := trial.value or best:
            words += tuned_words(load_recipe(self.recipe, words), self.tuning, value)
        return [*words, *self.equal_words(arm, words)]

    def equal_words(self, arm: Arm, words: Sequence[str]) -> Iterator[str]:
        """Yield the settings that make a trial with the settings `words` equal to the base."""
        if self.equal is Equal.TOKENS or (self.equal is Equal.TIME and not self.speeds):
            return
        recipe, base = load_recipe(self.recipe, words), load_recipe(self.recipe, self.settings)
        if self.equal is Equal.PARAMETERS:
            own = words[len(self.settings) :]
            yield from parameter_words(
                arm.name, recipe, base, any(word.startswith("model.mlp_hidden=") for word in own)
            )
        elif self.equal is Equal.FLOPS:
            yield from step_words(recipe, equal_steps(recipe, flops(recipe), base, flops(base)))
        else:
            ours, theirs = (Cost(self.speeds[name].token_seconds) for name in (self.tuned_arm(arm.name), BASE))
            yield from step_words(recipe, equal_steps(recipe, ours, base, theirs))

    def tuning_trials(self) -> list[Trial]:
        """Return the trials that choose each arm's value, with a seed that no other trial has."""
        if self.tuning is None:
            return []
        seed = min(self.seeds) - 1
        return [Trial(arm.name, seed, value) for arm in self.arms if not arm.is_null for value in self.tuning.values]

    def seed_trials(self) -> list[Trial]:
        """Return the trials that are compared, seed by seed, so that an early stop leaves whole pairs."""
        return [Trial(arm.name, seed) for seed in self.seeds for arm in self.arms]


def tuned_words(recipe: Recipe, tuning: Tuning | None, value: str) -> Iterator[str]:
    """Yield the settings of a tuned value. The smallest learning rate keeps its ratio to the largest."""
    assert tuning is not None
    if tuning.setting == ALL_RATES:
        for name in LEARNING_RATES:
            if rate := getattr(recipe.optimizer, name):
                yield f"optimizer.{name}={rate * float(value)!r}"
        return
    yield f"{tuning.setting}={value}"
    if tuning.setting == "optimizer.max_lr":
        share = recipe.optimizer.min_lr / recipe.optimizer.max_lr
        yield f"optimizer.min_lr={share * float(value)!r}"


def parse_change(text: str) -> Arm:
    """Parse settings with spaces between them, or with a name before them: 'muon: optimizer.kind=muon'.

    Raises UserError for a text that is not of that form.
    """
    head, colon, rest = text.partition(": ")
    try:
        words = shlex.split(rest if colon else text)  # a value with spaces stands in quotes
    except ValueError:
        words = []
    if not words or not all("=" in word and "." in word.partition("=")[0] for word in words):
        raise UserError(
            f"--change '{text}' is not a list of settings", "write it as 'model.qk_norm=true optimizer.kind=muon'"
        )
    name = head.strip() if colon else ",".join(word.partition(".")[2] for word in words)
    return Arm(re.sub(r"[^\w.=,-]+", "-", name).replace("=true", "").strip("-,"), tuple(words))


def parse_tuning(text: str) -> Tuning:
    """Parse 'optimizer.max_lr=1e-3,2e-3', or 'rates=0.5,1,2'."""
    setting, equals, values = text.partition("=")
    found = tuple(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
    if not equals or len(found) < 2:
        raise UserError(
            f"--tune '{text}' does not name a setting and two values or more",
            "write it as optimizer.max_lr=1e-3,2e-3,4e-3, or as rates=0.5,1,2 to scale every learning rate",
        )
    return Tuning(setting.strip(), found)


def null_arms(count: int) -> list[Arm]:
    """Return A/A arms: a-a, a-a-2, and so on."""
    return [Arm(AA if number == 1 else f"{AA}-{number}") for number in range(1, count + 1)]


def leave_one_out(changes: Sequence[Arm]) -> list[Arm]:
    """Return the stack of all changes, and the stack without each of them."""
    whole = Arm(STACK, tuple(word for arm in changes for word in arm.settings))
    rest = []
    for left_out in changes:
        others = tuple(word for arm in changes if arm is not left_out for word in arm.settings)
        rest.append(Arm(f"{STACK}-without-{left_out.name}", others))
    return [whole, *rest]


def stack_without(design: Design) -> list[tuple[str, str, str]]:
    """Return the names of (change, whole stack, stack without the change) for each change that has all three arms."""
    names = [arm.name for arm in design.arms]
    found = [(name, STACK, f"{STACK}-without-{name}") for name in names]
    return [three for three in found if {*three} <= {*names}]


def check_design(design: Design) -> None:
    """Raise UserError for arms of the same name, and RecipeError for an arm that is not a recipe."""
    names = [arm.name for arm in design.arms]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two arms are called '{min(doubled)}'", "name one of them, as in --change 'name: settings'")
    for trial in [*design.tuning_trials(), *design.seed_trials()]:
        design.recipe_of(trial)


def open_design(folder: Path, design: Design) -> None:
    """Write the design to a new folder, or check that the folder holds an ablation of the same design.

    More seeds than before are an extension. Raises UserError for another design.
    """
    file = folder / ABLATION_FILE
    if file.exists():
        before = read_design(folder)
        if Design(**{**vars(design), "seeds": before.seeds}) != before or not set(before.seeds) <= set(design.seeds):
            raise UserError(f"{folder}: holds an ablation of another design", "choose another folder with --into")
    folder.mkdir(parents=True, exist_ok=True)
    stored = asdict(design)
    del stored["speeds"]
    if design.equal is Equal.TOKENS:  # as earlier versions wrote it
        del stored["equal"]
    write_json(file, stored)


def read_design(folder: Path) -> Design:
    """Read the design of an ablation. Raises UserError if the folder holds none."""
    try:
        stored: dict[str, Any] = json.loads((folder / ABLATION_FILE).read_text(encoding="utf-8"))
        tuning = stored.pop("tuning")
        return Design(
            recipe=stored["recipe"],
            settings=tuple(stored["settings"]),
            arms=tuple(Arm(arm["name"], tuple(arm["settings"])) for arm in stored["arms"]),
            seeds=tuple(stored["seeds"]),
            tuning=Tuning(tuning["setting"], tuple(tuning["values"])) if tuning else None,
            threads=stored["threads"],
            equal=Equal(stored.get("equal", Equal.TOKENS)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: holds no ablation", "start one: regpt ablate RECIPE --change …") from None
