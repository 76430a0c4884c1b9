"""Sentences on groups of runs: which runs each group has, and the test over seeds."""

from collections.abc import Iterator, Sequence

from regpt.comparison.seed_tables import seed_text
from regpt.fairness.models import ComparedModel
from regpt.fairness.seed_claims import GroupComparison
from regpt.fairness.seed_groups import SeedGroup, tuning_runs
from regpt.fairness.wording import claim_text
from regpt.rendering.markup import MARKDOWN, Markup
from regpt.reporting.findings import finding_of, sentences_of
from regpt.reporting.summary import capitalized, model_sentence

OVER_SEEDS = "Values are means over seeds, ± one standard error over seeds."
SOURCES = (
    "Groups with the same seeds, whose runs read the same windows in the same order, are compared by a paired t-test"
    " over seeds (Student 1908); other groups by Welch's t-test (Welch 1947). p-values are adjusted for the number of"
    " groups (Holm 1979). The difference found with 80 % power follows from the observed spread (Bloom 1995)."
    " Accuracies and speeds are shown without a test over seeds."
)


def group_lines(groups: Sequence[SeedGroup], markup: Markup) -> Iterator[str]:
    """Yield which runs each group has, with their seeds."""
    for group in groups:
        name = markup.bold(markup.text(group.name))
        names = run_names(group)
        runs = ", ".join(
            f"{markup.text(run)} ({seed_text(seed)})" for run, seed in zip(names, group.seeds, strict=False)
        )
        n_runs, n_seeds = counted(len(group.members), "run"), counted(group.n_seeds, "seed")
        if not runs:
            yield f"{name} is not a run"
        else:
            yield f"{name}, {n_seeds if group.n_seeds == len(group.members) else f'{n_runs} of {n_seeds}'}: {runs}"


def run_names(group: SeedGroup) -> list[str]:
    """Return the names of the runs; with their paths only where two runs of the group have the same name."""
    names = [model.run.id if model.run else model.name for model in group.members]
    return names if len(set(names)) == len(names) else [model.name for model in group.members]


def left_out_lines(models: Sequence[ComparedModel], markup: Markup) -> list[str]:
    """Return which runs are in no group, and why. An empty line ends them."""
    names = ", ".join(markup.text(model.name) for model in tuning_runs(models))
    if not names:
        return []
    return [f"- Left out: {names}. An ablation chose a setting by their losses, so they do not count as seeds.", ""]


def counted(n: int, name: str) -> str:
    return f"{n} {name}{'s' * (n != 1)}"


def group_verdict(found: GroupComparison, markup: Markup) -> str:
    """Return the paragraph on a group: its loss compared with that of the reference."""
    group, reference = (markup.bold(markup.text(one.name)) for one in (found.group, found.reference))
    sentences = ". ".join(capitalized(sentence) for sentence in sentences_of([*map(finding_of, found.claims)]))
    return f"{group} compared with {reference}, the reference: {sentences}."


def group_test_lines(found: GroupComparison, markup: Markup) -> list[str]:
    """Return a title and the test. An empty line ends them."""
    group, reference = markup.text(found.group.name), markup.text(found.reference.name)
    title = markup.bold(f"{group} compared with {reference}")
    return [title, "", *(f"- {claim_text(claim, found.reference.name, markup)}" for claim in found.claims), ""]


def group_paragraphs(groups: Sequence[SeedGroup]) -> Iterator[str]:
    """Yield which runs each group has, and what its first run is."""
    for group, line in zip(groups, group_lines(groups, MARKDOWN), strict=True):
        first = group.members[0]
        yield f"{line}. {model_sentence(first.run)}" if first.is_run and first.run else f"{line}."
