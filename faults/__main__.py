"""Run all fault experiments and write docs/faults.md."""

import argparse
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from faults.catalog import ALL
from faults.laboratory import Baseline, Experiment, Laboratory, Result

PAGE = Path(__file__).parent.parent / "docs" / "faults.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run the short form of each kind of fault; write nothing")
    parser.add_argument("--output", type=Path, default=PAGE, help="file to write (default: docs/faults.md)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run these experiments; write nothing")
    options = parser.parse_args()
    names = {experiment.name for experiment in ALL}
    if unknown := set(options.only) - names:
        parser.error(f"unknown experiment: {', '.join(sorted(unknown))}; known: {', '.join(sorted(names))}")
    experiments = [one for one in ALL if (one.name in options.only if options.only else one.quick or not options.quick)]
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lab = Laboratory(Baseline(Path(folder) / "baseline"), Path(folder) / "lab")
        results, failed = run_experiments(lab, experiments, options.quick)
    minutes = (time.monotonic() - began_at) / 60
    print(f"{len(results)} passed, {failed} failed, {minutes:.1f} minutes")
    if not options.quick and not options.only and not failed:
        options.output.write_text(page(results, minutes), encoding="utf-8")
        print(f"results: {options.output}")
    return 1 if failed else 0


def run_experiments(lab: Laboratory, experiments: Sequence[Experiment], quick: bool) -> tuple[list[Result], int]:
    """Run experiments one by one; return the results and the number of failures."""
    results: list[Result] = []
    failed = 0
    for experiment in experiments:
        began_at = time.monotonic()
        try:
            result = experiment.run(lab, experiment.quick_times if quick else experiment.times)
        except AssertionError:
            failed += 1
            print(f"FAILED  {experiment.name}")
            traceback.print_exc()
            continue
        results.append(result)
        print(f"passed  {result.times:>4} x  {result.action} ({time.monotonic() - began_at:.1f} s)", flush=True)
    return results, failed


def page(results: list[Result], minutes: float) -> str:
    """Return the text of docs/faults.md."""
    capabilities = torch.cpu.get_capabilities()
    rows = [f"| {r.action} | {r.times} | {r.outcome} |" for r in results]
    return "\n".join(
        [
            *INTRODUCTION,
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {capabilities.get('cpu_name', platform.processor())}, Python"
            f" {platform.python_version()}, torch {torch.__version__}, {minutes:.0f} minutes.",
            "",
            "| fault | times | result |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


INTRODUCTION = (
    "# Fault experiments",
    "",
    "`make faults` writes this page. Each experiment of `faults/` disturbs runs of a model with two layers for 40",
    "steps (float32, one thread, dropout). *Bit-identical*: weights, optimizer state, losses, gradient norms, batches,",
    "validations and samples equal those of an undisturbed run. A *bug* is put into regpt itself: the experiments must",
    "detect it.",
)


if __name__ == "__main__":
    sys.exit(main())
