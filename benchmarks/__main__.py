"""Run benchmarks, add what they find to benchmarks/history.json, and write benchmarks/results.md with its plots.

    python -m benchmarks                       every part
    python -m benchmarks --only nanogpt hellaswag
    python -m benchmarks --page                write the page again from the history

The page is written after each part, so that nothing is lost if a later one is stopped.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

from benchmarks import (
    checkpoints,
    endpoint,
    hellaswag,
    loader,
    plan,
    prepare,
    products,
    profile,
    ranks,
    sampling,
    startup,
    step,
)
from benchmarks.history import Section, read_history, record
from benchmarks.results_page import FILE, write_page


def main() -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    options.add_argument("--page", action="store_true", help="measure nothing")
    options.add_argument("--llama-cpp", default="", metavar="PYTHON", help="for sampling, a Python that has xllamacpp")
    options.add_argument(
        "--text", nargs="+", default=[], metavar="FILE", help="parquet files to prepare (default: the built-in corpus)"
    )
    arguments = options.parse_args()
    if arguments.page:
        write_page(read_history())
    else:
        given: dict[str, Callable[[], Section]] = {
            "prepare": partial(prepare.report, files=arguments.text),
            "sampling": partial(sampling.report, arguments.llama_cpp),
        }
        parts = {**PARTS, **given}
        for name in arguments.only:
            print(f"{name} …", flush=True)
            write_page(record(name, parts[name]()))
    print(f"results: {FILE}")
    return 0


PARTS: dict[str, Callable[[], Section]] = {
    "startup": startup.report,
    "prepare": prepare.report,
    "loader": loader.report,
    "nanogpt": partial(step.report, ["nanogpt"]),
    "llama": partial(step.report, ["llama"]),
    "products": products.report,
    "profile": profile.report,
    "checkpoints": checkpoints.report,
    "ranks": ranks.report,
    "hellaswag": hellaswag.report,
    "sampling": sampling.report,
    "endpoint": endpoint.report,
    "plan": plan.report,
}


if __name__ == "__main__":
    sys.exit(main())
