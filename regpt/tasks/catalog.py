"""Multiple-choice tasks: what a question is, and how a row of each public data set becomes one.

The texts of all but `hellaswag` are those of EleutherAI's lm-evaluation-harness (lm-eval 0.4.13), zero-shot, so that
numbers compare with those that it prints; a test holds every one against it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regpt.base.files import sha256_of_json

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """A question: contexts, and endings of which one is right."""

    number: int  # of its row in the data set
    kind: str  # of text, where a data set has several
    contexts: tuple[str, ...]  # for each ending; mostly the same
    choices: tuple[str, ...]  # with the space before them
    label: int  # which is right

    @property
    def digest(self) -> str:
        return sha256_of_json([self.contexts, self.choices, self.label])


@dataclass(frozen=True)
class Metric:
    """By what the likeliest ending is chosen."""

    name: str
    description: str
    name_elsewhere: str  # what others call an accuracy by this rule


BY_TOKEN = Metric("by_token", "mean loss per token", "build-nanogpt's acc_norm")
BY_SUM = Metric("by_sum", "summed loss", "acc")
BY_CHARACTER = Metric("by_character", "loss per character", "lm-eval's acc_norm")
BY_BYTE = Metric("by_byte", "loss per byte", "lm-eval's acc_bytes")
METRICS = {rule.name: rule for rule in (BY_TOKEN, BY_SUM, BY_CHARACTER, BY_BYTE)}


@dataclass(frozen=True)
class Task:
    """A data set of questions, and how it is asked and judged."""

    name: str
    about: str
    file: str  # in the data package
    sha256: str  # of that file
    item: Callable[[int, Row], Item]  # raises KeyError, ValueError, TypeError … for what is no such row
    metrics: tuple[Metric, ...]  # the first is the one that is meant when one number is given
    separate_tokenization: bool = False  # context and ending become tokens each by itself, as in build-nanogpt


def hellaswag(number: int, row: Row) -> Item:
    """Context and ending as they stand (build-nanogpt, hellaswag.py)."""
    endings = tuple(f" {ending}" for ending in four_endings(row))
    return same_context(number, row["ctx"], endings, label_of(row["label"], 4), kind_of_source(row))


def hellaswag_cleaned(number: int, row: Row) -> Item:
    """Preceded by the activity, without WikiHow's brackets (lm-eval's hellaswag)."""
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    endings = tuple(f" {without_brackets(ending)}" for ending in four_endings(row))
    return same_context(number, without_brackets(context), endings, label_of(row["label"], 4), kind_of_source(row))


def without_brackets(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def four_endings(row: Row) -> list[str]:
    endings = row["endings"]
    if not isinstance(endings, list) or len(endings) != 4 or not all(isinstance(text, str) for text in endings):
        raise ValueError("endings are not four texts")
    return endings


def kind_of_source(row: Row) -> str:
    """'activitynet' or 'wikihow', whose texts differ much in length."""
    return str(row.get("source_id", "")).partition("~")[0]


def arc(number: int, row: Row) -> Item:
    choices = row["choices"]
    label = choices["label"].index(row["answerKey"].strip())
    return same_context(number, f"Question: {row['question']}\nAnswer:", spaced(choices["text"]), label)


def openbookqa(number: int, row: Row) -> Item:
    choices = row["choices"]
    return same_context(
        number, row["question_stem"], spaced(choices["text"]), choices["label"].index(row["answerKey"].strip())
    )


def piqa(number: int, row: Row) -> Item:
    endings = spaced((row["sol1"], row["sol2"]))
    return same_context(number, f"Question: {row['goal']}\nAnswer:", endings, label_of(row["label"], 2))


def sciq(number: int, row: Row) -> Item:
    endings = spaced([row[key] for key in ("distractor1", "distractor2", "distractor3", "correct_answer")])
    return same_context(number, f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:", endings, 3)


def social_iqa(number: int, row: Row) -> Item:
    endings = spaced([row[key] for key in ("answerA", "answerB", "answerC")])
    return same_context(
        number, f"Q: {row['context']} {row['question']}\nA:", endings, label_of(row["label"], 3, first=1)
    )


def boolq(number: int, row: Row) -> Item:
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return same_context(number, context, (" no", " yes"), int(row["answer"]))


def winogrande(number: int, row: Row) -> Item:
    """Which of two names goes into the gap: judged by what follows it, the same for both."""
    before, gap, after = row["sentence"].partition("_")
    if not gap:
        raise ValueError("the sentence has no gap")
    contexts = (before + row["option1"], before + row["option2"])
    return Item(number, "", contexts, (f" {after.strip()}",) * 2, label_of(row["answer"], 2, first=1))


def same_context(number: int, context: str, endings: Sequence[str], label: int, kind: str = "") -> Item:
    if not isinstance(context, str):
        raise ValueError("the context is no text")
    return Item(number, kind, (context,) * len(endings), tuple(endings), label)


def spaced(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(f" {text}" for text in texts)


def label_of(value: Any, choices: int, first: int = 0) -> int:
    """The right ending's number, counted from 0. Labels are numbers in some files and texts in others."""
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip().isdecimal():
        raise ValueError(f"the label {value!r} is no number")
    label = int(value) - first
    if not 0 <= label < choices:
        raise ValueError(f"the label {value!r} is not one of {choices}")
    return label


HELLASWAG_FILE = "hellaswag/none/validation/data-00000-of-00001.arrow"
HELLASWAG_SHA256 = "5d21a8cf3f95280f2916128ed480c6b518a11aacb18b1ea200eefd8c0b92c16b"
NORMED = (BY_CHARACTER, BY_BYTE, BY_SUM)

TASKS = {
    task.name: task
    for task in (
        Task(
            "hellaswag",
            "which ending fits, as build-nanogpt asks; validation split",
            HELLASWAG_FILE,
            HELLASWAG_SHA256,
            hellaswag,
            (BY_TOKEN, BY_SUM, BY_BYTE),
            separate_tokenization=True,
        ),
        Task(
            "hellaswag_lm_eval",
            "which ending fits, as lm-eval asks; validation split",
            HELLASWAG_FILE,
            HELLASWAG_SHA256,
            hellaswag_cleaned,
            NORMED,
        ),
        Task(
            "arc_easy",
            "science questions of schools; validation split (lm-eval takes the test split)",
            "ai2_arc/ARC-Easy/validation/data-00000-of-00001.arrow",
            "44acbea3816c25c21610ca390fbe567dc3da48c8b5b91391224562636872474b",
            arc,
            NORMED,
        ),
        Task(
            "arc_challenge",
            "harder ones; validation split (lm-eval takes the test split)",
            "ai2_arc/ARC-Challenge/validation/data-00000-of-00001.arrow",
            "4cf59b321066b627168d8a7b4c0ddeb5c29b5db6a8083056871baa943d5b0c90",
            arc,
            NORMED,
        ),
        Task(
            "piqa",
            "which of two ways to a goal works; validation split",
            "piqa/plain_text/validation/data-00000-of-00001.arrow",
            "6e14731c78016adc6a5738d661111f5cb4c6bce461c454561eb66be4abc39222",
            piqa,
            NORMED,
        ),
        Task(
            "sciq",
            "science questions with a passage; validation split (lm-eval takes the test split)",
            "sciq/none/validation/data-00000-of-00001.arrow",
            "656cdf16f40617360683b039b8c2a2b48b479be06d1df5c8b023afbb648da9bd",
            sciq,
            NORMED,
        ),
        Task(
            "winogrande",
            "which name fits into the gap; validation split",
            "winogrande/winogrande_xl/validation/data-00000-of-00001.arrow",
            "992af8404b202ada4356228ed2ebb27f10495126efdf78678ced33e94e82b830",
            winogrande,
            (BY_SUM,),
        ),
        Task(
            "openbookqa",
            "elementary science; validation split (lm-eval takes the test split)",
            "openbookqa/main/validation/data-00000-of-00001.arrow",
            "07155b012c9420605fc5677a589ba673f3aa9122c5e8408f5c3f0f320b88690f",
            openbookqa,
            NORMED,
        ),
        Task(
            "social_iqa",
            "what people do and feel; validation split",
            "social_i_qa/none/validation/data-00000-of-00001.arrow",
            "807ba7d328427ea2ff04d8cb520ccfb2d8ef269aa9e62d27ed79bd6c1345c838",
            social_iqa,
            (BY_SUM,),
        ),
        Task(
            "boolq",
            "yes or no, after a passage; validation split",
            "boolq/none/validation/data-00000-of-00001.arrow",
            "f858020576452e706b602bf9ad28e09d509e6dab4c97cb01a2202a2472c9afc9",
            boolq,
            (BY_SUM,),
        ),
    )
}

# HellaSwag's validation set as its authors published it (Zellers et al. 2019, arXiv 1905.07830): JSON lines.
AUTHORS_SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
LABELLED = ["split", "split_type", "label", "endings", "source_id"]
AUTHORS_KEYS = {
    "activitynet": ["ind", "activity_label", "ctx_a", "ctx_b", "ctx", *LABELLED],
    "wikihow": ["ind", "ctx", "activity_label", "ctx_a", "ctx_b", *LABELLED],
}


def is_authors_hellaswag(rows: Sequence[Row]) -> bool:
    """Whether rows, wherever they come from, are the 10,042 of the authors' file: written their way, its SHA-256."""
    digest = hashlib.sha256()
    try:
        for row in rows:
            line = {key: row[key] for key in AUTHORS_KEYS[kind_of_source(row)]}
            digest.update(json.dumps({**line, "label": int(row["label"])}).encode() + b"\n")
    except (KeyError, ValueError, TypeError):
        return False
    return digest.hexdigest() == AUTHORS_SHA256


def stratified(items: Sequence[Item], count: int) -> list[Item]:
    """A fixed choice of so many items, each kind in its proportion, in the order of the whole.

    Which ones depends on the items' texts alone, not on their order or on a seed, and fewer are among more of a kind.
    """
    if not 0 < count < len(items):
        return list(items)
    by_kind: dict[str, list[Item]] = {}
    for item in items:
        by_kind.setdefault(item.kind, []).append(item)
    exact = {kind: count * len(members) / len(items) for kind, members in by_kind.items()}
    shares = {kind: int(share) for kind, share in exact.items()}
    largest_rest = sorted(exact, key=lambda kind: (shares[kind] - exact[kind], kind))
    for kind in largest_rest[: count - sum(shares.values())]:
        shares[kind] += 1
    chosen = [
        item for kind, members in by_kind.items() for item in sorted(members, key=lambda i: i.digest)[: shares[kind]]
    ]
    return sorted(chosen, key=lambda item: item.number)
