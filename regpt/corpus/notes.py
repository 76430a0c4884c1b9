"""Wording of the notes of a preparation: which files were left out, and what the text holds."""

from collections.abc import Iterator, Sequence
from pathlib import PurePath

from regpt.base.format import shown
from regpt.corpus.encodings import NOT_UTF8, UNMARKED_ENCODINGS, unmarked
from regpt.corpus.file_kinds import ADVICE
from regpt.corpus.selection import Listing, Selection, by_suffix
from regpt.data import tokenizer

NAMES_SHOWN = 3  # of each group of files
CONVERSIONS = {
    NOT_UTF8: "iconv -f WINDOWS-1252 -t UTF-8, for example",
    **{unmarked(name): f"iconv -f {name} -t UTF-8" for name in UNMARKED_ENCODINGS},
}


def notes_about(selection: Selection) -> Iterator[str]:
    """Yield a note for each group of files that the user may not expect to be left out, or to be read."""
    if selection.documentation:
        yield (
            f"not read, because tables lie next to them: {counted(selection.documentation, 'text file')};"
            " if they belong to the text, move them to a folder of their own"
        )
    without_advice: list[PurePath] = []
    for suffix, paths in by_suffix(selection.unread):
        if advice := ADVICE.get(suffix):
            kind = f"{suffix} file" if suffix else "file without a suffix"
            yield f"not read: {counted(paths, kind)}; {advice}"
        else:
            without_advice += paths
    if without_advice:
        yield f"not read: {counted(without_advice, 'other file')}"
    if selection.held_out:
        yield (
            f"the text includes {counted(selection.held_out, 'file')} named as test or validation data;"
            " to leave them out, set data.source to the folder or file of the training data"
        )


def counted(paths: Sequence[PurePath], kind: str) -> str:
    """Write '2 .csv files (a.csv, b.csv)', with the first names only."""
    names = ", ".join(shown(path) for path in paths[:NAMES_SHOWN]) + (", …" if len(paths) > NAMES_SHOWN else "")
    head, _, rest = kind.partition("file")
    return f"{len(paths):,} {head}file{'s' * (len(paths) != 1)}{rest} ({names})"


def notes_about_links(listing: Listing) -> Iterator[str]:
    if listing.repeated_links:
        names = ", ".join(shown(path) for path in listing.repeated_links[:NAMES_SHOWN])
        yield f"not followed, because their folders are read already: {len(listing.repeated_links):,} links ({names})"


def note_about_end_marks(name: str) -> str:
    return (
        f"{name}: holds {tokenizer.END_OF_TEXT_NAME} as text, which is encoded as ordinary characters;"
        f" to cut documents there: data.document_separator='{tokenizer.END_OF_TEXT_NAME}'"
    )


def note_about_refused(reason: str, count: int, names: Sequence[str]) -> str:
    """Write how many documents were left out for a reason, in which files first, and what to do about them."""
    more = ", …" if len(names) == NAMES_SHOWN and count > NAMES_SHOWN else ""
    first = f" ({', '.join(names)}{more})" if names else ""
    advice = f"; convert such files: {CONVERSIONS[reason]}" if reason in CONVERSIONS else ""
    return f"{count:,} left out: {reason}{first}{advice}"
