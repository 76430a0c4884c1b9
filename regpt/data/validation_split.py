"""The rule that divides a dataset into validation and training: its record in the manifest, and the wording of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from regpt.base.format import percent

FEW_DOCUMENTS = 16  # a mean over fewer documents says little about the text
DOMINANT_SHARE = 0.2  # of the validation tokens, in one document
LARGE_SHARE = 0.2  # of the whole text, in validation tokens
LARGE_HELD_OUT_SHARE = 0.1  # of the whole text, in held-out tokens that validation does not use


class SplitRule(StrEnum):
    """How validation is chosen. The values are those of `data.validation`, except that of imported shards."""

    DOCUMENTS = "documents"
    FIRST_TOKENS = "first_tokens"
    FILES = "files"  # imported shards: their names tell the split
    CONVERSATIONS = "conversations"  # whole ones, of packed rows


class Fallback(StrEnum):
    """Why whole documents could not be held out."""

    FEW_DOCUMENTS = "few_documents"  # less than ten
    LONG_DOCUMENTS = "long_documents"  # too few tokens in documents short enough, or too much held out


class SplitWarning(StrEnum):
    """A reason to read a validation loss with care."""

    FELL_BACK = "fell_back"
    FEW_DOCUMENTS = "few_documents"
    DOMINANT_DOCUMENT = "dominant_document"
    MUCH_HELD_OUT = "much_held_out"
    LARGE_VALIDATION = "large_validation"


@dataclass(frozen=True, kw_only=True)
class ValidationSplit:
    """The manifest's record of the split. Other rules than DOCUMENTS leave most of it empty.

    A document is held out if its hash is below `threshold` and it has at most `longest_eligible` tokens. Equal
    documents have equal hashes, so they are on one side.
    """

    rule: SplitRule
    fallback: Fallback | None = None  # why FIRST_TOKENS replaced DOCUMENTS
    hash: str = ""  # name of the hash function
    threshold: str = ""  # hexadecimal, of 64 bits
    longest_eligible: int = 0  # tokens of a document, with its end token
    tokens_per_document: int = 0  # at most, from the start of each
    documents: int = 0  # different documents in the validation split
    largest_document: int = 0  # validation tokens of the one that contributes most
    held_out_documents: int = 0  # with repeated ones
    held_out_tokens: int = 0  # of these documents; more than the validation split uses, and never trained on
    text_tokens: int = 0  # of the whole text; 0: not recorded, as for imported shards and in earlier versions
    validation_tokens: int = 0

    @property
    def unused_tokens(self) -> int:
        return self.held_out_tokens - self.validation_tokens

    def warnings(self) -> Iterator[SplitWarning]:
        """Yield the reasons to read a validation loss on this split with care."""
        if self.fallback:
            yield SplitWarning.FELL_BACK
        if self.validation_tokens > LARGE_SHARE * self.text_tokens > 0:
            yield SplitWarning.LARGE_VALIDATION
        holds_out = self.rule in (SplitRule.DOCUMENTS, SplitRule.CONVERSATIONS)
        has_few = holds_out and self.documents < FEW_DOCUMENTS
        if has_few:
            yield SplitWarning.FEW_DOCUMENTS
        if self.rule is not SplitRule.DOCUMENTS:
            return
        if not has_few and self.largest_document > DOMINANT_SHARE * self.validation_tokens:
            yield SplitWarning.DOMINANT_DOCUMENT
        if self.unused_tokens > LARGE_HELD_OUT_SHARE * self.text_tokens:
            yield SplitWarning.MUCH_HELD_OUT

    @staticmethod
    def from_json(values: dict[str, Any]) -> "ValidationSplit":
        """Read the manifest's record. Raise TypeError, KeyError or ValueError if it is not one."""
        fallback = values["fallback"]
        return ValidationSplit(
            **{**values, "rule": SplitRule(values["rule"]), "fallback": fallback and Fallback(fallback)}
        )


FIRST_TOKENS = ValidationSplit(rule=SplitRule.FIRST_TOKENS)


def describe_rule(split: ValidationSplit, validation_tokens: int) -> str:
    """Say in one sentence which tokens are validation."""
    if split.rule is SplitRule.FILES:
        return "by the names of the files"
    if split.rule is SplitRule.FIRST_TOKENS:
        return f"the first {validation_tokens} tokens are validation, the rest training"
    if split.rule is SplitRule.CONVERSATIONS:
        return (
            f"{split.held_out_documents:,} whole conversations, drawn by a hash of their tokens, are held out,"
            f" {split.held_out_tokens:,} tokens in all"
        )
    return (
        f"{split.documents:,} whole documents, drawn by a hash of their tokens, are held out; the first"
        f" {split.tokens_per_document:,} tokens of each are validation, {validation_tokens:,} in all;"
        f" {split.unused_tokens:,} held-out tokens are not used"
    )


def describe_fallback(fallback: Fallback) -> str:
    """Say why whole documents could not be held out."""
    if fallback is Fallback.FEW_DOCUMENTS:
        return "the text has fewer than ten documents"
    return "its documents are too long, or too few, for this number of validation tokens"


def describe_warning(split: ValidationSplit, warning: SplitWarning) -> str:
    """Say what is doubtful about the split, and the remedy."""
    if warning is SplitWarning.FELL_BACK:
        assert split.fallback is not None
        return (
            f"validation is the first tokens of the text, because {describe_fallback(split.fallback)};"
            " the rest may differ from them. Cut the text into documents with data.document_separator,"
            " or set a smaller data.validation_tokens"
        )
    if warning is SplitWarning.FEW_DOCUMENTS and split.rule is SplitRule.CONVERSATIONS:
        return (
            f"validation has only {split.documents} different conversations, so its loss says little about others."
            " Set a larger data.validation_tokens"
        )
    if warning is SplitWarning.FEW_DOCUMENTS:
        return (
            f"validation has only {split.documents} documents, so its loss says little about other text."
            " Use more documents, or cut the text with data.document_separator"
        )
    if warning is SplitWarning.DOMINANT_DOCUMENT:
        share = percent(split.largest_document / max(1, split.validation_tokens))
        return f"one document has {share} of the validation tokens. Set a larger data.validation_tokens"
    if warning is SplitWarning.LARGE_VALIDATION:
        share = percent(split.validation_tokens / max(1, split.text_tokens))
        return (
            f"validation takes {split.validation_tokens:,} of the text's {split.text_tokens:,} tokens ({share}), which"
            f" training never reads. Set a smaller data.validation_tokens, such as {split.text_tokens // 10}"
        )
    share = percent(split.unused_tokens / max(1, split.text_tokens))
    return (
        f"{share} of the text is held out but not used, because its documents are long."
        " Cut them with data.document_separator"
    )
