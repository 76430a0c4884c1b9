"""Multiple-choice tasks: how a row of each public dataset becomes an item, and by which metrics the task is scored.

The wording of all tasks but `hellaswag` is that of EleutherAI's lm-evaluation-harness (lm-eval 0.4.13), zero-shot, so
that results are comparable with its own. tests/tasks/test_catalog.py compares every task with lm-eval.
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
    """A question with several choices, one of which is correct."""

    number: int  # of its row in the dataset
    kind: str  # source of the text, where a dataset has several
    contexts: tuple[str, ...]  # one per choice; mostly all the same
    choices: tuple[str, ...]  # each with the space before it
    label: int  # index of the correct choice

    @property
    def digest(self) -> str:
        return sha256_of_json([self.contexts, self.choices, self.label])


@dataclass(frozen=True)
class Metric:
    """The quantity by which a model's choice is selected: the choice with the lowest value is its prediction."""

    name: str
    description: str
    name_elsewhere: str  # of an accuracy by this metric in other tools


BY_TOKEN = Metric("by_token", "mean loss per token", "build-nanogpt's acc_norm")
BY_SUM = Metric("by_sum", "summed loss", "acc")
BY_CHARACTER = Metric("by_character", "loss per character", "lm-eval's acc_norm")
BY_BYTE = Metric("by_byte", "loss per byte", "lm-eval's acc_bytes")
METRICS = {metric.name: metric for metric in (BY_TOKEN, BY_SUM, BY_CHARACTER, BY_BYTE)}


@dataclass(frozen=True)
class Task:
    """A dataset of items, its wording and its metrics."""

    name: str
    title: str  # for people
    about: str
    file: str  # in the data package
    sha256: str  # of that file
    item: Callable[[int, Row], Item]  # raises KeyError, ValueError, TypeError … for a row of another form
    metrics: tuple[Metric, ...]  # the first is the headline
    separate_tokenization: bool = False  # context and choice are tokenized separately, as in build-nanogpt


def hellaswag(number: int, row: Row) -> Item:
    """Use context and choices unchanged, as in hellaswag.py of build-nanogpt."""
    choices = with_space(hellaswag_choices(row))
    return same_context(number, row["ctx"], choices, label_of(row["label"], 4), source_kind(row))


def hellaswag_cleaned(number: int, row: Row) -> Item:
    """Put the activity first and remove WikiHow's brackets, as in lm-eval's hellaswag."""
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    choices = with_space(without_brackets(choice) for choice in hellaswag_choices(row))
    return same_context(number, without_brackets(context), choices, label_of(row["label"], 4), source_kind(row))


def without_brackets(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag_choices(row: Row) -> list[str]:
    choices = row["endings"]
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(text, str) for text in choices):
        raise ValueError("endings are not four texts")
    return choices


def source_kind(row: Row) -> str:
    """Return 'activitynet' or 'wikihow', whose texts differ much in length."""
    return str(row.get("source_id", "")).partition("~")[0]


def arc(number: int, row: Row) -> Item:
    choices = row["choices"]
    label = choices["label"].index(row["answerKey"].strip())
    return same_context(number, f"Question: {row['question']}\nAnswer:", with_space(choices["text"]), label)


def openbookqa(number: int, row: Row) -> Item:
    choices = row["choices"]
    label = choices["label"].index(row["answerKey"].strip())
    return same_context(number, row["question_stem"], with_space(choices["text"]), label)


def piqa(number: int, row: Row) -> Item:
    choices = with_space((row["sol1"], row["sol2"]))
    return same_context(number, f"Question: {row['goal']}\nAnswer:", choices, label_of(row["label"], 2))


def sciq(number: int, row: Row) -> Item:
    choices = with_space(row[key] for key in ("distractor1", "distractor2", "distractor3", "correct_answer"))
    return same_context(number, f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:", choices, 3)


def social_iqa(number: int, row: Row) -> Item:
    choices = with_space(row[key] for key in ("answerA", "answerB", "answerC"))
    label = label_of(row["label"], 3, first=1)
    return same_context(number, f"Q: {row['context']} {row['question']}\nA:", choices, label)


def boolq(number: int, row: Row) -> Item:
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return same_context(number, context, (" no", " yes"), int(row["answer"]))


def winogrande(number: int, row: Row) -> Item:
    """Put each of two names into the gap. The text after the gap is the choice, the same for both."""
    before, gap, after = row["sentence"].partition("_")
    if not gap:
        raise ValueError("the sentence has no gap")
    contexts = (before + row["option1"], before + row["option2"])
    return Item(number, "", contexts, (f" {after.strip()}",) * 2, label_of(row["answer"], 2, first=1))


def same_context(number: int, context: str, choices: Sequence[str], label: int, kind: str = "") -> Item:
    if not isinstance(context, str):
        raise ValueError("the context is not text")
    return Item(number, kind, (context,) * len(choices), tuple(choices), label)


def with_space(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the texts with a space before each, because GPT-2's tokens start with their space."""
    return tuple(f" {text}" for text in texts)


def label_of(value: Any, n_choices: int, first: int = 0) -> int:
    """Return the index of the correct choice from a label that counts from `first`, as a number or as text."""
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip().isdecimal():
        raise ValueError(f"the label {value!r} is not a number")
    label = int(value) - first
    if not 0 <= label < n_choices:
        raise ValueError(f"the label {value!r} is not one of {n_choices}")
    return label


HELLASWAG_ITEMS = 10_042  # of the validation split
HELLASWAG_FILE = "hellaswag/none/validation/data-00000-of-00001.arrow"
HELLASWAG_SHA256 = "5d21a8cf3f95280f2916128ed480c6b518a11aacb18b1ea200eefd8c0b92c16b"
NORMALIZED_METRICS = (BY_CHARACTER, BY_BYTE, BY_SUM)

TASKS = {
    task.name: task
    for task in (
        Task(
            "hellaswag",
            "HellaSwag",
            "choose the ending, worded as in build-nanogpt; validation split",
            HELLASWAG_FILE,
            HELLASWAG_SHA256,
            hellaswag,
            (BY_TOKEN, BY_SUM, BY_BYTE),
            separate_tokenization=True,
        ),
        Task(
            "hellaswag_lm_eval",
            "HellaSwag (lm-eval)",
            "choose the ending, worded as in lm-eval; validation split",
            HELLASWAG_FILE,
            HELLASWAG_SHA256,
            hellaswag_cleaned,
            NORMALIZED_METRICS,
        ),
        Task(
            "arc_easy",
            "ARC-Easy",
            "school science questions; validation split (lm-eval uses the test split)",
            "ai2_arc/ARC-Easy/validation/data-00000-of-00001.arrow",
            "44acbea3816c25c21610ca390fbe567dc3da48c8b5b91391224562636872474b",
            arc,
            NORMALIZED_METRICS,
        ),
        Task(
            "arc_challenge",
            "ARC-Challenge",
            "harder school science questions; validation split (lm-eval uses the test split)",
            "ai2_arc/ARC-Challenge/validation/data-00000-of-00001.arrow",
            "4cf59b321066b627168d8a7b4c0ddeb5c29b5db6a8083056871baa943d5b0c90",
            arc,
            NORMALIZED_METRICS,
        ),
        Task(
            "piqa",
            "PIQA",
            "which of two ways reaches a goal; validation split",
            "piqa/plain_text/validation/data-00000-of-00001.arrow",
            "6e14731c78016adc6a5738d661111f5cb4c6bce461c454561eb66be4abc39222",
            piqa,
            NORMALIZED_METRICS,
        ),
        Task(
            "sciq",
            "SciQ",
            "science questions with a passage; validation split (lm-eval uses the test split)",
            "sciq/none/validation/data-00000-of-00001.arrow",
            "656cdf16f40617360683b039b8c2a2b48b479be06d1df5c8b023afbb648da9bd",
            sciq,
            NORMALIZED_METRICS,
        ),
        Task(
            "winogrande",
            "WinoGrande",
            "which name fits the gap; validation split",
            "winogrande/winogrande_xl/validation/data-00000-of-00001.arrow",
            "992af8404b202ada4356228ed2ebb27f10495126efdf78678ced33e94e82b830",
            winogrande,
            (BY_SUM,),
        ),
        Task(
            "openbookqa",
            "OpenBookQA",
            "elementary science; validation split (lm-eval uses the test split)",
            "openbookqa/main/validation/data-00000-of-00001.arrow",
            "07155b012c9420605fc5677a589ba673f3aa9122c5e8408f5c3f0f320b88690f",
            openbookqa,
            NORMALIZED_METRICS,
        ),
        Task(
            "social_iqa",
            "Social IQa",
            "what people do and feel; validation split",
            "social_i_qa/none/validation/data-00000-of-00001.arrow",
            "807ba7d328427ea2ff04d8cb520ccfb2d8ef269aa9e62d27ed79bd6c1345c838",
            social_iqa,
            (BY_SUM,),
        ),
        Task(
            "boolq",
            "BoolQ",
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
LAST_KEYS = ["split", "split_type", "label", "endings", "source_id"]
AUTHORS_KEYS = {
    "activitynet": ["ind", "activity_label", "ctx_a", "ctx_b", "ctx", *LAST_KEYS],
    "wikihow": ["ind", "ctx", "activity_label", "ctx_a", "ctx_b", *LAST_KEYS],
}


def is_authors_hellaswag(rows: Sequence[Row]) -> bool:
    """Return whether rows from any file are the authors' 10,042: written in their format, they have its SHA-256."""
    digest = hashlib.sha256()
    try:
        for row in rows:
            line = {key: row[key] for key in AUTHORS_KEYS[source_kind(row)]}
            digest.update(json.dumps({**line, "label": int(row["label"])}).encode() + b"\n")
    except (KeyError, ValueError, TypeError):
        return False
    return digest.hexdigest() == AUTHORS_SHA256


def stratified_subset(items: Sequence[Item], count: int) -> list[Item]:
    """Return a fixed subset of `count` items with each kind in proportion, in the order of the dataset.

    The subset depends on the texts of the items alone, not on their order or a seed; of one kind, a smaller subset is
    part of a larger one. All items are returned for `count` 0 or above their number.
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
