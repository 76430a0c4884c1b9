"""Find the reasons that make a comparison unfair: checks of losses and scores here, those of runs in run_checks.py."""

from collections.abc import Callable, Iterator, Sequence

from regpt.corpus.public_corpora import PublicCorpus, corpus_of_source
from regpt.fairness import condition_checks, run_checks
from regpt.fairness.caveats import Caveat, CaveatKind, Remedy, RemedyKind, are_different, evaluate_command
from regpt.fairness.models import ComparedModel, TaskScore, all_tasks
from regpt.stats.losses import MeasuredLoss
from regpt.tasks.catalog import TASKS

LM_EVAL_PREFIX = "lm_eval_"
LOSS_CHECKS: tuple[
    tuple[CaveatKind, Callable[[MeasuredLoss], object]], ...
] = (  # in this order; only the first difference is reported
    (CaveatKind.OTHER_DATA, lambda loss: loss.data),
    (CaveatKind.OTHER_BLOCK_SIZE, lambda loss: loss.block_size),
    (CaveatKind.OTHER_WINDOWS, lambda loss: loss.windows),
)


def measured(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    return [model for model in models if model.published is None]


def check_validation_data(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that the losses were measured on the same data, with the same block size, on the same windows."""
    losses = [(model, model.loss) for model in models if model.loss]
    for kind, value in LOSS_CHECKS:
        values = [(model.name, value(loss)) for model, loss in losses]
        if are_different(values):
            tokenizers = {model.tokenizer for model, _ in losses if model.tokenizer}
            has_others = kind is CaveatKind.OTHER_DATA and len(tokenizers) > 1
            remedy = Remedy(RemedyKind.USE_BITS_PER_BYTE) if has_others else validation_remedy(losses)
            yield Caveat(kind, values, (remedy,))
            return


def validation_remedy(losses: Sequence[tuple[ComparedModel, MeasuredLoss]]) -> Remedy:
    """Return the remedy: measure the other models on the windows of the first one, if the block sizes are equal."""
    first_model, first = losses[0]
    if len({loss.block_size for _, loss in losses}) > 1:
        return Remedy(RemedyKind.TRAIN_WITH_BLOCK_SIZE, block_size=first.block_size)
    settings = (
        data_setting(first_model),
        f"evaluation.validation_batches={first.windows}",
        "evaluation.validation_batch_size=1",
    )
    others = [model for model, loss in losses if loss.measured_on != first.measured_on]
    commands = tuple(evaluate_command(model, "--tasks", "validation", *settings) for model in others)
    return Remedy(RemedyKind.EVALUATE, commands)


def data_setting(model: ComparedModel) -> str:
    return f"data.path={model.recipe.data.path if model.recipe else 'FOLDER'}"


def check_tokenizers(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check the tokenizers of different datasets. The digest of a dataset covers its tokenizer."""
    chosen = measured(models)
    if len({data_digest(model) for model in chosen}) < 2:
        return
    values = [(model.name, model.tokenizer) for model in chosen]
    known = {model.tokenizer for model in chosen if model.tokenizer}
    if len(known) > 1:
        yield Caveat(CaveatKind.OTHER_TOKENIZER, values, (Remedy(RemedyKind.USE_BITS_PER_BYTE),))
    elif are_different(values) or not known:
        yield Caveat(CaveatKind.UNKNOWN_TOKENIZER, values, (Remedy(RemedyKind.IDENTIFY_DATA),))


def data_digest(model: ComparedModel) -> str:
    if model.run is not None:
        return model.run.environment.data.digest
    return model.loss.data if model.loss else model.name


def shown_scores(models: Sequence[ComparedModel], task: str) -> list[tuple[ComparedModel, TaskScore]]:
    return [(model, score) for model in models if (score := model.score_on(task))]


def check_task_items(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that each task was scored on the same items."""
    for task in all_tasks(models):
        scores = shown_scores(models, task)
        if len({score.digest or score.items for _, score in scores}) < 2:
            continue
        mixed = len({score.is_subset for _, score in scores}) > 1
        kind = CaveatKind.SUBSET_AND_FULL_SET if mixed else CaveatKind.OTHER_ITEMS
        again = [model for model, score in scores if score.is_subset] or [model for model, _ in scores[1:]]
        commands = tuple(evaluate_command(model, "--tasks", task) for model in again)
        values = [(model.name, score) for model, score in scores]
        yield Caveat(kind, values, (Remedy(RemedyKind.EVALUATE_ALL_ITEMS, commands),), task)


def source_dataset(task: str) -> str:
    """Return the first task of the catalog that reads the same dataset; lm-eval's tasks have the catalog's names."""
    own = TASKS.get(task.removeprefix(LM_EVAL_PREFIX))
    return next(name for name, other in TASKS.items() if other.file == own.file) if own else task


def scores_on_dataset(model: ComparedModel, dataset: str) -> tuple[TaskScore, ...]:
    """Return the shown score of each task that reads the dataset."""
    tasks = [task for task in all_tasks([model]) if source_dataset(task) == dataset]
    return tuple(score for task in tasks if (score := model.score_on(task)))


def check_prompts(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that models scored on a dataset share a task, which defines the prompts."""
    for dataset in dict.fromkeys(map(source_dataset, all_tasks(models))):
        scored = [(model, scores) for model in models if (scores := scores_on_dataset(model, dataset))]
        if not set.intersection(*({score.task for score in scores} for _, scores in scored)):
            commands = tuple(evaluate_command(model, "--tasks", scored[0][1][0].task) for model, _ in scored[1:])
            values = [(model.name, scores) for model, scores in scored]
            yield Caveat(CaveatKind.OTHER_PROMPTS, values, (Remedy(RemedyKind.EVALUATE, commands),), dataset)


def check_metrics(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that each task has the same headline metric."""
    for task in all_tasks(models):
        scores = shown_scores(models, task)
        values = [(model.name, score.headline_metric) for model, score in scores]
        if are_different(values):
            commands = tuple(evaluate_command(model, "--tasks", task) for model, _ in scores)
            yield Caveat(CaveatKind.OTHER_METRIC, values, (Remedy(RemedyKind.EVALUATE, commands),), task)


def check_missing_results(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that each loss and score exists for all measured models."""
    chosen = measured(models)
    missing = [model for model in chosen if model.loss is None]
    if 0 < len(missing) < len(chosen):
        setting = data_setting(next(model for model in chosen if model.loss))
        commands = tuple(evaluate_command(model, "--tasks", "validation", setting) for model in missing)
        is_measured = [(model.name, model.loss is not None) for model in chosen]
        yield Caveat(CaveatKind.MISSING_LOSS, is_measured, (Remedy(RemedyKind.EVALUATE, commands),))
    for task in all_tasks(chosen):
        scores = [(model, model.score_on(task)) for model in chosen]
        missing = [model for model, score in scores if score is None]
        if not missing or all(scores_on_dataset(model, source_dataset(task)) for model in missing):
            continue
        scored = next(score for _, score in scores if score)
        limit = ("--items", str(scored.n_items)) if scored.is_subset and scored.n_items else ()
        commands = tuple(evaluate_command(model, "--tasks", task, *limit) for model in missing)
        values = [(model.name, score) for model, score in scores]
        yield Caveat(CaveatKind.MISSING_SCORE, values, (Remedy(RemedyKind.EVALUATE, commands),), task)


def check_score_steps(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that the scores of runs are from their last step."""
    for task in all_tasks(models):
        scores = [(model, score) for model, score in shown_scores(models, task) if model.is_run]
        behind = [model for model, score in scores if score.step != model.step]
        if behind:
            commands = tuple(evaluate_command(model, "--tasks", task) for model in behind)
            values = [(model.name, (score.step or 0, model.step or 0)) for model, score in scores]
            yield Caveat(CaveatKind.EARLIER_SCORE, values, (Remedy(RemedyKind.EVALUATE, commands),), task)


def check_truncated_contexts(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check that the same number of contexts was truncated for each model."""
    for task in all_tasks(models):
        values = [(model.name, score.truncated) for model, score in shown_scores(models, task)]
        if are_different(values):
            yield Caveat(CaveatKind.TRUNCATED_CONTEXTS, values, (Remedy(RemedyKind.TRAIN_WITH_LONGER_BLOCKS),), task)


def check_published_data(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Check published figures next to measured ones: are corpus and context length the same?"""
    chosen = [(model, model.recipe) for model in models if model.recipe is not None]
    if len({model.published is None for model, _ in chosen}) < 2:
        return
    values = [(model.name, (source_text(model), recipe.model.block_size)) for model, recipe in chosen]
    if are_different(values):
        yield Caveat(CaveatKind.PUBLISHED_ON_OTHER_DATA, values, (Remedy(RemedyKind.SAME_DATA_ONLY),))


def source_text(model: ComparedModel) -> str:
    """Return the name of the public corpus, else the data source."""
    assert model.recipe is not None
    source = model.recipe.data.source
    corpus = model.run.corpus if model.run else corpus_of_source(source)
    return source if corpus is PublicCorpus.OTHER else str(corpus)


CHECKS: tuple[Callable[[Sequence[ComparedModel]], Iterator[Caveat]], ...] = (
    check_validation_data,
    check_published_data,
    check_tokenizers,
    check_task_items,
    check_prompts,
    check_metrics,
    check_missing_results,
    check_score_steps,
    run_checks.check_selected_checkpoints,
    run_checks.check_last_losses,
    run_checks.check_unfinished_runs,
    run_checks.check_training_tokens,
    condition_checks.check_training_data,
    condition_checks.check_order,
    condition_checks.check_seed,
    condition_checks.check_batch,
    condition_checks.check_epochs,
    condition_checks.check_moved_schedules,
    condition_checks.check_skipped_steps,
    run_checks.check_devices,
    run_checks.check_precision,
    run_checks.check_compile,
    check_truncated_contexts,
    run_checks.check_published_figures,
)


def find_caveats(models: Sequence[ComparedModel]) -> list[Caveat]:
    """Return all caveats, the severe ones first."""
    return sorted((caveat for check in CHECKS for caveat in check(models)), key=lambda found: not found.kind.is_severe)
