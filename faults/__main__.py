"""Carry out all experiments and write docs/faults.md."""

import argparse
import platform
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import torch

from faults.experiments import EXPERIMENTS, Finding, Laboratory, planted
from faults.ranks import RANK_EXPERIMENTS

PAGE = Path(__file__).parent.parent / "docs" / "faults.md"


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    options.add_argument("--quick", action="store_true", help="each experiment a few times only; writes nothing")
    options.add_argument("--output", type=Path, default=PAGE, help="where to write (default: docs/faults.md)")
    options.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of experiments; writes nothing")
    asked = options.parse_args()
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        findings, failed = carry_out(Laboratory(Path(folder) / "lab"), asked.quick, asked.only)
    minutes = (time.monotonic() - began_at) / 60
    print(f"{len(findings)} passed, {failed} failed, {minutes:.1f} minutes")
    if not asked.quick and not asked.only and not failed:
        asked.output.write_text(page(findings, minutes), encoding="utf-8")
        print(f"written: {asked.output}")
    return 1 if failed else 0


def carry_out(lab: Laboratory, quick: bool, only: list[str]) -> tuple[list[Finding], int]:
    findings: list[Finding] = []
    failed = 0
    for experiment, times, quick_times in [*EXPERIMENTS, *RANK_EXPERIMENTS]:
        began_at = time.monotonic()
        if (quick and not quick_times) or (only and experiment.__name__ not in only):
            continue
        try:
            finding = experiment(lab, quick_times if quick else times)
        except AssertionError:
            failed += 1
            print(f"FAILED {experiment.__name__}")
            traceback.print_exc()
            continue
        findings.append(finding)
        print(f"passed  {finding.times:>4} x  {finding.done} ({time.monotonic() - began_at:.1f} s)", flush=True)
    try:
        for finding in planted(lab) if not quick and not only else ():
            findings.append(finding)
            print(f"seen           {finding.done}", flush=True)
    except AssertionError:
        failed += 1
        traceback.print_exc()
    return findings, failed


def page(findings: list[Finding], minutes: float) -> str:
    has = torch.cpu.get_capabilities()
    rows = [f"| {f.fault} | {f.done} | {f.times} | {f.happened} |" for f in findings]
    return "\n".join(
        [
            "# Faults that were tried",
            "",
            "Written by `make faults`, which carries out every experiment of `faults/experiments.py` and",
            "`faults/ranks.py` on a model of two layers and 40 steps, in float32 on one thread, with dropout; a short",
            "form is part of `make test`.",
            "*The same bits* means that the last weights, the optimizer's state, all losses, gradient norms, batches,",
            "validations and samples equal those of a run that nothing happened to. Planted faults are put into regpt",
            "itself, to see that the experiments notice.",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {has.get('cpu_name', platform.processor())}, Python"
            f" {platform.python_version()}, torch {torch.__version__}, {minutes:.0f} minutes.",
            "",
            "| | what was done | times | what happened |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
