"""A trained model by the name that a user gives: a run, a checkpoint, or a Hugging Face directory."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from regpt.base.errors import CheckpointError, UserError
from regpt.base.files import sha256_of_file
from regpt.base.recipe import Recipe
from regpt.base.settings import build_recipe, load_resolved_recipe, override
from regpt.checkpoint import store
from regpt.data.shards import gpt2_tokenizer_record
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.interop.pretrained import is_pretrained, load_pretrained
from regpt.model.gpt import GPT
from regpt.tracking.layout import RunPaths
from regpt.tracking.run import find_run


@dataclass(frozen=True)
class LoadedModel:
    """A model on the CPU, in evaluation mode and float32, and what is known of it."""

    name: str
    model: GPT
    recipe: Recipe  # with the overrides of the command line
    vocabulary: Tokenizer
    run: Path | None = None
    step: int | None = None
    tokens: int | None = None  # seen in training
    tokenizer: dict[str, Any] = field(default_factory=gpt2_tokenizer_record)  # as a data set's manifest says it

    @property
    def has_gpt2_tokens(self) -> bool:
        """Whether it can read the data sets here."""
        return self.vocabulary is GPT2_TOKENIZER


def load_model(run: Path) -> GPT:
    """The model of a run's newest whole checkpoint, in evaluation mode, float32."""
    return load_checkpoint_model(store.newest_valid(run), load_resolved_recipe(RunPaths(run).recipe))


def load_checkpoint_model(path: Path, recipe: Recipe) -> GPT:
    model = GPT(recipe.model)
    store.load_weights(path, model)
    return model.eval()


def open_model(where: str, root: Path, overrides: list[str]) -> LoadedModel:
    """A model by a run's name or folder, a checkpoint's folder, or a Hugging Face directory."""
    if any(word.startswith("model.") for word in overrides):
        raise UserError(f"{overrides}: the model is what it is", "leave model.… out")
    path = Path(where)
    if (path / "state.json").is_file():
        return open_checkpoint(path, overrides)
    if is_pretrained(path):
        model, vocabulary = load_pretrained(path)
        recipe = replace(override(Recipe(name=path.resolve().name), overrides), model=model.recipe)
        return LoadedModel(recipe.name, model, recipe, vocabulary, tokenizer=tokenizer_of(path, vocabulary))
    try:
        run = find_run(where, root)
    except UserError as error:
        raise UserError(
            f"'{where}' is no run in {root}, no checkpoint and no Hugging Face directory", error.fix
        ) from None
    return open_checkpoint(store.newest_valid(run), overrides)


def tokenizer_of(directory: Path, vocabulary: Tokenizer) -> dict[str, Any]:
    """GPT-2's, or a Hugging Face directory's own, by the SHA-256 of its file."""
    if vocabulary is GPT2_TOKENIZER:
        return gpt2_tokenizer_record()
    return {"name": "its own", "vocabulary_sha256": sha256_of_file(directory / "tokenizer.json")}


def open_checkpoint(path: Path, overrides: list[str]) -> LoadedModel:
    """A checkpoint, in its run or copied out of it, held against its hashes."""
    for fault in store.find_faults(path):
        raise CheckpointError(f"{path}: {fault}", "choose another checkpoint")
    state = store.load_state(path)
    run = path.resolve().parent.parent
    in_run = RunPaths(run).recipe.is_file()
    recipe, problems = build_recipe(run.name if in_run else path.resolve().name, state["settings"])
    if recipe is None:
        raise UserError(
            f"{path}: {'; '.join(problem.text for problem in problems)}", "it was made by another version of regpt"
        )
    recipe = override(recipe, overrides)
    step = int(state["step"])
    return LoadedModel(
        f"{run.name} at step {step:,}" if in_run else recipe.name,
        load_checkpoint_model(path, recipe),
        recipe,
        GPT2_TOKENIZER,
        run if in_run else None,
        step,
        recipe.tokens_after(step),
    )
