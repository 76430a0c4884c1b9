"""Lines of a report about the dataset: baselines for the loss, how validation was chosen, and how it differs."""

from collections.abc import Iterator

from regpt.data.token_statistics import TokenStatistics
from regpt.data.validation_split import SplitRule, describe_rule, describe_warning
from regpt.inspection.duplicate_record import describe_duplicates, remedy
from regpt.tracking.run import Run

FAR = 2.0  # times the divergence between two parts of training; a sample alone rarely reaches it


def baselines(run: Run) -> Iterator[str]:
    """Say what a model without context reaches on the validation split, next to the run's loss."""
    found = run.environment.data.statistics
    if found is None:
        return
    yield (
        "For comparison, on the same validation split: guessing each token by its frequency in the training text gives"
        f" {found.unigram_cross_entropy:.4f} nats per token, guessing it from the token before it"
        f" {found.bigram_cross_entropy:.4f}."
    )


def split_lines(run: Run) -> Iterator[tuple[str, str]]:
    """Yield (name, text): the rule of the split, its warnings, how the two sides differ, and duplicates if searched."""
    data = run.environment.data
    if data.split is not None:
        yield "Validation", describe_rule(data.split, data.validation_tokens)
        if data.split.rule is SplitRule.CONVERSATIONS:
            yield "Loss", "counts the assistant's tokens alone, in training and in validation"
        for warning in data.split.warnings():
            yield "Warning", describe_warning(data.split, warning)
    if data.statistics is not None:
        yield "Documents", documents_text(data.statistics)
        yield "Token statistics", difference_text(data.statistics)
    if data.duplicates is not None:
        yield "Duplicates", describe_duplicates(data.duplicates)
        if advice := remedy(data.duplicates):
            yield "Warning", advice


def documents_text(found: TokenStatistics) -> str:
    return (
        f"{found.validation.documents:,} in validation (mean {found.validation.mean_document:,.0f} tokens),"
        f" {found.train.documents:,} in training (mean {found.train.mean_document:,.0f} tokens)"
    )


def difference_text(found: TokenStatistics) -> str:
    """Compare the token frequencies of both sides with those of two parts of training."""
    times = found.divergence / found.divergence_within_training if found.divergence_within_training else 0.0
    verdict = (
        f"validation is {times:.1f} times as far from training as training is from itself"
        if times > FAR
        else "validation is about as close to training as training is to itself"
    )
    return (
        f"entropy {found.validation.entropy:.3f} in validation and {found.train.entropy:.3f} in training, nats per"
        f" token; Jensen-Shannon divergence {found.divergence:.4f}, and {found.divergence_within_training:.4f} between"
        f" two parts of training: {verdict}"
    )
