"""Find the reasons that make a comparison unfair: one function per check."""

from collections.abc import Callable, Iterator, Sequence

from regpt.compare import result_checks, run_checks
from regpt.compare.caveats import Caveat
from regpt.compare.models import ComparedModel

CHECKS: tuple[Callable[[Sequence[ComparedModel]], Iterator[Caveat]], ...] = (
    result_checks.check_validation_data,
    result_checks.check_published_data,
    result_checks.check_tokenizers,
    result_checks.check_task_items,
    result_checks.check_prompts,
    result_checks.check_metrics,
    result_checks.check_missing_results,
    result_checks.check_score_steps,
    run_checks.check_selected_checkpoints,
    run_checks.check_last_losses,
    run_checks.check_unfinished_runs,
    run_checks.check_training_tokens,
    run_checks.check_devices,
    run_checks.check_precision,
    run_checks.check_compile,
    result_checks.check_truncated_contexts,
    run_checks.check_published_figures,
)


def find_caveats(models: Sequence[ComparedModel]) -> list[Caveat]:
    """Return all caveats, the severe ones first."""
    return sorted((caveat for check in CHECKS for caveat in check(models)), key=lambda found: not found.kind.is_severe)
