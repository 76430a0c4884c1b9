"""README.md of an exported model: a model card, written from the run's record."""

from dataclasses import dataclass, replace
from typing import Any

from regpt.base.format import with_error
from regpt.corpus.public_corpora import PublicCorpus
from regpt.export.figures import CUSTOM, Figure
from regpt.export.precision import Precision
from regpt.interop.form import ModelType, form_of
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import to_toml
from regpt.rendering.markdown import code, fenced
from regpt.rendering.templates import render_template
from regpt.reporting.findings import listed
from regpt.reporting.summary import parts
from regpt.reporting.wording import initial_weights
from regpt.tracking.run import Run

HUB = "hub:"
STDLIB = "stdlib"
# The licences of the text that regpt's recipes use, as their publishers state them.
LICENCES = {
    PublicCorpus.FINEWEB: "ODC-By 1.0",  # https://huggingface.co/datasets/HuggingFaceFW/fineweb
    PublicCorpus.FINEWEB_EDU: "ODC-By 1.0",  # https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu
}
LANGUAGES = {PublicCorpus.FINEWEB: "en", PublicCorpus.FINEWEB_EDU: "en"}
CLASSES = {
    ModelType.GPT2: "GPT2LMHeadModel",
    ModelType.LLAMA: "LlamaForCausalLM",
    ModelType.OWN: "a class of its own, whose file is in this directory",
}


@dataclass(frozen=True, kw_only=True)
class CardSubject:
    """An exported model, and what is known of its origin."""

    name: str  # of the model where it is used: a directory, or OWNER/NAME on the hub
    recipe: Recipe
    rows: int  # of the exported vocabulary
    precision: Precision
    tokenizer: str  # its name
    run: Run | None = None
    step: int | None = None
    tokens: int | None = None  # seen in training
    averaged: bool = False
    figures: tuple[Figure, ...] = ()
    licence: str = ""  # of the weights, by the hub's identifier; empty: not chosen

    @property
    def type(self) -> ModelType:
        return form_of(self.recipe.model).type

    @property
    def class_name(self) -> str:
        return CLASSES[self.type]

    @property
    def needs_remote_code(self) -> bool:
        return self.type is ModelType.OWN

    @property
    def parameters(self) -> int:
        """Return the number of exported parameters."""
        return replace(self.recipe.model, vocab_size=self.rows).parameters

    @property
    def usage(self) -> str:
        """Return the lines of Python that load the model and let it continue a prompt."""
        trust = ", trust_remote_code=True" * self.needs_remote_code
        return "\n".join(
            [
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                "",
                f"name = {self.name!r}",
                "tokenizer = AutoTokenizer.from_pretrained(name)",
                f"model = AutoModelForCausalLM.from_pretrained(name{trust})",
                f"inputs = tokenizer({self.recipe.evaluation.sample_prompt!r}, return_tensors='pt')",
                "tokens = model.generate(**inputs, max_new_tokens=40, do_sample=True, top_k=50)",
                "print(tokenizer.decode(tokens[0]))",
            ]
        )

    @property
    def parts(self) -> str:
        return listed(parts(self.recipe.model))

    @property
    def recipe_toml(self) -> str:
        """Return the settings, without the figures that the recipe quotes from elsewhere."""
        return to_toml(self.recipe).partition("\n[published]")[0].strip()

    @property
    def data_licence(self) -> str:
        """Return the licence of the training text; empty where it is unknown."""
        if self.run is None:
            return ""
        if self.run.environment.data.source.asked == STDLIB:
            return "Python Software Foundation License"
        return LICENCES.get(self.run.corpus, "")


def model_card(subject: CardSubject) -> str:
    """Return the text of README.md: the hub's metadata, then Markdown.

    Raises ValueError if huggingface_hub does not accept the metadata.
    """
    from huggingface_hub import ModelCard

    values = {
        "subject": subject,
        "code": code,
        "fenced": fenced,
        "with_error": with_error,
        "initial_weights": initial_weights,
    }
    text = render_template("regpt.export", "model_card.md.j2", values)
    card = ModelCard(f"---\n{metadata(subject).to_yaml()}\n---\n\n{text}")
    return str(card)


def metadata(subject: CardSubject) -> Any:
    """Return the metadata of the card, a ModelCardData. Entries that are unknown are left out."""
    from huggingface_hub import EvalResult, ModelCardData

    run = subject.run
    results = [
        EvalResult(
            task_type="text-generation",
            task_name=one.task,
            dataset_type=one.dataset,
            dataset_name=f"{one.task}, {one.measured_on}",
            metric_type=one.metric_type,
            metric_value=round(one.value, 4),
            metric_name=f"{one.metric} (± {one.error:.4f})" if one.error else one.metric,
        )
        for one in subject.figures
    ]
    dataset = dataset_on_the_hub(run) if run else CUSTOM
    is_stdlib = run is not None and run.environment.data.source.asked == STDLIB
    return ModelCardData(
        base_model=base_model(run),
        model_name=subject.name.rpartition("/")[2],
        license=subject.licence or None,
        language=("code" if is_stdlib else LANGUAGES.get(run.corpus)) if run else None,
        datasets=None if dataset == CUSTOM else [dataset],
        eval_results=results or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["regpt", subject.type.value],
    )


def base_model(run: Run | None) -> str | None:
    """Return OWNER/NAME of the model on the hub whose weights the run started from; None for another start."""
    where = run.environment.origin.where if run and run.environment.origin else ""
    return where.removeprefix(HUB).partition("@")[0] if where.startswith(HUB) else None


def dataset_on_the_hub(run: Run) -> str:
    """Return OWNER/NAME of the training text; CUSTOM if it is not from the hub."""
    asked = run.environment.data.source.asked
    return "/".join(asked.removeprefix(HUB).split("/")[:2]) if asked.startswith(HUB) else CUSTOM
