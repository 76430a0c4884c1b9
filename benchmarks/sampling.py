"""Compare decoding one text, greedily, with transformers and llama.cpp: tokens per second.

    python -m benchmarks.sampling                              regpt, with weights in float32 too, and transformers
    python -m benchmarks.sampling --llama-cpp PYTHON           llama.cpp as well; PYTHON has xllamacpp
    python -m benchmarks.sampling --texts MODEL --runs FOLDER  how many texts of a trained model float16 changes

The model has 124M parameters and random weights, which all sides share: transformers reads the directory that regpt
exports, in float32, and llama.cpp the GGUF file, in float16. Prompts are read before the clock starts. Each side is a
process, which is started several times, and they work in turn.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.history import Goal, Measure, Section, measure_of
from regpt.corpus.corpora import embedded_documents
from regpt.data.tokenizer import GPT2_TOKENIZER
from regpt.evaluation.sampling import generate
from regpt.export.directory import ExportOptions
from regpt.export.opened import export_directory, export_file
from regpt.export.precision import Precision
from regpt.generation.decoder import generate_tokens
from regpt.generation.drawing import Request, Sampling
from regpt.generation.half_weights import with_half_weights
from regpt.interop.open_model import LoadedModel, open_model
from regpt.interop.pretrained import load_pretrained
from regpt.machine.env import use_huge_pages
from regpt.model.gpt import GPT
from regpt.recipe.settings import load_recipe

GREEDY = Sampling(temperature=0.0)
NEW_TOKENS = 64
CONTEXTS = (16, 512)  # tokens of the prompt
STARTS = 4  # of each side's process: one differs from the next by up to 10 %
ROUNDS = 12  # of all starts
THREADS = tuple(sorted({1, os.cpu_count() or 1}))
GOALS = {"transformers": Goal(3.0), "llama.cpp": Goal(0.8)}  # regpt's tokens/s, divided by theirs
TEXTS, PROMPT_TOKENS, TEXT_TOKENS = 100, 16, 64  # of --texts

Decode = Callable[[list[int], int], float]  # a prompt and the number of new tokens to tokens per second


def regpt_decoding(folder: Path, float32: bool) -> Decode:
    use_huge_pages()  # as the command does
    model, tokenizer = load_pretrained(folder / "exported")
    model = model if float32 else with_half_weights(model)

    def decode(prompt: list[int], new: int) -> float:
        # One token more, whose time, with that of the prompt, does not count.
        tokens = generate_tokens(
            model, torch.tensor([prompt]), [Request(sampling=GREEDY, new_tokens=new + 1)], tokenizer.vocabulary
        )
        next(tokens)
        began_at = time.perf_counter()
        assert len(list(tokens)) == new
        return new / (time.perf_counter() - began_at)

    return decode


def transformers_decoding(folder: Path) -> Decode:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "exported", dtype=torch.float32)

    class Clock:
        """Notes when the prompt and each token are known."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, _: torch.Tensor) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def decode(prompt: list[int], new: int) -> float:
        clock = Clock()
        settings = {"do_sample": False, "min_new_tokens": new + 1, "max_new_tokens": new + 1, "pad_token_id": 0}
        model.generate(torch.tensor([prompt]), streamer=clock, **settings)
        _, first, *_, last = clock.times  # the prompt itself comes first
        return new / (last - first)

    return decode


OURS, OURS_FLOAT32 = "regpt", "regpt --float32"
SIDES: dict[str, Callable[[Path], Decode]] = {
    OURS: lambda folder: regpt_decoding(folder, float32=False),
    OURS_FLOAT32: lambda folder: regpt_decoding(folder, float32=True),
    "transformers": transformers_decoding,
}


def work(side: str, folder: Path, threads: int) -> None:
    """Decode for each request on standard input, as benchmarks/llama_cpp.py does."""
    torch.set_num_threads(threads)
    decode = SIDES[side](folder)
    for line in sys.stdin:
        print(decode(*json.loads(line)), flush=True)


class Side:
    """A process that decodes whenever it is asked."""

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def speed(self, context: int, new: int = NEW_TOKENS) -> float:
        """Return the tokens per second behind a prompt of some tokens."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps([list(range(1000, 1000 + context)), new]), file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self) -> None:
        self.process.communicate()


def report(llama_cpp: str = "") -> Section:
    """Measure and print the speeds of all sides; `llama_cpp` is a Python that has xllamacpp."""
    lines = [
        f"Tokens/s of one text, greedy, {NEW_TOKENS} new tokens, 124M parameters, random weights, medians of"
        f" {ROUNDS} rounds in turn, {STARTS} starts of each process. `python -m benchmarks.sampling`",
        "",
        "| threads | prompt | program | tokens/s | regpt / program | goal |",
        "|---|---|---|---|---|---|",
    ]
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        export_model(folder)
        for threads in THREADS:
            found = measured_rounds(folder, threads, llama_cpp)
            for row, measure in compared(found, threads):
                lines.append(row)
                measures += [measure] if measure else []
                print(row, flush=True)
    return Section("Sampling", "\n".join(lines), tuple(measures))


def export_model(folder: Path) -> None:
    """Write a model with random weights in the formats of all sides."""
    recipe = load_recipe("gpt2-modern")
    model = GPT(recipe.model)
    model.initialize(1)
    loaded = LoadedModel(recipe.name, model.eval(), recipe, GPT2_TOKENIZER)
    export_directory(loaded, folder / "exported", ExportOptions(precision=Precision.FLOAT32, keep_padding=False))
    export_file(loaded, folder / "model.gguf", ExportOptions(precision=Precision.FLOAT16, keep_padding=False))


def measured_rounds(folder: Path, threads: int, llama_cpp: str) -> dict[int, list[dict[str, float]]]:
    """Return the tokens per second of all sides in each round, by length of the prompt."""
    ours = [sys.executable, "-m", "benchmarks.sampling", "--folder", str(folder), "--threads", str(threads)]
    commands = {name: [*ours, "--side", name] for name in SIDES}
    if llama_cpp:
        program = str(Path(__file__).with_name("llama_cpp.py"))
        commands["llama.cpp"] = [llama_cpp, program, str(folder / "model.gguf"), str(threads)]
    rounds: dict[int, list[dict[str, float]]] = {context: [] for context in CONTEXTS}
    for _ in range(STARTS):
        sides = {name: Side(command) for name, command in commands.items()}
        for context in CONTEXTS:
            for side in sides.values():
                side.speed(context, 8)  # warm
            for _ in range(ROUNDS // STARTS):
                rounds[context].append({name: side.speed(context) for name, side in sides.items()})
        for side in sides.values():
            side.end()
    return rounds


def compared(found: dict[int, list[dict[str, float]]], threads: int) -> Iterator[tuple[str, Measure | None]]:
    """Yield a row for each side and length of the prompt, and regpt's ratio to other programs."""
    counted = "1 thread" if threads == 1 else f"{threads} threads"
    for context, rounds in found.items():
        for name in rounds[0]:
            speed = measure_of(name, [speeds[name] for speeds in rounds], unit="tokens/s")
            what = f"sampling, 124M, prompt of {context}, {counted}: regpt / {name}"
            ratio = measure_of(what, [speeds[OURS] / speeds[name] for speeds in rounds], GOALS.get(name))
            shown, goal = ("—", None) if name == OURS else (ratio.shown, ratio.goal)
            row = f"| {threads} | {context} | {name} | {speed.value:.1f} | {shown} | {goal or '—'} |"
            yield row, ratio if name in GOALS else None


def count_texts(where: str, runs: Path) -> None:
    """Print how many greedy texts are the same with weights in float16, and at which token the others part."""
    opened = open_model(where, runs)
    half = with_half_weights(opened.model)
    parted = []
    for _, text in embedded_documents()[:TEXTS]:
        prompt = torch.from_numpy(opened.tokenizer.context(text))[None, :PROMPT_TOKENS]
        exact, rounded = (
            generate(model, prompt, TEXT_TOKENS, GREEDY, vocabulary=opened.tokenizer.vocabulary)[0]
            for model in (opened.model, half)
        )
        if not exact.equal(rounded):
            parted.append(int((exact != rounded).nonzero()[0]) - prompt.shape[1])
    print(f"{TEXTS - len(parted)} of {TEXTS} texts of {TEXT_TOKENS} tokens are the same; the others part at {parted}")


def main() -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--llama-cpp", default="", metavar="PYTHON", help="a Python that has xllamacpp")
    options.add_argument("--texts", metavar="MODEL", help="count the texts that float16 changes, and measure no time")
    options.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="where the model is")
    options.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # be one of the processes
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.side:
        work(arguments.side, arguments.folder, arguments.threads)
    elif arguments.texts:
        count_texts(arguments.texts, arguments.runs)
    else:
        report(arguments.llama_cpp)
    return 0


if __name__ == "__main__":
    sys.exit(main())
