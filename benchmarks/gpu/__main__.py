"""Run the sections in order of worth, each with a deadline, and write gpu.json and gpu.md after each."""

import argparse
import faulthandler
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from benchmarks.gpu import (
    attention,
    ceilings,
    compilation,
    evaluations,
    loss,
    one_rank,
    reference,
    rivals,
    runs,
    saving,
    speed,
    switches,
)
from benchmarks.gpu.bench import FULL, TINY, Bench, free_memory
from benchmarks.gpu.children import Child
from benchmarks.gpu.results import AbsentError, Measured, Outcome, Report, Result, shown
from regpt.machine.compilation import find_obstacle
from regpt.machine.env import use_expandable_segments

PATIENCE = 2.5  # a section may take this many times the seconds planned for it
HANG_SECONDS = 60  # after its deadline, a section that does not react ends the process


@dataclass(frozen=True)
class Section:
    """A part of the benchmark. `seconds` is what it may take on an H100, compilation included: a guess so far."""

    name: str
    title: str
    seconds: float
    measure: Callable[[Bench], Iterator[Measured]]


SECTIONS = (
    Section("ceilings", "bandwidth and products", 15, ceilings.ceilings),
    Section("reference", "losses of a CPU in float32", 25, reference.same_losses_as_cpu),
    Section("loss", "head and loss: parity, time, memory", 40, loss.loss_parity_and_time),
    Section("attention", "implementations of attention", 10, attention.attention_backends),
    Section("compilation", "torch.compile on and off", 45, compilation.compiled_as_eager),
    Section("modern", "gpt2-modern: speed and memory", 90, speed.modern_speed),
    Section("switches", "improvements: compiled as eager", 60, switches.switches),
    Section("evaluations", "validation, scoring, sampling", 15, evaluations.evaluations),
    Section("checkpoints", "saving while training continues", 15, saving.checkpoints),
    Section("classic", "gpt2-classic: speed and memory", 60, speed.classic_speed),
    Section("next", "gpt2-next: speed and memory", 60, speed.next_speed),
    Section("plain", "a plain nanoGPT-like step, side by side", 45, rivals.plain_side_by_side),
    Section("resume", "killed and resumed, to the last bit", 60, runs.exact_resume),
    Section("memory", "out of memory halves the micro-batch", 60, runs.out_of_memory),
    Section("llama", "transformers' Llama, side by side", 45, rivals.llama_side_by_side),
    Section("ranks", "DDP and FSDP on one rank", 45, one_rank.one_rank),
    Section("stopping", "signals and NaN", 30, runs.stopping),
)


class DeadlineError(Exception):
    """Raised in the main thread when a section's time is over."""


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    options.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for gpu.json and gpu.md")
    options.add_argument("--budget", type=float, default=470, metavar="SECONDS", help="time for all sections")
    options.add_argument(
        "--only", nargs="+", choices=[one.name for one in SECTIONS], default=[], metavar="NAME", help="some sections"
    )
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--tiny", action="store_true", help="tiny sizes, without torch.compile: tries every line")
    options.add_argument("--compile", action="store_true", help="with --tiny: use torch.compile")
    options.add_argument("--data", type=Path, help="a prepared dataset (default: synthetic tokens)")
    options.add_argument("--make-reference", action="store_true", help="compute the losses of a CPU and store them")
    arguments = options.parse_args()
    if arguments.make_reference:
        print(reference.make_reference())
        return 0
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA card here; try --device cpu --tiny", file=sys.stderr)
        return 2
    without_network()
    use_expandable_segments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    can_compile = find_obstacle(arguments.device) is None
    sections = [one for one in SECTIONS if not arguments.only or one.name in arguments.only]
    with tempfile.TemporaryDirectory(prefix="regpt-gpu-") as folder:
        bench = Bench(
            kind=arguments.device,
            sizes=TINY if arguments.tiny else FULL,
            folder=Path(folder),
            data=arguments.data and arguments.data.resolve(),
            compiles=can_compile and (arguments.compile or not arguments.tiny),
        )
        report = run_sections(bench, sections, arguments.out, time.monotonic() + arguments.budget)
    print(f"results: {arguments.out / 'gpu.md'}")
    if late := [result.name for result in report.results if result.outcome is Outcome.NO_TIME]:
        print(f"not run, no time left: {', '.join(late)}; run again with\n  {command_for(late, arguments)}")
    return 1 if any(result.outcome.is_bad for result in report.results) else 0


def command_for(names: list[str], arguments: argparse.Namespace) -> str:
    """Return the command that runs these sections on the same device and data, with a folder of its own."""
    words = ["python3", "-m", "benchmarks.gpu", "--out", f"{arguments.out}-{names[0]}", "--device", arguments.device]
    words += [f"--{flag}" for flag in ("tiny", "compile") if getattr(arguments, flag)]
    words += ["--data", str(arguments.data)] if arguments.data else []
    return shlex.join([*words, "--only", *names])


def without_network() -> None:
    """Let requests fail at once: a machine without a network may wait for each of them."""
    os.environ.setdefault("HTTPS_PROXY", "http://127.0.0.1:9")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def run_sections(bench: Bench, sections: list[Section], out: Path, end: float) -> Report:
    """Run one section after another until the moment `end`. One that is planned to take longer is left out."""
    report = Report(ceilings.describe_machine(bench))
    for section in sections:
        result = Result(section.name, section.title)
        report.results.append(result)
        report.write(out)
        left = end - time.monotonic()
        if left < section.seconds:
            result.outcome = Outcome.NO_TIME
        else:
            run_section(bench, section, result, left, lambda: report.write(out))
        report.write(out)
        print(f"{section.name}: {result.outcome.value}, {result.seconds:.1f} s {result.error[:200]}", flush=True)
    if bench.on_card:
        report.machine["clocks after"] = ceilings.query(ceilings.CLOCKS)
        report.write(out)
    return report


def run_section(
    bench: Bench, section: Section, result: Result, left: float, write: Callable[[], None] = lambda: None
) -> None:
    """Run a section within the seconds that are left; record and write its values as they come, its error or end."""
    began_at = time.monotonic()
    seconds = min(left, PATIENCE * section.seconds)
    try:
        with deadline(seconds):
            for measured in section.measure(bench):
                result.measured.append(measured)
                write()
                if measured.passed is False:
                    print(f"  {section.name}: {measured.name} is {shown(measured.value)}", flush=True)
        result.outcome = result.end()
    except AbsentError as missing:
        result.outcome, result.error = Outcome.ABSENT, str(missing)
    except Exception as error:  # the deadline's may come wrapped in one of torch.compile
        traceback.print_exc()
        is_over = time.monotonic() - began_at >= left and result.end() is Outcome.PASSED
        result.outcome = Outcome.NO_TIME if is_over else Outcome.ERROR
        result.error = f"{type(error).__name__}: {error}"[:1000]
    finally:
        Child.kill_all()
    result.seconds = time.monotonic() - began_at
    free_memory()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise DeadlineError in the main thread after `seconds`; end a process that does not react to it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise DeadlineError(f"stopped after {seconds:.0f} s")

    faulthandler.dump_traceback_later(seconds + HANG_SECONDS, exit=True)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    sys.exit(main())
