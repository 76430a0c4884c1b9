"""Compare `regpt prepare`, from parquet to verified shards, with a plain pool of processes.

    python -m benchmarks.prepare [--megabytes N] [FILE.parquet …]

The text is read from the files, or is the built-in corpus, repeated up to N megabytes. Both sides run as new processes
in turn, with one worker per core. Time is from start to exit; memory is the proportional set size of all processes of a
side, sampled in a round of its own, because sampling slows them. Both write the same tokens; the plain pool does not
hash them.
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.history import Goal, Section, measure_of
from regpt.corpus.corpora import documents, open_corpus

ROUNDS = 3
MEGABYTES = 800
FILES = 4
ROW_GROUP = 1000
SHARD_TOKENS = 10_000_000
GOALS = {"tiktoken": Goal(1.5), "gigatoken": Goal(10.0)}


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__.splitlines()[0])
    options.add_argument("--megabytes", type=int, default=MEGABYTES, help=f"size of the text (default: {MEGABYTES})")
    options.add_argument("files", nargs="*", metavar="FILE", help="parquet file with a column 'text'")
    asked = options.parse_args()
    report(asked.megabytes, asked.files)


def report(megabytes: int = MEGABYTES, files: Sequence[str] = ()) -> Section:
    with tempfile.TemporaryDirectory() as folder:
        text_bytes, documents_in_all = write_text(Path(folder) / "text", files, megabytes * 1_000_000)
        commands = {"plain": plain(Path(folder)), **{backend: ours(Path(folder), backend) for backend in GOALS}}
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        memory: dict[str, int] = dict.fromkeys(commands, 0)
        for number, (name, command) in itertools.product(range(1 + ROUNDS), commands.items()):
            out = Path(folder) / f"{name}-{number}"
            words = [word.replace("OUT", str(out)) for word in command]
            if number:
                seconds[name].append(seconds_of(words))
            else:
                memory[name] = peak_memory(words)
            if name != "plain":
                check_same(Path(folder) / "plain-0", out)
            if number:
                shutil.rmtree(out)
    measures = []
    lines = [
        "| | time | MB/s of text | ratio | goal | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, of_name in seconds.items():
        ratios = [theirs / mine for theirs, mine in zip(seconds["plain"], of_name, strict=True)]
        goal = str(GOALS[name]) if name in GOALS else ""
        if name != "plain":
            measures.append(measure_of(f"preparing with {name}: plain pool / regpt", ratios, GOALS[name]))
        lines.append(
            f"| {'plain pool' if name == 'plain' else f'regpt, {name}'} | {statistics.median(of_name):.1f} s"
            f" | {text_bytes / statistics.median(of_name) / 1e6:.1f}"
            f" | **{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
            f" | {goal} | {memory[name] / 1e6:,.0f} MB |"
        )
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    what = f"{Path(files[0]).name}{more}" if files else "the built-in corpus"
    about = (
        f"{text_bytes / 1e6:,.0f} MB of text ({what}, repeated) in {documents_in_all:,} documents and {FILES} parquet"
        f" files, {os.cpu_count()} workers on each side, {ROUNDS} rounds in turn. Repeated text favors gigatoken, which"
        " caches words."
    )
    text = "\n".join([about, "", *lines])
    print(text, flush=True)
    return Section("Preparing data", text, tuple(measures))


def write_text(folder: Path, files: Sequence[str], wanted: int) -> tuple[int, int]:
    """Write parquet files with about `wanted` bytes of text; return (bytes, documents)."""
    folder.mkdir()
    if files:
        texts = [text for file in files for text in pq.read_table(file, columns=["text"]).column(0).to_pylist()]
    else:
        texts = [text for part in open_corpus("stdlib", "text").parts for text in documents(part, Counter())]
    size = sum(len(text.encode()) for text in texts)
    times = max(1, round(wanted / size / FILES))
    for number in range(FILES):
        first = number * len(texts) // FILES  # each file starts with another document
        table = pa.table({"text": pa.array((texts[first:] + texts[:first]) * times, pa.large_string())})
        pq.write_table(table, folder / f"{number:03d}.parquet", row_group_size=ROW_GROUP, compression="zstd")
    return size * times * FILES, len(texts) * times * FILES


def plain(folder: Path) -> list[str]:
    files = [str(folder / "text" / f"{number:03d}.parquet") for number in range(FILES)]
    return [sys.executable, "-m", "benchmarks.plain_pool", "OUT", str(os.cpu_count()), str(SHARD_TOKENS), *files]


def ours(folder: Path, backend: str) -> list[str]:
    settings = {
        "data.source": folder / "text",
        "data.path": "OUT",
        "data.tokenizer_backend": backend,
        "data.workers": os.cpu_count(),
        "data.validation_tokens": SHARD_TOKENS,
        "data.shard_tokens": SHARD_TOKENS,
    }
    return [sys.executable, "-m", "regpt", "prepare", "gpt2-modern", *(f"{k}={v}" for k, v in settings.items())]


def seconds_of(command: list[str]) -> float:
    """Run a command; return the seconds until it has ended."""
    began_at = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began_at


def peak_memory(command: list[str]) -> int:
    """Run a command; return the peak bytes of all its processes."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return peak


def memory_of(pid: int) -> int:
    """Return the proportional set size of a process and its descendants, in bytes."""
    total = 0
    try:
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:
        pass
    return total


def check_same(theirs: Path, mine: Path) -> None:
    """Exit with an error unless both sides wrote the same tokens."""
    in_order = sorted(mine.glob("*.npy"), key=lambda path: (path.name.startswith("train"), path.name))
    for one, other in zip(sorted(theirs.glob("*.npy")), in_order, strict=True):
        if not np.array_equal(np.load(one, mmap_mode="r"), np.load(other, mmap_mode="r")):
            raise SystemExit(f"{other} and {one} have different tokens")


if __name__ == "__main__":
    main()
