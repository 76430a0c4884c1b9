"""What groups of runs allow to claim about their recipes: tests over seeds, and the reasons against a comparison."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from regpt.fairness.caveats import Caveat, CaveatKind, Remedy, RemedyKind
from regpt.fairness.checks import find_caveats
from regpt.fairness.claims import Claim, Limit, is_one_rate_each
from regpt.fairness.seed_groups import SeedGroup
from regpt.stats.losses import MeasuredLoss, bits_of_same_text
from regpt.stats.outcome import NotTested, Outcome, Quantity
from regpt.stats.seeds import SeedsTest, holm_adjusted_tests, seeds_test
from regpt.stats.verdicts import Verdict


@dataclass(frozen=True)
class GroupComparison:
    """A group compared with the reference, which is the first group."""

    group: SeedGroup
    reference: SeedGroup
    loss: Claim
    bits_per_byte: Claim | None = None  # of the same text, where the losses are of different tokens

    @property
    def claims(self) -> list[Claim]:
        return [self.loss, *([self.bits_per_byte] if self.bits_per_byte else [])]


def compare_groups(groups: Sequence[SeedGroup]) -> list[GroupComparison]:
    """Compare the final loss of every other group with that of the first, with p-values adjusted for their number.

    Groups with different tokenizers are compared by their bits per byte of the same text, too.
    """
    reference, *others = groups
    losses = adjusted([loss_verdict(group, reference) for group in others])
    of_bits = [bits_verdict(group, reference) for group in others]
    bits = iter(adjusted([verdict for verdict in of_bits if verdict]))
    found = []
    for group, loss, has_bits in zip(others, losses, of_bits, strict=True):
        bits_claim = claim_on_groups(next(bits), group, reference) if has_bits else None
        found.append(GroupComparison(group, reference, claim_on_groups(loss, group, reference), bits_claim))
    return found


def adjusted(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Adjust the p-values of the verdicts that a test over seeds decided."""
    tests = iter(holm_adjusted_tests([one.test for one in verdicts if isinstance(one.test, SeedsTest)]))
    found = []
    for verdict in verdicts:
        if isinstance(verdict.test, SeedsTest):
            test = next(tests)
            verdict = replace(verdict, test=test, outcome=test.outcome)
        found.append(verdict)
    return found


def claim_on_groups(verdict: Verdict, group: SeedGroup, reference: SeedGroup) -> Claim:
    """Add to a verdict what can change it, and its limits."""
    caveats = [one for one in caveats_of([reference, group]) if one.kind.can_change(verdict.quantity)]
    is_one_rate = is_one_rate_each(group.members[0], reference.members[0])
    return Claim(verdict, tuple(caveats), (Limit.ONE_RATE,) if is_one_rate else ())


def last_losses(group: SeedGroup) -> list[MeasuredLoss]:
    return [model.loss for model in group.members if model.loss]


def loss_verdict(group: SeedGroup, reference: SeedGroup) -> Verdict:
    """Test the final validation losses of two groups over seeds."""
    ours, theirs = last_losses(group), last_losses(reference)
    if (len(ours), len(theirs)) != (len(group.members), len(reference.members)):
        return Verdict(
            quantity=Quantity.VALIDATION_LOSS, outcome=Outcome.NOT_TESTED, ours=None, theirs=None,
            reason=NotTested.NOT_MEASURED,
        )  # fmt: skip
    values = [loss.loss for loss in ours], [loss.loss for loss in theirs]
    if not all(one.same_windows(theirs[0]) for one in [*ours, *theirs]):
        return verdict_over_seeds(Quantity.VALIDATION_LOSS, group, reference, *values, NotTested.OTHER_DATA)
    return verdict_over_seeds(Quantity.VALIDATION_LOSS, group, reference, *values)


def bits_verdict(group: SeedGroup, reference: SeedGroup) -> Verdict | None:
    """Test the bits per byte of two groups over seeds, on the text that all their runs were validated on.

    None for one tokenizer, and where too little text is the same or its losses are not kept.
    """
    ours, theirs = last_losses(group), last_losses(reference)
    tokenizers = {model.tokenizer for one in (group, reference) for model in one.members}
    if len(tokenizers) < 2 or (len(ours), len(theirs)) != (len(group.members), len(reference.members)):
        return None
    bits = bits_of_same_text([*ours, *theirs])
    if bits is None:
        return None
    return verdict_over_seeds(Quantity.BITS_PER_BYTE, group, reference, bits[: len(ours)], bits[len(ours) :])


def verdict_over_seeds(
    quantity: Quantity,
    group: SeedGroup,
    reference: SeedGroup,
    ours: Sequence[float],
    theirs: Sequence[float],
    reason: NotTested | None = None,
) -> Verdict:
    """Test values of the members of two groups, unless there is a reason not to."""
    test = None
    if reason is None and not all(map(math.isfinite, [*ours, *theirs])):
        reason = NotTested.NOT_FINITE
    if reason is None:
        test = seeds_test(group.by_seed(ours), reference.by_seed(theirs), read_same_windows(group, reference))
        reason = None if test else NotTested.TOO_FEW_SEEDS
    return Verdict(
        quantity=quantity,
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
