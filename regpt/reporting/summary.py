"""The first paragraphs of a report: model, data, time and results, then a comparison with each baseline."""

from collections.abc import Iterator, Sequence

from regpt.base.format import duration, percent, with_error
from regpt.fairness.baselines import Baseline
from regpt.fairness.caveats import CaveatKind
from regpt.fairness.claims import Claim, claims_on_runs
from regpt.fairness.models import ComparedModel
from regpt.recipe.architecture import ModelRecipe
from regpt.rendering.markdown import escaped
from regpt.reporting.findings import finding_of, is_measured, listed, sentences_of
from regpt.reporting.improvements import model_improvements
from regpt.reporting.published import CHANCE, GPT2, HELLASWAG_ITEMS
from regpt.reporting.scores import Relation, guessing, recorded_where, relation
from regpt.stats.describe import OUTCOME_TEXT, REASON_TEXT, bounds_text, identity_text, values_text
from regpt.stats.identical import identical
from regpt.stats.losses import error_bounds_test, last_loss, loss_at
from regpt.stats.outcome import Outcome
from regpt.stats.verdicts import compare_losses, same_windows
from regpt.tracking.run import Run, primary_accuracy

SHORT_NAMES = {
    "rope": "RoPE",
    "learned": "learned positions",
    "swiglu": "SwiGLU",
    "gelu": "GELU",
    "relu2": "squared ReLU",
    "rmsnorm": "RMSNorm",
    "layernorm": "LayerNorm",
}


def summary(run: Run, others: Sequence[Baseline]) -> list[str]:
    """Return the paragraphs, the run's own first. They claim only differences that a test supports."""
    own = " ".join(filter(None, [model_sentence(run), outcome_sentence(run)]))
    return [own, *(baseline_paragraph(run, other) for other in others), *against_gpt2(run)]


def model_sentence(run: Run) -> str:
    """Say what was trained, on what and for how long."""
    model, asked, made = run.recipe.model, run.recipe.run.max_steps, run.history.step
    words = f"**{escaped(run.id)}** is a GPT-2 of {model.parameters:,} parameters with {listed(parts(model))}."
    if not made:
        return f"{words} It has not made any of its {asked:,} steps yet."
    text = escaped(run.environment.data.source.description)
    steps = f"Its {asked:,} steps" if made == asked else f"The first {made:,} of {asked:,} steps"
    return (
        f"{words} It {beginning(run)} on {run.tokens:,} tokens of {text}."
        f" {steps} took {duration(run.training_seconds)} on {escaped(run.device_name)}."
    )


def beginning(run: Run) -> str:
    """Say from which weights the run started."""
    origin = run.environment.origin
    if origin is None:
        return "was trained from scratch"
    return f"started with the weights of **{escaped(origin.name)}** and was trained"


def parts(model: ModelRecipe) -> list[str]:
    choices = [SHORT_NAMES[part] for part in (model.positions, model.activation, model.normalization)]
    return [*choices, *model_improvements(model)]


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
        guessed = f", not significantly different from guessing ({CHANCE})."
        words += guessed if guessing(last_record) else f"; guessing gives {CHANCE}."
    return words.strip()


def baseline_paragraph(run: Run, other: Baseline) -> str:
    """Compare a run with a baseline in short sentences; the table of verdicts names the tests."""
    if other.model is not None:
        return model_sentence_against(run, other.model)
    if other.run is None:
        return recorded_sentence(run, other)
    name = f"**{escaped(other.name)}**"
    if same := identical(run, other.run):
        return f"Compared with {name}: the two runs are identical: {identity_text(same)}."
    unlike = [part for part in parts(other.recipe.model) if part not in parts(run.recipe.model)]
    tokens = "the same number of" if run.tokens == other.run.tokens else f"{other.run.tokens:,}"
    claims = claims_on_runs(run, other.run)
    sentences = [*sentences_of([finding_of(claim) for claim in claims if is_measured(claim)])]
    if at_equal := claim_at_equal_tokens(run, other.run, claims[0]):
        sentences[1:1] = [at_equal_tokens(at_equal)]
    which = f"which has {listed(unlike)} and" if unlike else "which"
    first, *rest = sentences
    return f"Compared with {name}, {which} saw {tokens} tokens: {'. '.join([first, *map(capitalized, rest)])}."


def model_sentence_against(run: Run, other: ComparedModel) -> str:
    """Compare the last loss of a run with that of a model on the same windows, whatever it was trained on."""
    verdict = compare_losses(last_loss(run), other.loss)
    return (
        f"Compared with **{escaped(other.name)}** on the same windows: this run's validation loss is"
        f" {OUTCOME_TEXT[verdict.outcome]}, {values_text(verdict)}."
    )


def recorded_sentence(run: Run, other: Baseline) -> str:
    """Say where recorded figures come from, and whether they compare with this run's."""
    where = f"The figures of **{escaped(other.name)}** are from {escaped(recorded_where(other.recipe))}"
    if relation(run, other) is Relation.OTHER_DATA:
        return f"{where}. They were measured on other text and do not compare with this run's."
    return f"{where}. They have no standard errors, so no difference is tested."


def claim_at_equal_tokens(run: Run, other: Run, claim: Claim) -> Claim | None:
    """Compare the losses after as many tokens as the other run saw; None where one was not validated then.

    claim: that on the last losses. A difference is claimed if the number of tokens is all that forbids it there.
    """
    if run.tokens <= other.tokens or not same_windows(run, other):
        return None
    ours, theirs = ([one for one in r.history.validations if one.tokens == other.tokens] for r in (run, other))
    if not (ours and theirs):
        return None
    verdict = compare_losses(loss_at(run, ours[-1]), loss_at(other, theirs[-1]))
    remaining = tuple(caveat for caveat in claim.caveats if caveat.kind is not CaveatKind.OTHER_TOKENS)
    return Claim(verdict, remaining, claim.limits)


def at_equal_tokens(claim: Claim) -> str:
    result = f", {OUTCOME_TEXT[claim.verdict.outcome]}" if claim.is_about_recipes else ""
    return f"at equal tokens, its validation loss was {values_text(claim.verdict)}{result}"


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
    yield (
        f"Compared with **{GPT2.name}** as published: this run's HellaSwag accuracy is {OUTCOME_TEXT[outcome]},"
        f" {percent(accuracy)} vs {percent(GPT2.hellaswag)}{why}."
    )
