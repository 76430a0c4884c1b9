"""What groups of runs allow to claim about their recipes: tests over seeds, and the reasons against a comparison."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from regpt.fairness.caveats import Caveat, CaveatKind, Remedy, RemedyKind
from regpt.fairness.checks import find_caveats
from regpt.fairness.claims import Claim, Limit, is_one_rate_each
from regpt.fairness.seed_groups import SeedGroup
from regpt.stats.outcome import NotTested, Outcome, Quantity
from regpt.stats.seeds import SeedsTest, holm_adjusted_tests, seeds_test
from regpt.stats.verdicts import Verdict


@dataclass(frozen=True)
class GroupComparison:
    """A group compared with the reference, which is the first group."""

    group: SeedGroup
    reference: SeedGroup
    loss: Claim


def compare_groups(groups: Sequence[SeedGroup]) -> list[GroupComparison]:
    """Compare the final loss of every other group with that of the first, with p-values adjusted for their number."""
    reference, *others = groups
    verdicts = [loss_verdict(group, reference) for group in others]
    tests = [verdict.test for verdict in verdicts if isinstance(verdict.test, SeedsTest)]
    adjusted = iter(holm_adjusted_tests(tests))
    found = []
    for group, verdict in zip(others, verdicts, strict=True):
        if verdict.test is not None:
            test = next(adjusted)
            verdict = replace(verdict, test=test, outcome=test.outcome)
        caveats = [one for one in caveats_of([reference, group]) if one.kind.can_change(verdict.quantity)]
        limits = (Limit.ONE_RATE,) if is_one_rate_each(group.members[0], reference.members[0]) else ()
        found.append(GroupComparison(group, reference, Claim(verdict, tuple(caveats), limits)))
    return found


def loss_verdict(group: SeedGroup, reference: SeedGroup) -> Verdict:
    """Test the final validation losses of two groups over seeds."""
    losses = [[model.loss for model in one.members if model.loss] for one in (group, reference)]
    ours, theirs = ([loss.loss for loss in own] for own in losses)
    test, reason = None, None
    if (len(ours), len(theirs)) != (len(group.members), len(reference.members)):
        return Verdict(
            quantity=Quantity.VALIDATION_LOSS, outcome=Outcome.NOT_TESTED, ours=None, theirs=None,
            reason=NotTested.NOT_MEASURED,
        )  # fmt: skip
    if not all(one.same_windows(losses[1][0]) for own in losses for one in own):
        reason = NotTested.OTHER_DATA
    elif not all(map(math.isfinite, [*ours, *theirs])):
        reason = NotTested.NOT_FINITE
    else:
        test = seeds_test(group.by_seed(ours), reference.by_seed(theirs), read_same_windows(group, reference))
        reason = None if test else NotTested.TOO_FEW_SEEDS
    return Verdict(
        quantity=Quantity.VALIDATION_LOSS,
        outcome=test.outcome if test else Outcome.NOT_TESTED,
        ours=group.mean(ours),
        theirs=reference.mean(theirs),
        test=test,
        reason=reason,
    )


def read_same_windows(group: SeedGroup, reference: SeedGroup) -> bool:
    """Whether two runs of one seed, one of each group, read the same windows in the same order."""
    runs = [model.run for one in (group, reference) for model in one.members if model.run]
    return len({(run.environment.data.digest, run.recipe.data.order, run.recipe.model.block_size) for run in runs}) == 1


def caveats_of(groups: Sequence[SeedGroup]) -> list[Caveat]:
    """Return the reasons against comparing groups, each once; a different seed is not one of them."""
    found: dict[tuple[CaveatKind, str], Caveat] = {}
    for caveat in find_caveats([model for group in groups for model in group.members]):
        if caveat.kind is CaveatKind.OTHER_SEED:
            continue
        key = caveat.kind, caveat.task
        if earlier := found.get(key):  # a check that reports each run by itself
            caveat = replace(
                caveat,
                values=[*earlier.values, *caveat.values],
                remedies=merged_remedies([*earlier.remedies, *caveat.remedies]),
            )
        found[key] = caveat
    return [replace(caveat, values=list(values_by_group(caveat, groups))) for caveat in found.values()]


def merged_remedies(remedies: Sequence[Remedy]) -> tuple[Remedy, ...]:
    """Return one remedy of each kind, with the commands of all."""
    found: dict[RemedyKind, Remedy] = {}
    for remedy in remedies:
        before = found.get(remedy.kind)
        found[remedy.kind] = (
            replace(before, commands=tuple(dict.fromkeys([*before.commands, *remedy.commands]))) if before else remedy
        )
    return tuple(found.values())


def values_by_group(caveat: Caveat, groups: Sequence[SeedGroup]) -> Iterator[tuple[str, object]]:
    """Yield one value for a group whose members have the same, else that of each member."""
    by_name: dict[str, object] = dict(caveat.values)
    for group in groups:
        own = [(model.name, by_name[model.name]) for model in group.members if model.name in by_name]
        if len(own) == len(group.members) and all(value == own[0][1] for _, value in own):
            yield group.name, own[0][1]
        else:
            yield from own
