"""The wording of a plan's warnings."""

from regpt.base.format import byte_size, percent, short_count, three_digits
from regpt.plan.warnings import (
    DiskTooSmall,
    ImplausibleRecord,
    LongEvaluation,
    ManyEpochs,
    PlanWarning,
    RecordProblem,
    WarmupTooLong,
)
from regpt.recipe.recipe import warmup_advice


def warning_text(warning: PlanWarning) -> str:
    """Describe a warning in one line."""
    match warning:
        case ImplausibleRecord():
            return record_text(warning)
        case DiskTooSmall(runs, free, needed):
            return (
                f"{runs}: {byte_size(free)} free, but checkpoints need up to {byte_size(needed)};"
                " set checkpoint.keep_last, or use another disk with --runs"
            )
        case ManyEpochs(repeats):
            return (
                f"{repeats:.1f} epochs: beyond about 4, repeated text is worth much less than new text"
                " (Muennighoff et al. 2023, arXiv 2305.16264)"
            )
        case WarmupTooLong(warmup_steps, max_steps):
            return warmup_advice(warmup_steps, max_steps)
        case LongEvaluation():
            return evaluation_text(warning)


def evaluation_text(warning: LongEvaluation) -> str:
    """Describe how much of a run evaluation takes, and the settings that shorten it."""
    parts = f"validation {percent(warning.validation_share)}, HellaSwag {percent(warning.task_share)}"
    settings = " ".join(f"{name}={value}" for name, value in warning.remedy)
    return f"evaluation takes {percent(warning.share)} of the run's time ({parts}); set {settings}"


def record_text(record: ImplausibleRecord) -> str:
    """Describe why a published training time is implausible."""
    cards = f"{record.cards} x {record.card.name}"
    figures = (
        f"{record.origin or 'published record'}: {short_count(record.tokens)} tokens in {record.hours:g} h on {cards}"
        f" is {three_digits(record.tokens_per_second)} tokens/s, about {percent(record.share_of_peak)} of peak"
    )
    expected = three_digits(record.optimistic_tokens_per_second)
    if record.problem is RecordProblem.ABOVE_PEAK:
        return f"{figures}, which is impossible; the optimistic estimate is {expected} tokens/s"
    ratio = record.tokens_per_second / record.optimistic_tokens_per_second
    return f"{figures}, {ratio:.2g} times the optimistic estimate of {expected} tokens/s"
