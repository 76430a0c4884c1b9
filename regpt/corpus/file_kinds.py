"""Kinds of files, known by their names: which are read and how, and what to do with the others."""

from pathlib import PurePath
from typing import Literal

from regpt.corpus.compression import COMPRESSIONS, compression_of

FileKind = Literal["text", "jsonl", "parquet"]

PROSE_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html")
# fmt: off
CODE_SUFFIXES = (
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".js", ".ts", ".rb", ".sh", ".sql",
)
# fmt: on
LINE_SUFFIXES = (".jsonl", ".ndjson")
READABLE_FILES = (
    f".parquet, {', '.join(LINE_SUFFIXES)}, or text such as .txt, .md, .py; also compressed: {', '.join(COMPRESSIONS)}"
)

# What to do with files that may hold text but are not read, by their suffix.
TABLE_ADVICE = (
    "convert them to parquet: pyarrow.parquet.write_table(pyarrow.csv.read_csv('FILE'), 'FILE.parquet') in Python"
)
JSON_ADVICE = "write one object per line: jq -c '.[]' FILE.json > FILE.jsonl"
ARCHIVE_ADVICE = "unpack them"
DOCUMENT_ADVICE = "convert them to text, for example with pandoc or pdftotext"
COLUMNS_ADVICE = "convert them to parquet"
MARKUP_ADVICE = "extract their text to .txt or .jsonl"
TOKENS_ADVICE = "if they are token shards, use them without preparation: regpt data import FOLDER"
SUFFIX_ADVICE = "if they are text, rename them to .txt"
ADVICE = {
    **dict.fromkeys((".csv", ".tsv"), TABLE_ADVICE),
    ".json": JSON_ADVICE,
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), ARCHIVE_ADVICE),
    **dict.fromkeys((".pdf", ".docx", ".doc", ".odt", ".rtf", ".epub", ".mobi"), DOCUMENT_ADVICE),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro"), COLUMNS_ADVICE),
    **dict.fromkeys((".xml", ".warc", ".wet"), MARKUP_ADVICE),
    **dict.fromkeys((".npy", ".bin"), TOKENS_ADVICE),
    **dict.fromkeys(("", ".log", ".htm", ".xhtml", ".org", ".srt"), SUFFIX_ADVICE),
}


def file_kind(path: PurePath) -> FileKind | None:
    """Return how a file is read, by its name; None if regpt cannot read it."""
    is_compressed = compression_of(path) is not None
    inner = path.with_suffix("") if is_compressed else path
    suffix = inner.suffix.lower()
    if suffix in LINE_SUFFIXES or (suffix == ".json" and is_compressed):  # C4's .json.gz hold lines
        return "jsonl"
    if suffix == ".parquet" and not is_compressed:
        return "parquet"
    return "text" if suffix in PROSE_SUFFIXES + CODE_SUFFIXES else None


def unread_suffix(path: PurePath) -> str:
    """Return the suffix by which files that cannot be read are grouped, such as '.tar' of a.tar.gz."""
    inner = path.with_suffix("") if compression_of(path) and path.with_suffix("").suffix else path
    return inner.suffix.lower()
