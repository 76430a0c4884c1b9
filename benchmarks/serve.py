"""Measure `regpt serve` with 200 runs, one of them of 40,000 steps: the list, the first paint, an update.

    python -m benchmarks.serve            about a minute; Chromium is measured too if it is installed

The runs are made up and lie in a temporary folder. A page draws an update while it waits for nothing else, so its cost
is the request and the time that the page's thread works for it.
"""

import argparse
import contextlib
import json
import math
import random
import shutil
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regpt.tracking.events import Started
from regpt.tracking.journal import EventRecord, Record, StepRecord, ValidationRecord, to_json
from tests.helpers.browser import NAMES, Page, opened_browser
from tests.helpers.served_runs import served

TRIAL = Path("tests/fixtures/runs/trial-050226")
LONG = "long"
UPDATES = 20
PAINTED = """new Promise((done) => {
  const look = () => document.querySelector('.large path.line') ? done(performance.now()) : requestAnimationFrame(look);
  look();
})"""
REQUESTS = (
    "performance.getEntriesByType('resource').filter((one) => /cursor=\\d/.test(one.name)).map((one) => one.duration)"
)


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    options.add_argument("--runs", type=int, default=200, help="number of runs (default: 200)")
    options.add_argument("--steps", type=int, default=40_000, help="steps of the longest run (default: 40,000)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        make_run(root / LONG, arguments.steps)
        for number in range(arguments.runs - 1):
            make_run(root / f"run-{number:03}", min(1000, arguments.steps))
        with served(root) as (_, port):
            base = f"http://127.0.0.1:{port}"
            print(f"{arguments.runs:,} runs, the longest of {arguments.steps:,} steps")
            measure_api(base, root / LONG, arguments.steps)
        with served(root) as (_, port):
            if any(map(shutil.which, NAMES)):
                measure_page(f"http://127.0.0.1:{port}", root / LONG, arguments.steps + UPDATES)
    return 0


def measure_api(base: str, run: Path, steps: int) -> None:
    """Print the times of requests, on a server that has read nothing yet."""
    report("list, first request", [timed(f"{base}/api/runs")])
    report("list, further requests", [timed(f"{base}/api/runs") for _ in range(UPDATES)])
    report("run, first request", [timed(f"{base}/api/runs/{LONG}")])
    cursor = json.loads(read(f"{base}/api/runs/{LONG}"))["cursor"]
    seconds, sizes = [], []
    for number in range(UPDATES):
        append(run, [step(steps + number + 1)])
        began_at = time.perf_counter()
        answer = read(f"{base}/api/runs/{LONG}?cursor={cursor}")
        seconds.append(time.perf_counter() - began_at)
        sizes.append(len(answer))
        cursor = json.loads(answer)["cursor"]
    report("run, one new step", seconds)
    print(f"  {max(sizes):,} bytes at most")


def measure_page(base: str, run: Path, steps: int) -> None:
    """Print the times of a page in Chromium, on a server that has read nothing yet."""
    with opened_browser() as page:
        page.call("Performance.enable")
        page.open(f"{base}/#/run/{LONG}", 1400, "light")
        report("page, first paint of the run", [page.value(PAINTED) / 1000])
        before, worked = len(page.value(REQUESTS)), task_seconds(page)
        for number in range(10):
            append(run, [step(steps + number + 1)])
            time.sleep(1.5)
        requests = page.value(REQUESTS)[before:]
        report("page, request of an update", [duration / 1000 for duration in requests])
        report("page, its own work for an update", [(task_seconds(page) - worked) / max(1, len(requests))])


def task_seconds(page: Page) -> float:
    """Return the seconds that the page's thread has worked."""
    metrics: list[dict[str, Any]] = page.call("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


def read(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return bytes(answer.read())


def timed(url: str) -> float:
    began_at = time.perf_counter()
    read(url)
    return time.perf_counter() - began_at


def report(what: str, seconds: list[float]) -> None:
    spread = f" (largest of {len(seconds)}: {1000 * max(seconds):,.0f} ms)" if len(seconds) > 1 else ""
    print(f"{what:34} {1000 * statistics.median(seconds):8,.0f} ms{spread}")


def make_run(run: Path, steps: int) -> None:
    """Write a run directory with a recipe, an environment and a journal."""
    run.mkdir(parents=True)
    for name in ("recipe.toml", "environment.json"):
        shutil.copy(TRIAL / name, run)
    append(run, records(steps))


def records(steps: int) -> Iterator[Record]:
    yield EventRecord(step=0, detail=Started(device="cpu"))
    for number in range(1, steps + 1):
        yield step(number)
        if number % 250 == 0:
            yield ValidationRecord(
                step=number, tokens=4096 * number, loss=loss_after(number), windows=64, seconds=1.0, standard_error=0.01
            )


def step(number: int) -> StepRecord:
    noise = random.Random(number)
    return StepRecord(
        step=number,
        tokens=4096 * number,
        loss=loss_after(number) + noise.gauss(0, 0.05),
        gradient_norm=1 + noise.random(),
        learning_rate=6e-4,
        seconds=0.3 + 0.02 * noise.random(),
        batch="1a7efda57b2cbab7",
    )


def loss_after(number: int) -> float:
    return 3 + 8 * math.exp(-number / 500)


def append(run: Path, added: "Iterator[Record] | list[StepRecord]") -> None:
    with contextlib.closing((run / "journal.jsonl").open("a", encoding="utf-8")) as file:
        file.writelines(json.dumps(to_json(record)) + "\n" for record in added)


if __name__ == "__main__":
    raise SystemExit(main())
