"""Export a model that `open_model` has opened, with a model card from the record of its run."""

from collections.abc import Callable
from pathlib import Path

from regpt.base.errors import UserError
from regpt.export.card import CardSubject, dataset_on_the_hub, model_card
from regpt.export.directory import ExportOptions, check_target, export, rows_to_keep
from regpt.export.figures import Figure, figures_of
from regpt.export.gguf_file import export_gguf
from regpt.interop.open_model import LoadedModel, digest_of_weights
from regpt.tracking.run import Run, open_run


def export_directory(
    opened: LoadedModel,
    target: Path,
    options: ExportOptions,
    *,
    name: str = "",
    licence: str = "",
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Write a Hugging Face directory with README.md.

    Args:
        name: where users will find the model, for the card: OWNER/NAME on the hub; empty: the directory
        licence: of the weights, by the hub's identifier; empty: not chosen
        note: is told what could not be written

    Raises UserError as `export` does.
    """
    check_target(target)
    source = opened.tokenizer_folder
    run = run_of(opened, note)
    subject = CardSubject(
        name=name or target.name,
        recipe=opened.recipe,
        rows=rows_to_keep(opened.model, opened.tokenizer, source, options),
        precision=options.precision,
        tokenizer="GPT-2's" if opened.has_gpt2_tokens else "in tokenizer.json",
        run=run,
        step=opened.step,
        tokens=opened.tokens,
        averaged=opened.averaged,
        figures=tuple(recorded_figures(opened, run)),
        licence=licence,
    )
    readme = model_card(subject)
    export(opened.model, target, vocabulary=opened.tokenizer, source=source, options=options, readme=readme, note=note)


def export_file(opened: LoadedModel, path: Path, options: ExportOptions) -> None:
    """Write a GGUF file. Raises UserError as `export_gguf` does."""
    source = opened.tokenizer_folder
    export_gguf(opened.model, path, name=opened.name, vocabulary=opened.tokenizer, source=source, options=options)


def run_of(opened: LoadedModel, note: Callable[[str], None]) -> Run | None:
    """Return the run of a model; None if it has none, or if its record is incomplete, which is noted."""
    if opened.run is None:
        return None
    try:
        return open_run(opened.run)
    except UserError as error:
        note(f"the model card has no figures: {error}")
        return None


def recorded_figures(opened: LoadedModel, run: Run | None) -> list[Figure]:
    if run is None or opened.step is None:
        return []
    weights = digest_of_weights(opened.model)
    return figures_of(run, opened.step, opened.averaged, weights, dataset_on_the_hub(run))
