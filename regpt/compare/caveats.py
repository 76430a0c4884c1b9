"""A reason why figures do not compare: in words, with what stands on every side, and the command that mends it."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from regpt.compare.models import ComparedModel
from regpt.rendering.markdown import inline

Values = list[tuple[str, str]]  # (model, what it has)


@dataclass(frozen=True)
class Caveat:
    """A reason why figures do not compare, or compare only with care."""

    what: str
    severe: bool  # the figures do not compare
    values: Values
    remedy: str


def lines_of(found: Sequence[Caveat]) -> Iterator[str]:
    """As Markdown."""
    for severe, title in ((True, "These do not compare:"), (False, "Compare with care:")):
        chosen = [flag for flag in found if flag.severe is severe]
        if chosen:
            yield f"**{title}**"
            yield ""
        for flag in chosen:
            yield f"- **{flag.what}.** {in_words(flag.values)}. Remedy: {flag.remedy}."
        if chosen:
            yield ""
    if not found:
        yield "Nothing was found that makes the comparison unfair."
        yield ""


def in_words(values: Values) -> str:
    """'a, c: finished; b: step 6 of 12'."""
    having: dict[str, list[str]] = {}
    for name, value in values:
        having.setdefault(value, []).append(inline(name))
    return "; ".join(f"{', '.join(names)}: {inline(value)}" for value, names in having.items())


def command(*words: str) -> str:
    """As a code span, to be pasted."""
    text, ticks = shlex.join(words), "`"
    while ticks in text:
        ticks += "`"
    return f"{ticks}regpt {text}{ticks}"


def unlike(models: Sequence[ComparedModel], value: Callable[[ComparedModel], str]) -> Values:
    """What each has, where they do not all have the same."""
    values = [(model.name, value(model)) for model in models]
    return values if differ(values) else []


def differ(values: Values) -> bool:
    return len({text for _, text in values}) > 1


def to_evaluate(model: ComparedModel, *words: str) -> str:
    """The command that asks this very model; its folder of answers does not say where the model itself lies."""
    if model.is_run:
        return command("evaluate", model.where, *words)
    if model.run is not None and model.step is not None:
        return command("evaluate", str(model.run.paths.checkpoint(model.step)), *words)
    return command("evaluate", "MODEL", *words, "--into", str(model.path)) + f" with the model of {inline(model.name)}"
