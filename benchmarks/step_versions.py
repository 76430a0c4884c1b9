"""Compare one training step of this tree with that of another commit: one process for each, in turn.

Forward, backward, clipping and fused AdamW on 4,096 tokens, uncompiled, in float32 or with bfloat16 autocast. The other
commit is unpacked to a temporary folder. Only one process works at a time; which goes first alternates.

    python -m benchmarks.step_versions COMMIT --size 7M 124M --precision float32 bfloat16
"""

import argparse
import statistics
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.step import PRECISIONS, Side

TREE = Path(__file__).parents[1]

# Runs in either tree. All names come from its own benchmarks.step, because regpt's modules move.
CHILD = """
import sys, time, torch
from benchmarks import step as there

size, precision = there.SIZES[sys.argv[1]], sys.argv[2]
torch.set_num_threads(there.THREADS)
if hasattr(there, "make_optimizer"):  # before the step had settings
    model = there.GPT(size.model)
    model.initialize(1)
    optimizer = there.make_optimizer(model, there.load_recipe("demo-modern"))
    x, y = there.batch(size)

    def take() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()
else:
    take = there.our_step(size.model, size, precision, "off")
for _ in sys.stdin:
    started_at = time.perf_counter()
    value = take()
    print(time.perf_counter() - started_at, value, flush=True)
"""


def unpack(commit: str, folder: Path) -> None:
    archive = folder / "tree.tar"
    subprocess.run(["git", "archive", "--output", str(archive), commit], cwd=TREE, check=True)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")


def compare(other_tree: Path, size: str, precision: str, rounds: int) -> str:
    """Return one line: seconds of both sides, and the ratio of this tree's to the other's in each round.

    Other programs can slow a step but not speed it up, so the fastest steps are given too.
    """
    with ExitStack() as processes:
        sides = [Side([sys.executable, "-c", CHILD, size, precision], tree) for tree in (TREE, other_tree)]
        for side in sides:
            processes.enter_context(side.process)
            processes.callback(side.process.kill)
        losses = [side.step()[1] for side in sides]  # the warm-up step
        seconds: list[tuple[float, float]] = []
        for index in range(rounds):
            order = (0, 1) if index % 2 == 0 else (1, 0)
            taken = {which: sides[which].step()[0] for which in order}
            seconds.append((taken[0], taken[1]))
    ratios = [mine / other for mine, other in seconds]
    ours, theirs = zip(*seconds, strict=True)
    return (
        f"{size} {precision}: {statistics.median(ours):.3f} s against {statistics.median(theirs):.3f} s,"
        f" ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {rounds} rounds);"
        f" fastest {min(ours):.3f} s against {min(theirs):.3f} s; losses {losses[0]:.7f} and {losses[1]:.7f}"
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("commit", help="the version to compare with")
    options.add_argument("--size", nargs="+", default=["7M", "124M"], metavar="SIZE", help="sizes of benchmarks.step")
    options.add_argument("--precision", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="types of products")
    options.add_argument("--rounds", type=int, default=7, help="steps of each side (default: 7)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        unpack(arguments.commit, Path(folder))
        for size in arguments.size:
            for precision in arguments.precision:
                print(compare(Path(folder), size, precision, arguments.rounds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
