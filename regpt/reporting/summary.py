"""The first paragraphs of a report: model, data, time and results, then a comparison with each baseline."""

from collections.abc import Iterator, Sequence

from regpt.base.architecture import ModelRecipe
from regpt.base.format import duration, percent, with_error
from regpt.fairness.caveats import CaveatKind
from regpt.fairness.claims import Claim, claims_on_runs
from regpt.fairness.wording import LIMIT_TEXT, caveats_text
from regpt.rendering.markdown import escaped
from regpt.reporting.published import CHANCE, GPT2, HELLASWAG_ITEMS
from regpt.reporting.scores import Baseline, guessing, recorded_where
from regpt.stats.describe import (
    OUTCOME_TEXT,
    REASON_TEXT,
    bounds_text,
    describe_test_briefly,
    identity_text,
    values_text,
)
from regpt.stats.identical import identical
from regpt.stats.losses import error_bounds_test, loss_at
from regpt.stats.outcome import Outcome, Quantity
from regpt.stats.verdicts import compare_losses, same_windows
from regpt.tracking.run import Run, primary_accuracy

SHORT_NAMES = {
    "rope": "RoPE",
    "learned": "learned positions",
    "swiglu": "SwiGLU",
    "gelu": "GELU",
    "rmsnorm": "RMSNorm",
    "layernorm": "LayerNorm",
}
# The subject and verb of a sentence about a difference.
SUBJECTS = {
    Quantity.VALIDATION_LOSS: "this run's validation loss is",
    Quantity.HELLASWAG: "this run's HellaSwag accuracy is",
    Quantity.SPEED: "this run's steps were",
}


def summary(run: Run, others: Sequence[Baseline]) -> list[str]:
    """Return the paragraphs, the run's own first. They claim only differences that a test supports."""
    own = " ".join(filter(None, [model_sentence(run), outcome_sentence(run)]))
    return [own, *(baseline_paragraph(run, other) for other in others), *against_gpt2(run)]


def model_sentence(run: Run) -> str:
    """Say what was trained, on what and for how long."""
    model, asked, made = run.recipe.model, run.recipe.run.max_steps, run.history.step
    words = f"**{escaped(run.id)}** is a GPT-2 of {model.parameters:,} parameters with {listed(parts(model))}"
    if not made:
        return f"{words}. It has not made any of its {asked:,} steps yet."
    text = escaped(run.environment.data.source.description)
    device = escaped(run.environment.device.name)
    steps = f"Its {asked:,} steps" if made == asked else f"The first {made:,} of {asked:,} steps"
    return (
        f"{words}, trained from scratch on {run.tokens:,} tokens of {text}."
        f" {steps} took {duration(run.training_seconds)} on {device}."
    )


def parts(model: ModelRecipe) -> list[str]:
    return [SHORT_NAMES[part] for part in (model.positions, model.activation, model.normalization)]


def listed(names: Sequence[str]) -> str:
    """Join names as in 'a, b and c'."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def outcome_sentence(run: Run) -> str:
    """Say how the validation loss changed, and how HellaSwag compares with chance."""
    validations, words = run.history.validations, ""
    if len(validations) > 1:
        first, last = validations[0], validations[-1]
        change = compare_losses(loss_at(run, last), loss_at(run, first))
        verb = {Outcome.LOWER: "fell", Outcome.HIGHER: "rose"}.get(change.outcome, "went")
        words = f"Its validation loss {verb} from {first.loss:.4f} to {last.loss:.4f} nats per token."
    if run.hellaswag:
        last_record = run.hellaswag[-1]
        share, error = primary_accuracy(last_record)
        words += f" Its HellaSwag accuracy ({last_record.items}) is {with_error(share, error)}"
        words += (
            ", not significantly different from guessing." if guessing(last_record) else f"; guessing gives {CHANCE}."
        )
    return words.strip()


def baseline_paragraph(run: Run, other: Baseline) -> str:
    """Compare a run with a baseline. Recorded figures have no error, so they are not tested."""
    name = f"**{escaped(other.name)}**"
    if other.run is None:
        return (
            f"Compared with {name}: not tested. Its figures are from {escaped(recorded_where(other.recipe))}, without"
            " standard errors."
        )
    if same := identical(run, other.run):
        return f"Compared with {name}: the two runs are identical: {identity_text(same)}."
    unlike = [part for part in parts(other.recipe.model) if part not in parts(run.recipe.model)]
    tokens = "the same number of" if run.tokens == other.run.tokens else f"{other.run.tokens:,}"
    claims = claims_on_runs(run, other.run)
    sentences = [*sentences_of(claims)]
    if run.tokens > other.run.tokens and same_windows(run, other.run):
        sentences[1:1] = at_equal_tokens(run, other.run, claims[0])
    which = f"which has {listed(unlike)} and" if unlike else "which"
    first, *rest = sentences
    return f"Compared with {name}, {which} saw {tokens} tokens: {'. '.join([first, *map(capitalized, rest)])}."


def at_equal_tokens(run: Run, other: Run, claim: Claim) -> Iterator[str]:
    """Compare the losses after as many tokens as the other run saw, where both were validated then.

    A difference is claimed if the number of tokens is all that forbids it at the end.
    """
    ours, theirs = ([one for one in r.history.validations if one.tokens == other.tokens] for r in (run, other))
    if not (ours and theirs):
        return
    verdict = compare_losses(loss_at(run, ours[-1]), loss_at(other, theirs[-1]))
    remaining = tuple(caveat for caveat in claim.caveats if caveat.kind is not CaveatKind.OTHER_TOKENS)
    at_equal = Claim(verdict, remaining, claim.limits)
    result = OUTCOME_TEXT[verdict.outcome] if at_equal.is_about_recipes else "no claim"
    why = f" ({escaped(describe_test_briefly(verdict))})" if at_equal.is_about_recipes else ""
    yield f"at equal tokens, its validation loss was {values_text(verdict)}: {result}{why}"


def sentences_of(claims: Sequence[Claim]) -> Iterator[str]:
    """Word the differences that may be claimed, what does not differ significantly, and figures without a claim."""
    yield from (difference_sentence(claim) for claim in claims if claim.is_difference)
    equal = [one.verdict for one in claims if one.is_about_recipes and not one.is_difference]
    if equal:
        parts = [f"{one.quantity}, {values_text(one)} ({escaped(describe_test_briefly(one))})" for one in equal]
        yield f"not significantly different: {'; '.join(parts)}"
    unclaimed = [claim for claim in claims if not claim.is_about_recipes]
    if unclaimed:
        yield f"no claim about the recipes: {'; '.join(map(unclaimed_text, unclaimed))}"


def unclaimed_text(claim: Claim) -> str:
    """Name a quantity with both values, if both were measured, and what forbids a claim."""
    verdict = claim.verdict
    values = f", {values_text(verdict)}" if verdict.difference is not None else ""
    why = caveats_text(claim.caveats) if claim.caveats else describe_test_briefly(verdict)
    return f"{verdict.quantity}{values} ({escaped(why)})"


def difference_sentence(claim: Claim) -> str:
    verdict = claim.verdict
    limits = "".join(f"; {LIMIT_TEXT[limit]}" for limit in claim.limits)
    return (
        f"{SUBJECTS[verdict.quantity]} {OUTCOME_TEXT[verdict.outcome]}, {values_text(verdict)}"
        f" ({escaped(describe_test_briefly(verdict))}{limits})"
    )


def capitalized(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def against_gpt2(run: Run) -> Iterator[str]:
    """Compare HellaSwag with GPT-2's published accuracy, where all items were scored; a published loss has no error."""
    if not (run.hellaswag and run.hellaswag[-1].is_full_set):
        return
    accuracy, error = primary_accuracy(run.hellaswag[-1])
    published = (GPT2.hellaswag, (GPT2.hellaswag * (1 - GPT2.hellaswag) / HELLASWAG_ITEMS) ** 0.5)
    test, reason = error_bounds_test((accuracy, error), published, HELLASWAG_ITEMS)
    outcome = test.outcome if test else Outcome.NOT_TESTED
    why = f" ({bounds_text(test)})" if test else f" ({REASON_TEXT[reason]})" if reason else ""
    loss = "" if run.corpus is GPT2.data else f" {GPT2.name}'s loss on {GPT2.data} is not comparable."
    yield (
        f"Compared with **{GPT2.name}** as published: this run's HellaSwag accuracy is {OUTCOME_TEXT[outcome]},"
        f" {percent(accuracy)} vs {percent(GPT2.hellaswag)}{why}.{loss}"
    )
