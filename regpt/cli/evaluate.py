"""The commands evaluate, sample, chat and export."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import DONE, UserError
from regpt.cli.arguments import add_command, add_model, add_overrides, add_sampling, at_least, sampling_of
from regpt.cli.output import print_table
from regpt.distributed.signals import StopRequested
from regpt.machine.env import current_launch

if TYPE_CHECKING:
    from rich.table import Table

    from regpt.cli.arguments import Subparsers
    from regpt.evaluation.results import Result


def add_evaluate(commands: "Subparsers") -> None:
    evaluate = add_command(
        commands,
        "evaluate",
        run_evaluate,
        "score a model on multiple-choice tasks and measure its validation loss",
        "examples: regpt evaluate demo-modern\n"
        "          regpt evaluate runs/gpt2-modern/checkpoints/step_005000 --tasks hellaswag,arc_easy,piqa\n"
        "          regpt evaluate some/hugging-face-directory --tasks validation data.path=data/fineweb-edu-10BT\n"
        "          regpt evaluate gpt2-modern --tasks lambada_openai --lm-eval\n\n"
        "tasks: validation, hellaswag, hellaswag_lm_eval, arc_easy, arc_challenge, piqa, sciq, winogrande,\n"
        "       openbookqa, social_iqa, boolq\n\n"
        "Prints each accuracy with its standard error and its metric. Writes the predictions for every item to\n"
        "RUN/evaluations/step_N, or to evaluations/NAME for other models; `regpt compare` reads them.",
        on_ranks=True,
    )
    add_model(evaluate)
    evaluate.add_argument(
        "--tasks", metavar="A,B", help="tasks (default: hellaswag, and validation if the dataset exists)"
    )
    evaluate.add_argument(
        "--items",
        type=at_least(int, 1),
        default=0,
        metavar="N",
        help="score a fixed subset of N items (default: all); with --lm-eval, the first N",
    )
    evaluate.add_argument("--into", type=Path, metavar="FOLDER", help="write the results to another folder")
    evaluate.add_argument(
        "--lm-eval", action="store_true", help="use tasks of lm-evaluation-harness (pip install 'regpt[lm-eval]')"
    )
    evaluate.add_argument(
        "--include-path", type=Path, metavar="FOLDER", help="with --lm-eval, folder of your own tasks (.yaml)"
    )
    add_overrides(evaluate)


def add_sample(commands: "Subparsers") -> None:
    sample = add_command(
        commands,
        "sample",
        run_sample,
        "let a model continue a prompt",
        "examples: regpt sample demo-modern --prompt 'def main(' --tokens 40 --temperature 0.8\n"
        "          regpt sample demo-modern --step 120 --count 3\n\n"
        "A sample ends after --tokens, or earlier where the model ends its document.",
    )
    add_model(sample)
    sample.add_argument("--prompt", default="", help="text to continue (default: start a new document)")
    sample.add_argument(
        "--tokens", type=at_least(int, 1), default=64, metavar="N", help="new tokens per sample (default: 64)"
    )
    sample.add_argument("--count", type=at_least(int, 1), default=1, metavar="N", help="number of samples (default: 1)")
    add_sampling(sample, temperature=1.0)


def add_chat(commands: "Subparsers") -> None:
    chat = add_command(
        commands,
        "chat",
        run_chat,
        "talk to a model that was trained on conversations",
        "examples: regpt chat gpt2-chat\n"
        "          echo 'What is 2 plus 3?' | regpt chat gpt2-chat --temperature 0\n\n"
        "Ctrl-C stops an answer. Ctrl-C twice, Ctrl-D or `exit` leaves. `/new` begins a new conversation. Each line\n"
        "of a pipe is a question. Where the model's context is full, the oldest turns are forgotten. docs/chat.md\n"
        "says how to train such a model.",
    )
    add_model(chat)
    chat.add_argument("--system", default="", metavar="TEXT", help="instructions that precede the conversation")
    chat.add_argument(
        "--tokens", type=at_least(int, 1), default=256, metavar="N", help="most tokens of an answer (default: 256)"
    )
    add_sampling(chat, temperature=0.7)


def add_export(commands: "Subparsers") -> None:
    export = add_command(
        commands,
        "export",
        run_export,
        "write a model as a Hugging Face directory or a GGUF file, or upload it to the hub",
        "examples: regpt export demo-modern exported    then: AutoModelForCausalLM.from_pretrained('exported')\n"
        "          regpt export demo-modern exported-120 --step 120 --dtype bfloat16\n"
        "          regpt export demo-modern --gguf m.gguf --dtype float16    then: llama-cli -m m.gguf\n"
        "          regpt export demo-modern --to hub:OWNER/NAME --license mit\n\n"
        "The model is read back from the disk. If its logits differ from the model's by more than rounding explains,\n"
        "nothing is left behind.",
    )
    add_model(export)
    export.add_argument("target", type=Path, nargs="?", metavar="DIRECTORY", help="directory to create")
    export.add_argument(
        "--gguf", type=Path, metavar="FILE", help="write a GGUF file for llama.cpp (pip install 'regpt[gguf]')"
    )
    export.add_argument(
        "--to",
        metavar="hub:OWNER/NAME",
        help="upload to the Hugging Face hub (log in with: hf auth login); a new model is private",
    )
    export.add_argument("--public", action="store_true", help="with --to, make a new model public")
    export.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="precision of the weights (default: float32)",
    )
    export.add_argument(
        "--license",
        default="",
        metavar="ID",
        help="licence of the weights for the model card, as the hub names it, such as mit or cc-by-4.0",
    )
    export.add_argument(
        "--keep-padding",
        action="store_true",
        help="keep the rows of the vocabulary that no token uses; other programs may draw them as tokens",
    )


def run_sample(arguments: argparse.Namespace) -> int:
    from regpt.evaluation.sampling import stream_texts
    from regpt.generation.half_weights import with_half_weights
    from regpt.interop.open_model import open_model

    opened = open_model(arguments.model, arguments.runs, step=arguments.step, averaged=arguments.averaged)
    printed = 0  # the text that is being printed
    model = opened.model if arguments.float32 else with_half_weights(opened.model)
    asked = (arguments.prompt, arguments.count, arguments.tokens, sampling_of(arguments))
    for number, piece in stream_texts(model, *asked, opened.tokenizer):
        separators = "\n---\n" * (number - printed)
        print(separators + piece, end="", flush=True)
        printed = number
    print()
    return DONE


def run_chat(arguments: argparse.Namespace) -> int:
    from regpt.evaluation.chat import Chat
    from regpt.evaluation.chat_terminal import answer_lines, answer_terminal
    from regpt.generation.half_weights import with_half_weights
    from regpt.interop.open_model import open_model

    opened = open_model(arguments.model, arguments.runs, step=arguments.step, averaged=arguments.averaged)
    if not arguments.float32:
        opened = replace(opened, model=with_half_weights(opened.model))
    chat = Chat(opened, sampling_of(arguments), arguments.tokens, arguments.system)
    if sys.stdin.isatty():
        answer_terminal(chat)
    else:
        answer_lines(chat, sys.stdin)
    return DONE


def run_evaluate(arguments: argparse.Namespace) -> int:
    from regpt.console.training import Console, EvaluationConsole, quiet_console
    from regpt.distributed.rendezvous import open_rank_group
    from regpt.evaluation.evaluate import default_tasks, evaluate, parse_tasks
    from regpt.evaluation.results import evaluation_dir
    from regpt.interop.open_model import open_model
    from regpt.machine.device import open_device_for_evaluation

    by_harness, tasks = arguments.lm_eval, arguments.tasks
    names = parse_tasks(tasks) if tasks and not by_harness else []
    if arguments.include_path and not by_harness:
        raise UserError("--include-path is for lm-eval's tasks", "add --lm-eval")
    opened = open_model(arguments.model, arguments.runs, arguments.overrides, arguments.step, arguments.averaged)
    device = open_device_for_evaluation(opened.recipe.run)
    into = arguments.into or evaluation_dir(opened)
    try:
        with (
            open_rank_group(device, opened.recipe.run.rank_timeout) as ranks,
            Console() if ranks.is_main else quiet_console() as console,
            console.stoppable(several_ranks=ranks.size > 1),
        ):
            given = (into, device, ranks, arguments.items, EvaluationConsole(console).evaluating)
            if by_harness:
                from regpt.evaluation.lm_eval import evaluate_with_lm_eval

                results = evaluate_with_lm_eval(opened, tasks, *given, arguments.include_path)
            else:
                results = evaluate(opened, names or default_tasks(opened), *given)
    except StopRequested as stopped:
        if current_launch().rank == 0:
            print(f"stopped by {stopped.name}; finished tasks are kept in {into}", file=sys.stderr)
        return stopped.code
    if results:
        print_table(results_table(results))
        print(f"computed in {device.precision_name} on {device.name}; written to {into}")
    return DONE


def run_export(arguments: argparse.Namespace) -> int:
    from regpt.export.directory import ExportOptions
    from regpt.export.hub import parse_target, upload_model
    from regpt.export.opened import export_directory, export_file
    from regpt.export.precision import Precision
    from regpt.interop.open_model import open_model

    directory, file = arguments.target, arguments.gguf
    repository = parse_target(arguments.to) if arguments.to else ""
    if directory is None and file is None and not repository:
        raise UserError("regpt export: no target", "name a directory, --gguf FILE, or --to hub:OWNER/NAME")
    if arguments.public and not repository:
        raise UserError("--public is for the hub", "add --to hub:OWNER/NAME")
    opened = open_model(arguments.model, arguments.runs, step=arguments.step, averaged=arguments.averaged)
    options = ExportOptions(precision=Precision(arguments.dtype), keep_padding=arguments.keep_padding)

    def note(text: str) -> None:
        print(f"note: {text}", file=sys.stderr)

    if directory is not None:
        export_directory(opened, directory, options, licence=arguments.license, note=note)
        print(f"exported: {directory}")
    if file is not None:
        export_file(opened, file, options)
        print(f"exported: {file}")
    if repository:
        url = upload_model(opened, repository, options, licence=arguments.license, public=arguments.public, note=note)
        print(f"uploaded: {url}")
    return DONE


def results_table(results: "Sequence[Result]") -> "Table":
    """Return a table with a row for each task and metric."""
    from rich.table import Table

    columns = ("task", "metric", "name elsewhere", "value", "± error", "dataset")
    table = Table(*columns, box=None, pad_edge=False)
    previous = ""
    for result in results:
        is_new = result.task != previous
        table.add_row(
            result.task if is_new else "",
            result.metric,
            result.name_elsewhere,
            f"{result.value:.4f}",
            "" if result.error is None else f"{result.error:.4f}",
            result.dataset if is_new else "",
        )
        previous = result.task
    return table
