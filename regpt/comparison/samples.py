"""The samples of a comparison, next to each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from regpt.fairness.models import ComparedModel
from regpt.rendering.markdown import escaped, fenced
from regpt.tracking.journal import SampleRecord


@dataclass(frozen=True)
class ComparedSamples:
    """The last samples of each model, with the same prompt, seed and top-k if all models have any."""

    drawn: list[tuple[str, SampleRecord]]  # (name of the model, samples)
    without: list[str]  # names of models without samples
    same_sampling: bool

    @property
    def same_step(self) -> bool:
        return len({record.step for _, record in self.drawn}) < 2


def compare_samples(models: Sequence[ComparedModel]) -> ComparedSamples:
    """Choose the samples to show."""
    own = [
        (model.name, records)
        for model in models
        if model.run and (records := [r for r in model.run.history.samples if r.step <= (model.step or 0)])
    ]
    names = [name for name, _ in own]
    without = [model.name for model in models if model.name not in names]
    if not own:
        return ComparedSamples([], without, same_sampling=True)
    shared = set.intersection(*({sampling_of(record) for record in records} for _, records in own))
    chosen = next((sampling_of(r) for r in reversed(own[0][1]) if sampling_of(r) in shared), None)
    drawn = [(name, next(r for r in reversed(records) if chosen in (None, sampling_of(r)))) for name, records in own]
    return ComparedSamples(drawn, without, same_sampling=chosen is not None)


def sampling_of(record: SampleRecord) -> tuple[str, int, int]:
    return record.prompt, record.seed, record.top_k


def sample_notes(samples: ComparedSamples) -> list[str]:
    """Describe how the samples were drawn, and which models have none; nothing without samples."""
    if not samples.drawn:
        return []
    if samples.same_sampling:
        notes = [f"All samples: {sampling_text(samples.drawn[0][1])}."]
    else:
        each = "; ".join(f"{escaped(name)}: {sampling_text(record)}" for name, record in samples.drawn)
        notes = [f"Not comparable, because prompt, seed or top-k differ: {each}."]
    if not samples.same_step:
        steps = ", ".join(f"{escaped(name)} at step {record.step:,}" for name, record in samples.drawn)
        notes.append(f"From different steps: {steps}.")
    if samples.without:
        notes.append(f"No samples of {', '.join(map(escaped, samples.without))}.")
    return notes


def sampling_text(record: SampleRecord) -> str:
    return f"prompt “{escaped(record.prompt)}”, seed {record.seed}, top-k {record.top_k}"


def sample_blocks(samples: ComparedSamples) -> list[list[tuple[str, str]]]:
    """Return, for each sample number, the titles and texts of all models."""
    return [
        [
            (f"{escaped(name)}, step {record.step:,}", fenced(record.texts[number]))
            for name, record in samples.drawn
            if number < len(record.texts)
        ]
        for number in range(max((len(record.texts) for _, record in samples.drawn), default=0))
    ]
