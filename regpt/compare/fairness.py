"""What makes a comparison unfair: a check for each reason, which finds it or is silent."""

from collections.abc import Callable, Iterator, Sequence

from regpt.base.recipe import Recipe
from regpt.compare.caveats import Caveat, command, differ, to_evaluate, unlike
from regpt.compare.models import ComparedModel, TaskScore, rule_in_words, tasks_of
from regpt.data.public_corpora import PublicCorpus, corpus_of_source
from regpt.report.scores import recorded_where
from regpt.tracking.run import Run
from regpt.tracking.status import state_of

UNKNOWN = "not known"
NEAR = 0.01  # nats; how far a last loss may lie above the best one where its error is not known


def find_caveats(models: Sequence[ComparedModel]) -> list[Caveat]:
    """The severe ones first."""
    return sorted((flag for check in CHECKS for flag in check(models)), key=lambda flag: not flag.severe)


def measured(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    return [model for model in models if model.recorded is None]


def other_validation(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Data, block size or windows: what a loss was measured on. What follows from one is no further reason."""
    having = [(model, model.loss) for model in models if model.loss]
    if not having:
        return
    of, first = having[0]
    for what, place, unit in (
        ("data", 0, "data {:.12}"),
        ("block size", 1, "{:,} tokens at once"),
        ("windows", 2, "the first {:,} windows"),
    ):
        values = [(model.name, unit.format(loss.measured_on[place])) for model, loss in having]
        if differ(values):
            asked = (
                "--tasks",
                "validation",
                data_path_of(of),
                f"evaluation.validation_batches={first.windows}",
                "evaluation.validation_batch_size=1",
            )
            others = [model for model, loss in having if loss.measured_on[place] != first.measured_on[place]]
            mend = " and ".join(to_evaluate(model, *asked) for model in others) + ", then compare again"
            if len({loss.block_size for _, loss in having}) > 1:
                mend = f"none for these models; train with `model.block_size={first.block_size}`"
            yield Caveat(f"Validation loss: other {what}", True, values, mend)
            return


def data_path_of(model: ComparedModel) -> str:
    return f"data.path={model.recipe.data.path if model.recipe else 'FOLDER'}"


def other_tokenizer(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """One data set has one tokenizer, known or not: its digest covers it."""
    having = measured(models)
    if len({data_of(model) for model in having}) < 2:
        return
    values = unlike(having, lambda model: model.tokenizer or UNKNOWN)
    known = {model.tokenizer for model in having if model.tokenizer}
    if len(known) > 1:
        mend = "none for losses per token; bits per byte and HellaSwag by byte do not depend on it"
        yield Caveat("Other tokenizer", True, values, mend)
    elif values or not known:
        mend = "see what made the data, `regpt data show FOLDER`; runs and answers of this version write it down"
        yield Caveat("Tokenizer", False, values or [(model.name, UNKNOWN) for model in having], mend)


def data_of(model: ComparedModel) -> str:
    if model.run is not None:
        return model.run.environment.data.digest
    return model.loss.data if model.loss else model.name


def other_items(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """A subset against the full set, or other questions."""
    for task in tasks_of(models):
        having = [(model, model.to(task)[0]) for model in models if model.to(task)]
        if len({one.digest or one.items for _, one in having}) < 2:
            continue
        subset = len({one.is_subset for _, one in having}) > 1
        what = f"{task}: a subset against the full set" if subset else f"{task}: other items"
        digests = len({one.items for _, one in having}) == 1
        values = [(m.name, f"{one.items}, digest {one.digest[:12]}" if digests else one.items) for m, one in having]
        wanting = [model for model, one in having if one.is_subset] or [model for model, _ in having[1:]]
        mend = " and ".join(to_evaluate(model, "--tasks", task) for model in wanting)
        yield Caveat(what, True, values, f"{mend}: all items, then compare again")


def hellaswags(model: ComparedModel) -> list[TaskScore]:
    return [one for one in model.asked if "hellaswag" in one.task]


def other_rule(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Another wording of HellaSwag, or another rule by which its likeliest ending is chosen."""
    having = [(model, hellaswags(model)) for model in models if hellaswags(model)]
    shared = set.intersection(*({one.task for one in asked} for _, asked in having)) if having else set()
    if having and not shared:
        values = [(m.name, " and ".join(f"{one.task}, by {rule_of(one)}" for one in asked)) for m, asked in having]
        task = having[0][1][0].task
        mend = " and ".join(to_evaluate(model, "--tasks", task) for model, _ in having[1:])
        yield Caveat("HellaSwag: asked and judged in other ways", True, values, f"{mend}, then compare again")
    for task in shared:
        chosen = [(model, model.to(task)[0]) for model, _ in having]
        if len({rule_of(one) for _, one in chosen}) > 1:
            values = [(model.name, f"by {rule_of(one)}") for model, one in chosen]
            mend = " and ".join(to_evaluate(model, "--tasks", task) for model, _ in chosen)
            yield Caveat(f"{task}: judged by another rule", True, values, f"{mend}, then compare again")


def rule_of(one: TaskScore) -> str:
    return rule_in_words(next(iter(one.by_rule), "no rule"))


def asked_alone(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Not all were asked."""
    having = measured(models)
    lacking = [model for model in having if model.loss is None]
    if 0 < len(lacking) < len(having):
        values = [(model.name, "measured" if model.loss else "not measured") for model in having]
        measured_one = next(model for model in having if model.loss)
        data = data_path_of(measured_one)
        mend = " and ".join(to_evaluate(model, "--tasks", "validation", data) for model in lacking)
        yield Caveat("Validation loss: not all have one", False, values, mend)
    for task in tasks_of(having):
        asked = {model.name: model.to(task) for model in having}
        lacking = [model for model in having if not asked[model.name]]
        if lacking and not ("hellaswag" in task and all(hellaswags(model) for model in having)):
            values = [(name, found[0].items if found else "not asked") for name, found in asked.items()]
            of = next(found[0] for found in asked.values() if found)
            items = ("--items", str(of.count)) if of.is_subset and of.count else ()
            mend = " and ".join(to_evaluate(model, "--tasks", task, *items) for model in lacking)
            yield Caveat(f"{task}: not all were asked", False, values, mend)


def earlier_answers(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """A run that has gone on since it was asked."""
    for task in tasks_of(models):
        having = [(model, model.to(task)[0]) for model in models if model.is_run and model.to(task)]
        behind = [model for model, one in having if one.step != model.step]
        if behind:
            values = [(m.name, f"asked after step {one.step or 0:,} of {m.step or 0:,}") for m, one in having]
            mend = " and ".join(to_evaluate(model, "--tasks", task) for model in behind)
            yield Caveat(f"{task}: asked of an earlier step", False, values, mend)


def best_against_last(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """A checkpoint that was chosen for being good, or any earlier one, against a run's last."""
    having = [model for model in models if model.run is not None]
    if len({model.is_last for model in having}) > 1:
        chosen = next(model for model in having if not model.is_last)
        last = next(model for model in having if model.is_last)
        assert chosen.run is not None and last.run is not None
        best = best_step(last.run)
        ways = [f"last against last, {command('compare', str(chosen.run.path), last.where)}"]
        if best is not None and best < last.run.history.step:
            ways.append(f"or best against best, after {command('evaluate', str(last.run.paths.checkpoint(best)))}")
        is_best = any(m.run and m.step == best_step(m.run) for m in having if not m.is_last)
        what = "Best against last" if is_best else "An earlier checkpoint against a last one"
        yield Caveat(what, True, [(model.name, which_step(model)) for model in having], "; ".join(ways))
    for model in having:
        yield from far_above_its_best(model)


def best_step(run: Run) -> int | None:
    looks = run.history.validations
    return min(looks, key=lambda look: look.loss).step if looks else None


def which_step(model: ComparedModel) -> str:
    assert model.run is not None
    is_best = model.step == best_step(model.run)
    if model.is_last:
        return f"step {model.step or 0:,}, its last{' and best' if is_best else ''}"
    return f"step {model.step or 0:,} of {model.run.history.step:,}{', its best' if is_best else ', an earlier one'}"


def far_above_its_best(model: ComparedModel) -> Iterator[Caveat]:
    looks = model.run.history.validations if model.run and model.is_last else []
    if not looks or model.run is None:
        return
    best, last = min(looks, key=lambda look: look.loss), looks[-1]
    if last.loss - best.loss > (last.standard_error or NEAR):
        kept = model.run.paths.checkpoint(best.step)
        values = [(model.name, f"last {last.loss:.4f} (step {last.step:,}), best {best.loss:.4f} (step {best.step:,})")]
        way = f"{command('evaluate', str(kept))}, and the best of the others too" if kept.is_dir() else (
            "none: no checkpoint of its best step was kept"
        )  # fmt: skip
        yield Caveat("A last loss far above the run's own best", False, values, way)


def unfinished(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Until its last step a run's learning rate is still high."""
    having = [model for model in models if model.run is not None and model.is_last]
    values = unlike(having, progress)
    going = [m for m in having if m.run and m.run.history.step < m.run.recipe.run.max_steps]
    if values and going:
        mend = " and ".join(command("resume", model.where) for model in going)
        yield Caveat("Not finished", False, values, f"let it end, or {mend}")


def progress(model: ComparedModel) -> str:
    assert model.run is not None
    step, steps = model.run.history.step, model.run.recipe.run.max_steps
    return f"step {step:,} of {steps:,} ({state_of(model.run)})" if step < steps else "finished"


def other_tokens(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    values = unlike(models, lambda model: f"{model.tokens:,}" if model.tokens is not None else UNKNOWN)
    runs = [model for model in models if model.run is not None and model.tokens]
    if values:
        mend = "read the table at equal tokens" if len(runs) > 1 else "none without two courses to read at equal tokens"
        counts = [model.tokens for model in runs if model.tokens]
        if len(set(counts)) > 1:
            longest = max(runs, key=lambda model: model.tokens or 0)
            assert longest.run is not None
            steps = -(-min(counts) // longest.run.recipe.data.total_batch_tokens)
            name = f"{longest.run.id}-{steps}"
            again = command("train", str(longest.run.paths.recipe), "--name", name, f"run.max_steps={steps}")
            mend += f"; or train anew with a schedule that ends there, {again}"
        yield Caveat("Other numbers of training tokens", False, values, mend)


def other_device(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    having = [model for model in models if model.run is not None]
    if values := unlike(having, lambda model: model.device):
        mend = "compare at equal tokens, not at equal time; for time, train both on one machine"
        yield Caveat("Time was measured on other devices", False, values, mend)


def other_arithmetic(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    having = [model for model in models if model.precision]
    if values := unlike(having, lambda model: model.precision):
        others = [model for model in having if model.precision != having[0].precision]
        setting = f"run.precision={having[0].precision}"
        mend = "what it makes of the figures: " + " and ".join(to_evaluate(model, setting) for model in others)
        yield Caveat("Other precision", False, values, mend)
    having = [model for model in models if model.compiled is not None]
    if values := unlike(having, lambda model: "compiled" if model.compiled else "not compiled"):
        mend = "compare at equal tokens, not at equal time; or train both with one `run.compile`"
        yield Caveat("torch.compile in one only", False, values, mend)


def cut_items(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    for task in tasks_of(models):
        values = [(model.name, f"{model.to(task)[0].cut:,} items") for model in models if model.to(task)]
        if differ(values):
            mend = "none for these models; a longer `model.block_size` cuts fewer"
            yield Caveat(f"{task}: contexts cut to the block", False, values, mend)


def recorded_elsewhere(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    """Recorded figures beside measured ones, on another corpus or with another context length."""
    having = [(model, model.recipe) for model in models if model.recipe is not None]
    if len({model.recorded is None for model, _ in having}) < 2:
        return
    values = [(m.name, f"{source_of(m, recipe)}, {recipe.model.block_size:,} tokens at once") for m, recipe in having]
    if differ(values):
        yield Caveat(
            "Recorded on other data", True, values, "none: losses and scores of each hold where they were measured"
        )


def source_of(model: ComparedModel, recipe: Recipe) -> str:
    """Return the name of the public corpus, else the data source."""
    corpus = model.run.corpus if model.run else corpus_of_source(recipe.data.source)
    return recipe.data.source if corpus is PublicCorpus.OTHER else str(corpus)


def recorded_figures(models: Sequence[ComparedModel]) -> Iterator[Caveat]:
    chosen = [model for model in models if model.recorded is not None and model.recipe is not None]
    if chosen:
        unknown = "not measured here; on which windows and items is not known"
        values = [(m.name, f"figures from {recorded_where(m.recipe)}, {unknown}") for m in chosen if m.recipe]
        mend = " and ".join(command("train", model.where) for model in chosen)
        yield Caveat("Recorded figures", False, values, f"measure it, {mend}")


CHECKS: tuple[Callable[[Sequence[ComparedModel]], Iterator[Caveat]], ...] = (
    other_validation,
    recorded_elsewhere,
    other_tokenizer,
    other_items,
    other_rule,
    asked_alone,
    earlier_answers,
    best_against_last,
    unfinished,
    other_tokens,
    other_device,
    other_arithmetic,
    cut_items,
    recorded_figures,
)
