"""Run every benchmark and write benchmarks/results.md."""

import argparse
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import checkpoints, hellaswag, loader, plan, prepare, ranks, step

RESULTS = Path(__file__).parent / "results.md"


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("--output", type=Path, default=RESULTS, help="file to write (default: benchmarks/results.md)")
    options.add_argument(
        "--text", nargs="+", default=[], metavar="FILE", help="parquet files to prepare (default: the built-in corpus)"
    )
    arguments = options.parse_args()
    output = arguments.output
    parts = [
        heading(),
        help_speed(),
        *prepare.report(files=arguments.text),
        *loader.report(),
        *step.report(),
        *checkpoints.report(),
        *ranks.report(),
        *hellaswag.report(),
        *plan.report(),
    ]
    output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"results: {output}")
    return 0


def heading() -> str:
    has = torch.cpu.get_capabilities()
    features = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if has.get(name)]
    return "\n".join(
        [
            "# Results",
            "",
            "Written by `make bench`. Quote the ratios: both programs run in turn, so a slower machine slows both.",
            "",
            f"- {datetime.now(UTC):%Y-%m-%d}",
            f"- {has.get('cpu_name', platform.processor())} ({', '.join(features)}), {torch.get_num_threads()} threads",
            f"- Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}",
        ]
    )


def help_speed(runs: int = 10) -> str:
    """Measure the median time of a `regpt --help` process."""
    import time

    seconds = []
    for _ in range(runs):
        started_at = time.perf_counter()
        subprocess.run([sys.executable, "-m", "regpt", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started_at)
    text = f"`regpt --help`: {sorted(seconds)[runs // 2]:.3f} s (median of {runs}; goal: under 0.4 s)"
    print(text, flush=True)
    return f"## The command\n\n{text}"


if __name__ == "__main__":
    sys.exit(main())
