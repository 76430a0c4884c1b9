"""How a record opens: what was trained, how long, what came out; then a paragraph for each that it is held against."""

import re
from collections.abc import Iterator, Sequence

from regpt.base.architecture import ModelRecipe
from regpt.rendering.markdown import escaped
from regpt.report.published import ALL_ITEMS, CHANCE, GPT2
from regpt.report.scores import Baseline, guessing, kind_of_data, recorded_where
from regpt.report.wording import in_words
from regpt.stats.identical import identical
from regpt.stats.verdicts import ALIKE, UNTESTED, Verdict, comparable, paired_loss_verdict, unpaired_test, verdicts
from regpt.tracking.run import Run, headline

SHORT_NAMES = {
    "rope": "RoPE",
    "learned": "learned positions",
    "swiglu": "SwiGLU",
    "gelu": "GELU",
    "rmsnorm": "RMSNorm",
    "layernorm": "LayerNorm",
}
SPEED = "Training Efficiency"
# How a sentence names what a claim is about: (alone, with what it did)
NAMES = {
    "Validation Loss": ("validation loss", "validation loss is"),
    "HellaSwag Accuracy": ("HellaSwag accuracy", "HellaSwag accuracy is"),
    SPEED: ("speed", "steps were"),
}


def summary(run: Run, others: Sequence[Baseline]) -> list[str]:
    """Short paragraphs, the run's own first; nothing in them that the figures do not carry."""
    own = " ".join(filter(None, [model_sentence(run), outcome_sentence(run)]))
    return [own, *(baseline_paragraph(run, other) for other in others), *against_gpt2(run)]


def model_sentence(run: Run) -> str:
    model, asked, made = run.recipe.model, run.recipe.run.max_steps, run.history.step
    words = f"**{escaped(run.id)}** is a GPT-2 of {model.parameters:,} parameters with {listed(parts(model))}"
    if not made:
        return f"{words}. It has made none of its {asked:,} steps yet."
    text = escaped(run.environment.data.source.description)
    device = escaped(run.environment.device.name)
    steps = f"Its {asked:,} steps" if made == asked else f"The {made:,} of {asked:,} steps that it has made"
    return (
        f"{words}, trained from nothing on {run.tokens:,} tokens of {text}."
        f" {steps} took {in_words(run.training_seconds)} on {device}."
    )


def parts(model: ModelRecipe) -> list[str]:
    return [SHORT_NAMES[part] for part in (model.positions, model.activation, model.normalization)]


def listed(names: Sequence[str]) -> str:
    """'a, b and c'"""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def outcome_sentence(run: Run) -> str:
    looks, words = run.history.validations, ""
    if len(looks) > 1:
        first, last = looks[0], looks[-1]
        pairs = [(v.loss, v.standard_error) for v in (last, first)]
        verb = "went"
        if first.windows == last.windows and all(error for _, error in pairs):
            verb = {"below": "fell", "above": "rose"}.get(
                unpaired_test(pairs[0], pairs[1], last.windows, "below", "above")[0], "went"
            )
        words = f"Its validation loss {verb} from {first.loss:.4f} to {last.loss:.4f} nats per token."
    if run.hellaswag:
        last_answers = run.hellaswag[-1]
        share, error = headline(last_answers)
        words += f" Its HellaSwag accuracy ({last_answers.items}) is {share:.3f} ± {error:.3f}"
        words += ", which cannot be told from guessing." if guessing(last_answers) else f"; guessing gives {CHANCE}."
    return words.strip()


def baseline_paragraph(run: Run, other: Baseline) -> str:
    """A sentence for each claim; a recorded figure has no error, so nothing is claimed of it."""
    name = f"**{escaped(other.name)}**"
    if other.run is None:
        return f"Against {name}: {UNTESTED}, its figures are from {escaped(recorded_where(other.recipe))}."
    if same := identical(run, other.run):
        return f"Against {name}: the two are identical, with {same}."
    unlike = [part for part in parts(other.recipe.model) if part not in parts(run.recipe.model)]
    tokens = "as many" if run.tokens == other.run.tokens else f"{other.run.tokens:,}"
    hellaswag, loss, speed = verdicts(run, other.run)
    sentences = [*sentences_of([loss, hellaswag, speed])]
    if run.tokens > other.run.tokens and comparable(run, other.run):
        sentences[1:1] = at_equal_tokens(run, other.run)
    which = f"which has {listed(unlike)} and" if unlike else "which"
    first, *rest = sentences
    return f"Against {name}, {which} saw {tokens} tokens: {'. '.join([first, *map(upper, rest)])}."


def at_equal_tokens(run: Run, other: Run) -> Iterator[str]:
    """The losses after all that the other has seen, where both were looked at then; with the paired test if any."""
    looks = [[look for look in one.history.validations if look.tokens == other.tokens] for one in (run, other)]
    if not all(looks):
        return
    here, theirs = (f"{of_run[-1].loss:.4f}" for of_run in looks)
    stood = f"after as many tokens its validation loss stood at {here} against {theirs}"
    claim = paired_loss_verdict(run, other, (theirs, here), other.tokens)
    yield f"{stood}, {claim.word} ({escaped(claim.in_short)})" if claim else stood


def sentences_of(found: Sequence[Verdict]) -> Iterator[str]:
    """What came out otherwise, what cannot be told apart, how fast it was: each with its test; last what has none."""
    told = [claim for claim in found if claim.word not in (UNTESTED, ALIKE)]
    alike = [f"{NAMES[c.what][0]}, {beside(c)} ({escaped(c.in_short)})" for c in found if c.word == ALIKE]
    yield from (told_of(claim) for claim in told if claim.what != SPEED)
    if alike:
        yield f"this run's {', and '.join(alike)}, {ALIKE}"
    yield from (told_of(claim) for claim in told if claim.what == SPEED)
    untested = [f"{NAMES[claim.what][0]} ({escaped(claim.because)})" for claim in found if claim.word == UNTESTED]
    if untested:
        yield f"{UNTESTED}: {', '.join(untested)}"


def told_of(claim: Verdict) -> str:
    return f"this run's {NAMES[claim.what][1]} {claim.word}, {beside(claim)} ({escaped(claim.in_short)})"


def beside(claim: Verdict) -> str:
    """'4.5344 against 4.7962', '31.0 % against 27.5 %', '1,027 against 2,730 tokens/s'"""
    theirs, ours = (re.sub(r"^[\d.]+ \((.*)\)$", r"\1", figure) for figure in claim.figures)
    return f"{ours.removesuffix(' tokens/s')} against {theirs}"


def upper(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def against_gpt2(run: Run) -> Iterator[str]:
    """HellaSwag's published figure compares where all items were asked; the loss has no error to test it by."""
    if not (run.hellaswag and run.hellaswag[-1].items == ALL_ITEMS):
        return
    share, error = headline(run.hellaswag[-1])
    published = (GPT2.hellaswag, (GPT2.hellaswag * (1 - GPT2.hellaswag) / 10_042) ** 0.5)
    word, test = unpaired_test((share, error), published, 10_042, "lower", "higher")
    loss = (
        "" if kind_of_data(run) == GPT2.data else f" {GPT2.name}'s loss on {GPT2.data} says nothing of this run's data."
    )
    says = {ALIKE: ALIKE, UNTESTED: f"is {UNTESTED}"}.get(word, f"is {word}")
    figures = f"{100 * share:.1f} % against {100 * GPT2.hellaswag:.1f} %"
    yield (
        f"Against **{GPT2.name}**, as published: this run's HellaSwag accuracy {says}, {figures}"
        f" ({test.replace('windows', 'items')}).{loss}"
    )
